"""Process groups: start, logs, hooks and sockets of a release's processes in a slot, under supervisord."""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import Worker, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import private, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import MAX_PROCESSES, Layout, Slot, port_of
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import Address
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.front_door_check import publish_health_check
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import is_usable, protect
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisor_config import STOP_MARGIN, slot_config
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import server_line
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation

#: Lines of a process's log that an error shows, and the bytes that are read for them.
MAX_LOG_LINES = 25
MAX_LOG_BYTES = 1 << 14


class ProcessGroupError(Exception):
    """A process does not start, is unhealthy, or fails in a hook. The message has the process and the end of its log."""


class ProcessGroup:
    """The processes of a release in a slot. During a switch, an app has two process groups."""

    def __init__(self, layout: Layout, slot: Slot, release: str, server: Any) -> None:
        """Read the manifest of the release; ``server`` is a client of :func:`supervisord.connect`.

        :raises FileNotFoundError: when the release is not on this host.
        """
        self.layout = layout
        self.slot = slot
        self.release = release
        self.server = server
        self.manifest = read_manifest(layout, release)
        self.processes = range(self.manifest.processes)
        self.workers = {name: worker for name, worker in self.manifest.workers.items() if worker.count}
        self.singletons = {name: worker for name, worker in self.workers.items() if worker.singleton}
        self._overlapping = {name: worker for name, worker in self.workers.items() if not worker.singleton}
        self._log_starts: dict[Path, int] = {}

    def is_up(self) -> bool:
        """Return whether all processes run, with the desired configuration of supervisord, where nginx can reach them."""
        if not is_usable(self.layout, self.slot):
            return False
        file = self.layout.supervisor_file(self.slot)
        if not file.exists() or file.read_text(encoding="utf-8") != self._supervisor_config(self.workers):
            return False
        return self.serves() and all(self._runs(name, worker.count) for name, worker in self.workers.items())

    def serves(self) -> bool:
        """Return whether the processes that serve requests run, even if workers do not."""
        return self._runs("", len(self.processes))

    def _runs(self, worker: str, count: int) -> bool:
        states = [info.state for info in self.infos(worker).values()]
        return len(states) == count and all(state in ("RUNNING", "STARTING") for state in states)

    # Starting

    def start(self) -> None:
        """Create the slot, which must be clear, and start the processes under supervisord, except singletons.

        :raises ProcessGroupError: when a port is in use, or the sockets cannot be protected.
        :raises SupervisorError: when supervisord refuses.
        """
        self._require_free_ports()
        self._create_slot()
        self._note_log_sizes()
        self._write_config(self._overlapping)
        for name in ("", *self._overlapping):
            supervisord.add_group(self.server, self.layout.group(self.slot, name))

    def start_workers(self) -> None:
        """Start the workers that do not run: singletons, and those that were asked to stop, once they have ended.

        The singletons of the other slot must have stopped.

        :raises SupervisorError: when supervisord refuses, or a worker does not end.
        """
        self._note_log_sizes()
        self._write_config(self.workers)
        groups = [
            self.layout.group(self.slot, name) for name, worker in self.workers.items() if not self._runs(name, worker.count)
        ]
        supervisord.remove_groups(self.server, groups, self.manifest.stop_timeout + STOP_MARGIN)
        for group in groups:
            supervisord.add_group(self.server, group)

    def stop_singletons(self) -> None:
        """Stop them; idempotent. The configuration goes first, so that supervisord does not start them again at a reboot.

        :raises SupervisorError: when one does not end.
        """
        self._write_config(self._overlapping)
        groups = [self.layout.group(self.slot, name) for name in self.singletons]
        supervisord.remove_groups(self.server, groups, self.manifest.stop_timeout + STOP_MARGIN)

    def _create_slot(self) -> None:
        directory = self.layout.slot(self.slot)
        directory.mkdir(mode=0o700)
        (directory / "release").symlink_to(f"../../releases/{self.release}")
        if previous := self._previous_release():
            (directory / "before").symlink_to(f"../../releases/{previous}")
        self.layout.upstream(self.slot).write_text(
            "".join(f"{server_line(address)}\n" for address in self._addresses()), encoding="utf-8"
        )
        publish_health_check(self.layout, self.slot, self.manifest)
        self.layout.run(self.slot).mkdir(mode=0o700)
        try:
            protect(self.layout, self.slot)
        except private.PrivateError as error:
            raise ProcessGroupError(str(error)) from error

    def _previous_release(self) -> str | None:
        """Return the release that this one replaces; a restart keeps the one that the live slot replaced."""
        live = self.layout.live_slot()
        if live is None or self.layout.slot_release(live) != self.release:
            return self.layout.live_release()
        link = self.layout.slot(live) / "before"
        return link.readlink().name if link.is_symlink() else None

    def _addresses(self) -> Iterator[str]:
        """Yield each process's address for nginx; a socket's path goes through ``live``, so it is the same in both slots."""
        for process in self.processes:
            port = self.port(process)
            yield f"127.0.0.1:{port}" if port else f"unix:{self.layout.live}/run/{process}.sock"

    def _supervisor_config(self, workers: Mapping[str, Worker]) -> str:
        return slot_config(self.layout, self.slot, self.manifest, workers)

    def _write_config(self, workers: Mapping[str, Worker]) -> None:
        try:
            private.write(self.layout.supervisor_file(self.slot), self._supervisor_config(workers))
        except OSError as error:
            raise ProcessGroupError(f"its processes cannot be configured: {error_text(error)}") from error

    def port(self, process: int) -> int | None:
        """Return the port that the launcher passes to the process; None for a process that listens on a socket."""
        return port_of(self.manifest.port, self.slot, process) if self.manifest.port else None

    def address(self, process: int) -> Address:
        """Return the address that a process listens on."""
        port = self.port(process)
        return ("127.0.0.1", port) if port else self.layout.socket(self.slot, process)

    def _require_free_ports(self) -> None:
        for process in self.processes:
            port = self.port(process)
            if port is None:
                return
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ProcessGroupError(f"port {port}, which process {process} needs, is in use") from error

    # Processes

    def pids(self) -> dict[int, int]:
        """Return the process ids by process numbers, without workers."""
        return {process: info.pid for process, info in self.infos().items()}

    def infos(self, worker: str = "") -> dict[int, supervisord.ProcessInfo]:
        """Return the processes that serve requests, or those of a worker, by number, as supervisord sees them."""
        infos = supervisord.process_infos(self.server, self.layout.group(self.slot, worker))
        return {int(info.name): info for info in infos}

    # Logs

    def logs(self) -> Iterator[tuple[Path, tuple[str, int]]]:
        """Yield the log of every process with its worker type (empty for processes that serve requests) and number."""
        counts = {"": len(self.processes)} | {name: worker.count for name, worker in self.workers.items()}
        for worker, count in counts.items():
            for process in range(count):
                yield self.layout.log(self.slot, process, worker), (worker, process)

    def log_size(self, process: int) -> int:
        """Return the present size of the log of a process that serves requests."""
        return self._size(self.layout.log(self.slot, process))

    def log_end(self, log: Path, omit: tuple[int, int] = (0, 0)) -> str:
        """Return the last lines logged since the start, as the end of an error message.

        :arg omit: first and last offset of lines to omit, such as those of repeated health checks.
        """
        with contextlib.suppress(OSError, tree.TreeError):
            start = self._log_starts.get(log, 0)
            end = tree.read_end(log, MAX_LOG_BYTES, trusted=self.layout.logs, start=start)
            first, last = (max(offset - max(start, self._size(log) - len(end)), 0) for offset in omit)
            lines = (end[:first] + end[last:]).decode(errors="replace").strip().split("\n")[-MAX_LOG_LINES:]
            if lines != [""]:
                return "\n".join([f"; {log} ends with", *lines])
        return f"; {log} has no new lines"

    def _note_log_sizes(self) -> None:
        """Note the sizes of the logs, so that errors show new lines only."""
        self._log_starts = {log: self._size(log) for log, _process in self.logs()}

    def _size(self, log: Path) -> int:
        found = tree.state(log, trusted=self.layout.logs) if self.layout.logs.is_dir() else None
        return found.st_size if found else 0

    # Hooks

    def has_hook(self, step: str) -> bool:
        """Return whether the release has a hook for a step of the deploy."""
        return step in self.manifest.hooks

    def run_hook(self, step: str) -> None:
        """Run the release's hook for a step as the app's user, with the environment of its processes.

        :raises ProcessGroupError: when it fails or times out, with the end of its output.
        """
        release = self.layout.release(self.release)
        try:
            done = isolation.run(
                self.layout.user,
                [str(release / "launch.py"), "--hook", step, self.slot],
                directory=release,
                environment={},
                timeout=self.manifest.hooks_timeout,
                description=f"Hook {step} of {self.layout.app}",
                private_tmp=False,
            )
        except CommandError as error:
            raise ProcessGroupError(f"hooks.{step}: {error}") from error
        if done.status != 0:
            raise ProcessGroupError(f"hooks.{step} failed with exit status {done.status}:\n{done.last_lines(MAX_LOG_LINES)}")

    # Socket aliases

    def add_socket_aliases(self, count: int, other: Slot) -> None:
        """Link the first ``count`` socket paths, which nginx uses until its reload, to sockets of running processes.

        Missing sockets point to the slot's own ones or, if its processes listen on ports, to those of the slot ``other``, which
        is kept until nginx has reloaded. The kernel follows the links because root owns them and their directory.
        """
        slot = self.layout.slot(self.slot)
        for process in range(count):
            link = self.layout.socket(self.slot, process)
            if self.manifest.port:
                tree.replace_link(link, f"../../{other}/run/{process}.sock", trusted=slot)
            elif process not in self.processes:
                tree.replace_link(link, f"{process % len(self.processes)}.sock", trusted=slot)

    def remove_socket_aliases(self) -> None:
        """Remove the links of :meth:`add_socket_aliases`, which nginx no longer uses after its reload."""
        slot = self.layout.slot(self.slot)
        for process in range(MAX_PROCESSES):
            link = self.layout.socket(self.slot, process)
            found = tree.state(link, trusted=slot)
            if found and stat.S_ISLNK(found.st_mode) and found.st_uid == 0:
                tree.remove(link, trusted=slot)


def is_live(layout: Layout, release: str, server: Any) -> bool:
    """Return whether the live slot runs the release with all its processes.

    :raises SupervisorError: when supervisord, whose client ``server`` is, is unreachable.
    """
    live = layout.live_slot()
    return live is not None and layout.slot_release(live) == release and ProcessGroup(layout, live, release, server).is_up()
