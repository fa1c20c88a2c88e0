"""How a release goes live: start the free slot, see that it serves, move one link, let the other slot drain, stop it.

Traffic moves by a rename of the link ``live``. nginx connects to ``live/run/<process>.sock``, so new connections reach the
new slot at once and no reload is needed; nginx retires the connections it keeps to the old slot by itself. Only when the
server lines change (another number of processes, or programs that listen on ports) nginx is reloaded as well.

Every step can be broken off: what is found half-done is finished or removed by the next run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils import history, service, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.app_model import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, Layout, Slot, port_of
from ansible_collections.funnel.tornado.plugins.module_utils.nginx import server_line
from ansible_collections.funnel.tornado.plugins.module_utils.release import NGINX_GROUP, is_built, prune
from ansible_collections.funnel.tornado.plugins.module_utils.sockets import connections, get_status, listener_pid

#: The service that is told when server lines change. It logs a configuration that it refuses to a file of its own.
NGINX = service.Wanted("nginx", on_change="reload", log=Path("/var/log/nginx/error.log"))

#: Releases that stay on the host, the live one and the one before it among them.
KEPT_RELEASES = 3

#: Seconds between two looks at something that is waited for.
INTERVAL = 0.1

#: Seconds beyond ``drain`` until supervisord kills a process that was told to stop.
STOP_MARGIN = 5

#: Lines of a process's log that explain its failure.
SHOWN_LINES = 25


class SwitchError(Exception):
    """A release did not go live; what was served before still is. The message has the process and its log."""


@dataclass
class Outcome:
    """What a switch did: ``steps`` are ``{name, seconds}`` in order; ``changed`` is False when there was nothing to do."""

    slot: str | None
    release: str
    changed: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)


class Switcher:
    """Brings one release of one app live."""

    def __init__(self, layout: Layout, release: str) -> None:
        """Read the release's description.

        :raises SwitchError: when it is not on this host.
        """
        self.layout = layout
        self.outcome = Outcome(layout.live_slot(), release)
        self.description = _description(layout, release)
        self.processes = range(self.description["processes"])
        self.kept = {release} | {found for slot in SLOTS if (found := layout.slot_release(slot)) and is_built(layout, found)}
        # To stop a group takes as long as its release's drain.
        longest = max(_description(layout, kept)["drain"] for kept in self.kept)
        self.server = supervisord.connect(timeout=longest + 2 * STOP_MARGIN)

    def is_served(self) -> bool:
        """Say whether the release is what the live slot runs, with every process of it up."""
        live = self.layout.live_slot()
        if live is None or self.layout.slot_release(live) != self.outcome.release:
            return False
        file = self.layout.supervisor_file(live)
        if not file.exists() or file.read_text() != self._group_text(live):
            return False
        infos = supervisord.process_infos(self.server, self.layout.group(live))
        return len(infos) == len(self.processes) and all(info.state in ("RUNNING", "STARTING") for info in infos)

    def has_leftovers(self) -> bool:
        """Say whether a switch that was broken off left something to finish or to remove."""
        other = self.layout.other_slot()
        return (
            self.layout.slot(other).exists()
            or self.layout.supervisor_file(other).exists()
            or any(self._reload_mark(slot).exists() for slot in SLOTS)
        )

    def run(self) -> Outcome:
        """Bring the release live.

        :raises SwitchError: when it does not serve; the slot that was live still is.
        """
        if not self.is_served():
            slot = self.layout.other_slot()
            with self._step("clean"):
                self._stop(slot)
            with self._step("start"):
                self._start(slot)
            with self._step("switch"):
                self._move_traffic(slot)
        if self.has_leftovers():
            with self._step("reload"):
                self._finish_reload()
            with self._step("drain"):
                self._drain(self.layout.other_slot())
            with self._step("stop"):
                self._stop(self.layout.other_slot())
        if self.outcome.changed:
            self._forget_old_releases()
        self.outcome.slot = self.layout.live_slot()
        return self.outcome

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Time a step; whatever has a step is a change."""
        began = time.monotonic()
        self.outcome.changed = True
        yield
        self.outcome.steps.append({"name": name, "seconds": round(time.monotonic() - began, 3)})

    def _start(self, slot: Slot) -> None:
        """Start the slot's group and wait until each of its processes serves; what fails is removed again."""
        self._require_free_ports(slot)
        self._lay_out(slot)
        ends = {process: _size(self.layout.log(slot, process)) for process in self.processes}
        try:
            self.layout.supervisor_file(slot).write_text(self._group_text(slot))
            supervisord.add_group(self.server, self.layout.group(slot))
            self._wait_healthy(slot, ends)
        except supervisord.SupervisorError as error:
            self._stop(slot)
            raise SwitchError(f"{self._name()}: supervisord does not start it: {error}") from error
        except BaseException:
            self._stop(slot)
            raise

    def _lay_out(self, slot: Slot) -> None:
        """Make the slot's directory: root's, but for the one in which the app's user makes sockets that nginx reaches."""
        directory = self.layout.slot(slot)
        directory.mkdir(mode=0o711)
        (directory / "release").symlink_to(f"../../releases/{self.outcome.release}")
        (directory / "static").symlink_to("release/static")
        self.layout.upstream(slot).write_text(self._upstream_text(slot))
        run = self.layout.run(slot)
        run.mkdir(mode=0o700)
        shutil.chown(run, self.layout.user, NGINX_GROUP)
        run.chmod(0o2750)

    def _upstream_text(self, slot: Slot) -> str:
        """Return a server line per process: paths go through ``live``, so that both slots have the same ones."""
        if self.description["port"]:
            addresses = [f"127.0.0.1:{self._port(slot, process)}" for process in self.processes]
        else:
            addresses = [f"unix:{self.layout.live}/run/{process}.sock" for process in self.processes]
        return "".join(f"{server_line(address)}\n" for address in addresses)

    def _group_text(self, slot: Slot) -> str:
        launcher = self.layout.release(self.outcome.release) / "launch.py"
        return (
            f"[program:{self.layout.group(slot)}]\n"
            f"command={launcher} {slot} %(process_num)d\n"
            "process_name=%(process_num)d\n"
            f"numprocs={len(self.processes)}\n"
            f"user={self.layout.user}\n"
            "autorestart=true\n"
            "startretries=100\n"  # FATAL is final; 100 tries, each a second later than the last, take over an hour
            f"stopwaitsecs={self.description['drain'] + STOP_MARGIN}\n"
            "killasgroup=true\n"
            "redirect_stderr=true\n"
            f"stdout_logfile={self.layout.logs}/{slot}-%(process_num)d.log\n"
            "stdout_logfile_maxbytes=50MB\n"
            "stdout_logfile_backups=5\n"
        )

    def _port(self, slot: Slot, process: int) -> int:
        """Return the port that the launcher gives to the process."""
        return port_of(self.description["port"], slot, process)

    def _require_free_ports(self, slot: Slot) -> None:
        for process in self.processes if self.description["port"] else ():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", self._port(slot, process)))
                except OSError as error:
                    port = self._port(slot, process)
                    raise SwitchError(f"{self._name()}: port {port}, which process {process} needs, is taken") from error

    def _wait_healthy(self, slot: Slot, ends: dict[int, int]) -> None:
        """Wait until every process answers its health path with success, and is a process of this release and slot."""
        health = self.description["health"]
        deadline = time.monotonic() + health["timeout"]
        waiting = dict.fromkeys(self.processes, "has not answered yet")
        while waiting:
            group = supervisord.process_infos(self.server, self.layout.group(slot))
            infos = {int(info.name): info for info in group}
            for process in list(waiting):
                self._require_alive(slot, infos.get(process), process, ends[process])
                waiting[process] = self._ask(slot, process, infos[process].pid)
                if not waiting[process]:
                    del waiting[process]
            if waiting and time.monotonic() > deadline:
                process, why = next(iter(waiting.items()))
                raise SwitchError(
                    f"{self._name()}: process {process} {why} within {health['timeout']} s (health.timeout)"
                    f"{self._log(slot, process, ends[process])}"
                )
            if waiting:
                time.sleep(INTERVAL)

    def _require_alive(self, slot: Slot, info: supervisord.ProcessInfo | None, process: int, end: int) -> None:
        if info is None or info.state not in ("STARTING", "RUNNING"):
            why = f" ({info.error})" if info and info.error else ""
            raise SwitchError(f"{self._name()}: process {process} does not stay up{why}{self._log(slot, process, end)}")

    def _ask(self, slot: Slot, process: int, pid: int) -> str:
        """Return what is wrong with a process, or nothing."""
        address = ("127.0.0.1", self._port(slot, process)) if self.description["port"] else self.layout.socket(slot, process)
        path = self.description["health"]["path"]
        try:
            status = get_status(address, path, self.description["host"])
        except OSError:
            return f"did not answer GET {path}"
        if not 200 <= status < 400:
            return f"answered GET {path} with {status}"
        owner = listener_pid(address, pid)
        return "" if owner else "answers, but its address belongs to a process that supervisord did not start"

    def _move_traffic(self, slot: Slot) -> None:
        """Rename the link."""
        live = self.layout.live_slot()
        if live and self.layout.upstream(live).read_text() != self.layout.upstream(slot).read_text():
            self._reload_mark(slot).touch()
            self._lead_on(live, slot)
        elif live is None:
            self._reload_mark(slot).touch()
        _point(self.layout.live, f"slots/{slot}")
        if live is None:
            _point(self.layout.current, "live/release")
        history.record(self.layout, self.outcome.release, self.description["revision"])

    def _lead_on(self, live: Slot, slot: Slot) -> None:
        """Give the slot the sockets that nginx knows until its reload: beyond its own they lead to processes that answer.

        To its own ones, or, if it listens on ports, to those of the slot before, which is there until nginx has reloaded.
        """
        for process in range(len(self._server_lines(live))):
            link = self.layout.socket(slot, process)
            if self.description["port"]:
                link.symlink_to(f"../../{live}/run/{process}.sock")
            elif process not in self.processes:
                link.symlink_to(f"{process % len(self.processes)}.sock")

    def _reload_mark(self, slot: Slot) -> Path:
        """Return the file that says that nginx does not know the slot's server lines yet, should the switch be broken off."""
        return self.layout.slot(slot) / "reload"

    def _finish_reload(self) -> None:
        live = self.layout.live_slot()
        if live and self._reload_mark(live).exists():
            nginx = service.look(NGINX.name)
            if nginx.active:
                service.activate(NGINX, nginx, "reload")
            self._reload_mark(live).unlink()

    def _drain(self, slot: Slot) -> None:
        """Wait until nobody is connected to the slot, at most ``drain`` seconds."""
        deadline = time.monotonic() + self.description["drain"]
        while time.monotonic() < deadline and self._connections(slot):
            time.sleep(INTERVAL)

    def _connections(self, slot: Slot) -> int:
        ports = {int(line.rsplit(":", 1)[1].split()[0]) for line in self._server_lines(slot) if "unix:" not in line}
        return connections(self.layout.run(slot), ports)

    def _server_lines(self, slot: Slot) -> list[str]:
        upstream = self.layout.upstream(slot)
        return upstream.read_text().splitlines() if upstream.exists() else []

    def _stop(self, slot: Slot) -> None:
        """Stop a slot's group and remove all of it; nothing is left to start again, whenever this is broken off."""
        self.layout.supervisor_file(slot).unlink(missing_ok=True)
        supervisord.remove_group(self.server, self.layout.group(slot))
        shutil.rmtree(self.layout.slot(slot), ignore_errors=True)

    def _forget_old_releases(self) -> None:
        with self._step("prune"):
            self.outcome.pruned = prune(self.layout, self.kept, KEPT_RELEASES)

    def _name(self) -> str:
        return f"{VARIABLE}.{self.layout.app}: release {self.outcome.release} did not go live"

    def _log(self, slot: Slot, process: int, end: int) -> str:
        """Return what the process has logged since ``end``, the size its log had when it was started."""
        log = self.layout.log(slot, process)
        if _size(log) < end:
            end = 0
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(end)
            lines = file.read().decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
            if lines:
                return "\n".join([f"; {log} ends with", *lines])
        return f"; {log} says nothing"


def _description(layout: Layout, release: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((layout.release(release) / "release.json").read_text())
    except FileNotFoundError as error:
        raise SwitchError(f"{VARIABLE}.{layout.app}: release {release} is not on this host") from error
    return found


def _point(link: Path, target: str) -> None:
    """Let ``link`` point to ``target`` in one atomic step, wherever it pointed to."""
    new = link.with_name(f".{link.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.rename(link)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
