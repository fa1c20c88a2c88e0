"""Why a host should be rebooted: what runs on it is older than what is installed."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: Code that a process runs and that is no longer the file's: proc(5), /proc/PID/maps.
REPLACED = re.compile(r"^\S+ ..x. .* (/usr/\S+|/lib\S*) \(deleted\)$", re.MULTILINE)

#: What the roles add to the units of services that are not restarted for it.
DROP_INS = "etc/systemd/system/*.service.d/50-funnel.conf"


def reboot_reasons(base: Path = Path("/")) -> Iterator[str]:
    """Yield why this host should be rebooted, in words.

    Packages leave run/reboot-required only where a program such as unattended-upgrades is installed; vmlinuz is Debian's link
    to the newest kernel, boot/vmlinuz Ubuntu's.
    """
    if (base / "run/reboot-required").exists():
        yield "/run/reboot-required says so"
    links = (link.readlink().name for link in (base / "vmlinuz", base / "boot/vmlinuz") if link.is_symlink())
    newest = next(links, "").removeprefix("vmlinuz-") or platform.release()
    if newest != platform.release():
        yield f"it runs the kernel {platform.release()}, and {newest} is installed"
    old = sorted({name for name in map(_running_replaced, proc.pids()) if name})
    if old:
        yield f"files were replaced that still run: {', '.join(old)}"
    if outdated := sorted(_older_than_their_units(base)):
        yield f"units were changed since these services started: {', '.join(outdated)}"


def _older_than_their_units(base: Path) -> Iterator[str]:
    """Yield the services that run without what the roles have since added to their units, such as what they may no longer do.

    :raises ServiceError: when systemd does not run this host.
    """
    for drop_in in base.glob(DROP_INS):
        name = drop_in.parent.name.removesuffix(".service.d")
        state = systemd.query(name)
        if state.main_pid and drop_in.stat().st_mtime > state.started_at:
            yield name


def _running_replaced(pid: int) -> str:
    """Return the name of a process that runs code which has been replaced since it was started."""
    directory = proc.PROC / str(pid)
    try:
        if REPLACED.search((directory / "maps").read_text(errors="replace")):
            return (directory / "comm").read_text(errors="replace").strip()
    except OSError:  # it has ended
        pass
    return ""
