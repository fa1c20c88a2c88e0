"""The main process of a unit of :mod:`isolation`: it starts one program as another user, and reports how the program ended.

It stands alone, because the unit's Python gets only its text. It is root's, and so the program can neither end it nor speak for
it. Its standard input is a socket to whoever waits for the result, and to nobody else. When that end is closed, however that came
about, it ends; systemd then kills whatever else the unit contains.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
from pathlib import Path
from typing import Any

#: Bytes of the length that precedes each message.
LENGTH = 4

#: What the program's process gets as its score for the kernel's out-of-memory killer: it ends before the one that reports it.
_OOM_SCORE = 500


def send(control: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send a message and, with it, a file descriptor."""
    data = json.dumps(message).encode()
    header = len(data).to_bytes(LENGTH, "big")
    socket.send_fds(control, [header], [] if descriptor is None else [descriptor])
    control.sendall(data)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """Return a message and the file descriptor that came with it; no message when the other end was closed."""
    header, descriptors, _flags, _address = socket.recv_fds(control, LENGTH, 1)
    with control.makefile("rb") as stream:
        header += stream.read(LENGTH - len(header))
        data = stream.read(int.from_bytes(header, "big"))
    message = json.loads(data) if header and data else None
    return message, descriptors[0] if descriptors else None


def main() -> None:
    """Run what the request on standard input asks for."""
    control = socket.socket(fileno=os.dup(0))
    request, stdin = receive(control)
    if request is not None:
        send(control, run(control, request, stdin))


def run(control: socket.socket, request: dict[str, Any], stdin: int | None) -> dict[str, Any]:
    """Run the program, and return its exit status, or why it has none."""
    if request["open_files"] is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(request["open_files"], hard), hard))
    before = _oom_score()
    _set_oom_score(_OOM_SCORE)
    try:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stderr=None if request["separate_stderr"] else 1,
            env=request["environment"],
            cwd=request["directory"],
            user=request["uid"],
            group=request["gid"],
            extra_groups=[],
            umask=request["umask"],
        )
    except OSError as error:
        return {"error": f"{error.strerror}: {error.filename}"}
    finally:
        _set_oom_score(before)
    if stdin is not None:
        os.close(stdin)  # or who writes into a pipe would not learn that the program has ended
    poller = select.poll()
    ended = os.pidfd_open(process.pid)
    poller.register(ended, select.POLLIN)
    poller.register(control, select.POLLIN)
    if ended not in [descriptor for descriptor, _events in poller.poll()]:
        os._exit(1)  # nobody waits any more
    return {"status": process.wait(), "out_of_memory": _killed_for_memory()}


def _oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def _set_oom_score(score: int) -> None:
    with contextlib.suppress(OSError):  # it cannot be lowered everywhere
        Path("/proc/self/oom_score_adj").write_text(str(score))


def _killed_for_memory() -> bool:
    """Say whether the kernel has killed a process of this unit because there was no memory for it."""
    with contextlib.suppress(OSError, IndexError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text().split()
        return int(events[events.index("oom_kill") + 1]) > 0
    return False


if __name__ == "__main__":
    main()
