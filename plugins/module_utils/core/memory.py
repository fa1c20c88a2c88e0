"""The memory of a host: what is available, and what the processes of its users occupy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import PROC

#: The control group of a container, whose limit the kernel does not show in meminfo. That of a machine has no such files.
CGROUP = Path("/sys/fs/cgroup")


#: Memory in ``memory.stat`` of a control group that the kernel reclaims for new processes.
_RECLAIMABLE = re.compile(r"^(?:inactive_file|active_file|slab_reclaimable) (\d+)", re.MULTILINE)


def available(proc: Path = PROC, cgroup: Path = CGROUP, *, swap: bool = True) -> int:
    """Return the bytes that new processes can get, including swap if requested."""
    free = sum(_values(proc / "meminfo", ("MemAvailable", "SwapFree") if swap else ("MemAvailable",)))
    limits = [cgroup / name for name in ("memory.max", "memory.current", "memory.stat")]
    if not all(path.exists() for path in limits):
        return free
    limit, current, stat = (path.read_text(encoding="utf-8") for path in limits)
    if not limit.strip().isdigit():
        return free
    return max(0, min(free, int(limit) - int(current) + sum(map(int, _RECLAIMABLE.findall(stat)))))


def used_by(uids: Iterable[int], proc: Path = PROC) -> dict[int, int]:
    """Return the bytes that the processes of each user occupy and do not share, including swap."""
    used = dict.fromkeys(uids, 0)
    for status in proc.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has exited
            owner = re.search(r"^Uid:\s+(\d+)", status.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            if owner and int(owner[1]) in used:
                used[int(owner[1])] += sum(_values(status, ("RssAnon", "VmSwap")))
    return used


def _values(file: Path, names: tuple[str, ...]) -> Iterator[int]:
    text = file.read_text(encoding="utf-8", errors="replace")
    yield from (int(size) << 10 for size in re.findall(rf"^(?:{'|'.join(names)}):\s+(\d+) kB", text, re.MULTILINE))
