"""Reasons for a reboot of a host: running kernels, programs and services that are older than the installed ones."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: Mapped code whose file was replaced, in /proc/PID/maps, proc(5). An app chooses the names of its own files.
REPLACED = re.compile(rb"^\S+ ..x. \S+ \S+ [0-9]+ +(/usr/|/lib)\S* \(deleted\)$", re.MULTILINE)

#: Maximum bytes that are read of the mapped files of a process.
MAX_MAPS = 4 << 20

#: Drop-ins that the roles add to units without a restart of the services.
DROP_INS = "etc/systemd/system/*.service.d/50-funnel.conf"


def reboot_reasons(base: Path = Path("/")) -> Iterator[str]:
    """Yield the reasons why this host should be rebooted.

    Packages create run/reboot-required only if a program such as unattended-upgrades is installed. The link to the newest kernel
    is vmlinuz on Debian, boot/vmlinuz on Ubuntu.
    """
    if (base / "run/reboot-required").exists():
        yield "/run/reboot-required exists"
    links = (link.readlink().name for link in (base / "vmlinuz", base / "boot/vmlinuz") if link.is_symlink())
    newest = next(links, "").removeprefix("vmlinuz-") or platform.release()
    if newest != platform.release():
        yield f"it runs kernel {platform.release()}, but {newest} is installed"
    stale = sorted({name for name in map(_stale_program, proc.pids()) if name})
    if stale:
        yield f"processes use files that were replaced: {', '.join(stale)}"
    if outdated := sorted(_outdated_services(base)):
        yield f"units were changed since these services started: {', '.join(outdated)}"


def _outdated_services(base: Path) -> Iterator[str]:
    """Yield the services that have not been restarted since the roles changed their drop-ins.

    :raises ServiceError: if systemd is not the init system of this host.
    """
    for drop_in in base.glob(DROP_INS):
        name = drop_in.parent.name.removesuffix(".service.d")
        state = systemd.query(name)
        # A file from the future was written before the clock was set back.
        if state.main_pid and state.started_at < drop_in.stat().st_mtime <= time.time():
            yield name


def _stale_program(pid: int) -> str:
    """Return the name of a process if files of its code were replaced since it started; empty otherwise."""
    directory = proc.PROC / str(pid)
    try:
        with (directory / "maps").open("rb") as file:
            replaced = REPLACED.search(file.read(MAX_MAPS))
        if replaced:
            return proc.name(pid)
    except OSError:  # it has exited
        pass
    return ""
