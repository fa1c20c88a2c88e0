"""What an app is doing on a host: read from its slots, supervisord and the kernel, never from the memory of a deploy."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, Layout, Slot, port_of
from ansible_collections.funnel.tornado.plugins.module_utils.limits import open_files_of
from ansible_collections.funnel.tornado.plugins.module_utils.sockets import Address, connections, get_status

PROC = Path("/proc")

#: Headings of the table. ``conn`` are open connections; ``files`` the open ones of those allowed; ``MiB`` the resident memory.
HEADINGS = ("app", "slot", "process", "release", "state", "pid", "uptime", "conn", "files", "MiB", "health")


@dataclass(frozen=True)
class Process:
    """One process: ``uptime`` in seconds, ``rss`` in bytes; ``health`` is the status of its health path, 0 for no answer.

    ``live`` tells whether its slot is the one that is served.
    """

    app: str
    slot: str
    live: bool
    process: int
    release: str
    state: str
    pid: int
    uptime: int
    connections: int
    open_files: int
    open_files_limit: int
    rss: int
    health: int

    @property
    def well(self) -> bool:
        """Whether it runs and answers its health path with success."""
        return self.state == "RUNNING" and 200 <= self.health < 400

    def row(self) -> tuple[str, ...]:
        """Return what the table shows."""
        slot = f"{self.slot}{'' if self.live else ' (not live)'}"
        files = f"{self.open_files}/{self.open_files_limit}"
        uptime = time.strftime("%H:%M:%S", time.gmtime(self.uptime % 86400))
        days = f"{self.uptime // 86400}d " if self.uptime >= 86400 else ""
        megabytes = f"{self.rss / 2**20:.0f}"
        cells = (self.app, slot, self.process, self.release, self.state, self.pid, days + uptime, self.connections, files)
        return (*map(str, cells), megabytes, str(self.health or "no answer"))


def look(layout: Layout, server: Any) -> Iterator[Process]:
    """Yield the processes of every slot of an app.

    :raises SupervisorError: when supervisord does not answer.
    """
    for slot in SLOTS:
        release = layout.slot_release(slot)
        if release is None:
            continue
        description = json.loads((layout.release(release) / "release.json").read_text())
        for info in supervisord.process_infos(server, layout.group(slot)):
            yield _process(layout, slot, description, info)


def table(processes: list[Process]) -> list[str]:
    """Return the processes as lines of a table."""
    rows = [HEADINGS, *(process.row() for process in processes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _process(layout: Layout, slot: Slot, description: dict[str, Any], info: supervisord.ProcessInfo) -> Process:
    number = int(info.name)
    port = description["port"] and port_of(description["port"], slot, number)
    address: Address = ("127.0.0.1", port) if port else layout.socket(slot, number)
    # The runner binds its socket to a hidden name made of its pid; other programs bind it to its own.
    names = {f".{info.pid}", f"{number}.sock"}
    alive = (PROC / str(info.pid) / "stat").exists() and info.pid > 0
    soft = open_files_of(info.pid)[0] if alive else 0
    return Process(
        app=layout.app,
        slot=slot,
        live=layout.live_slot() == slot,
        process=number,
        release=description["id"],
        state=info.state,
        pid=info.pid,
        uptime=_uptime(info.pid) if alive else 0,
        connections=connections(layout.run(slot), {port} if port else set(), names),
        open_files=len(list((PROC / str(info.pid) / "fd").iterdir())) if alive else 0,
        open_files_limit=soft,
        rss=int((PROC / str(info.pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if alive else 0,
        health=_health(address, description),
    )


def _uptime(pid: int) -> int:
    """Return the age of a process in seconds: field 22 of /proc/PID/stat is its start, in ticks since boot (proc(5))."""
    began = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) - began)


def _health(address: Address, description: dict[str, Any]) -> int:
    try:
        return get_status(address, description["health"]["path"], description["host"])
    except OSError:
        return 0
