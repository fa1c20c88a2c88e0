"""A generation of processes: one release in one slot, as supervisord runs it."""

from __future__ import annotations

import contextlib
import pwd
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import private, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import MAX_PROCESSES, Layout, Slot, port_of
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import TIMEOUT, Address, listener_pid, probe
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import INTERVAL, protect
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import server_line
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation

#: Seconds beyond ``drain`` until supervisord kills a process that was told to stop.
STOP_MARGIN = 5

#: Seconds after which processes that were found healthy are looked at once more, before they get traffic: many a program that
#: answers at once ends a moment later, when its first connection to something else fails.
STEADY_SECONDS = 1.2

#: Health checks that run at the same time.
MAXIMUM_PROBES = 32

#: How the words begin for a process that says nothing.
SILENT = "did not answer"

#: Lines of a process's log that explain its failure, and the bytes in which they are looked for.
SHOWN_LINES = 25
SHOWN_BYTES = 1 << 14


class ProcessGroupError(Exception):
    """A generation does not do what it has to. The message has the process and the end of its log."""


class ProcessGroup:
    """The processes of a release in a slot: two generations of an app run during a switch."""

    def __init__(self, layout: Layout, slot: Slot, release: str, server: Any) -> None:
        """Read the release's description; ``server`` is what supervisord.connect() returns.

        :raises FileNotFoundError: when the release is not on this host.
        """
        self.layout = layout
        self.slot = slot
        self.release = release
        self.server = server
        self.manifest = read_manifest(layout, release)
        self.processes = range(self.manifest.processes)
        self._log_ends: dict[Path, int] = {}

    def is_up(self) -> bool:
        """Say whether all of it runs, and is configured as it has to be."""
        file = self.layout.supervisor_file(self.slot)
        if not file.exists() or file.read_text() != self._group_text():
            return False
        wanted = {self.layout.group(self.slot): len(self.processes), **self._worker_counts()}
        infos = [info for group in wanted for info in supervisord.process_infos(self.server, group)]
        return len(infos) == sum(wanted.values()) and all(info.state in ("RUNNING", "STARTING") for info in infos)

    # Starting

    def start(self) -> None:
        """Lay out the slot, which has to be clear, and let supervisord start the processes.

        :raises ProcessGroupError: when a port is taken, or sockets could not be protected.
        :raises SupervisorError: when supervisord refuses.
        """
        self._require_free_ports()
        self._lay_out()
        self._log_ends = {log: self._size(log) for log, _process in self._logs()}
        private.write(self.layout.supervisor_file(self.slot), self._group_text())
        for group in (self.layout.group(self.slot), *self._worker_counts()):
            supervisord.add_group(self.server, group)

    def _lay_out(self) -> None:
        """Make the slot's directory, in which the app's user may make sockets that nginx reaches."""
        directory = self.layout.slot(self.slot)
        directory.mkdir(mode=0o700)
        (directory / "release").symlink_to(f"../../releases/{self.release}")
        if before := self._before():
            (directory / "before").symlink_to(f"../../releases/{before}")
        self.layout.upstream(self.slot).write_text("".join(f"{server_line(address)}\n" for address in self._addresses()))
        self.layout.run(self.slot).mkdir(mode=0o700)
        try:
            protect(self.layout, self.slot)
        except private.PrivateError as error:
            raise ProcessGroupError(str(error)) from error

    def _before(self) -> str | None:
        """Return the release that this one replaces; processes that are only started anew replace none."""
        live = self.layout.live_slot()
        if live is None or self.layout.slot_release(live) != self.release:
            return self.layout.live_release()
        link = self.layout.slot(live) / "before"
        return link.readlink().name if link.is_symlink() else None

    def _addresses(self) -> Iterator[str]:
        """Yield the address of each process as nginx gets it: a path goes through ``live``, so both slots have the same ones."""
        for process in self.processes:
            port = self.port(process)
            yield f"127.0.0.1:{port}" if port else f"unix:{self.layout.live}/run/{process}.sock"

    def _group_text(self) -> str:
        group = self.layout.group(self.slot)
        served = self._program_text(group, len(self.processes), "")
        workers = (
            self._program_text(self.layout.group(self.slot, worker), entry.count, worker)
            for worker, entry in self.manifest.workers.items()
        )
        return "\n".join([served, *workers])

    def _program_text(self, group: str, count: int, worker: str) -> str:
        launcher = self.layout.release(self.release) / "launch.py"
        return (
            f"[program:{group}]\ncommand={launcher} {self.slot} %(process_num)d {worker}".rstrip() + "\n"
            "process_name=%(process_num)d\n"
            f"numprocs={count}\n"
            f"user={self.layout.user}\n"
            "autorestart=true\n"
            "startretries=100\n"  # FATAL is final; 100 tries, each a second later than the last, take over an hour
            f"stopwaitsecs={self.manifest.drain + STOP_MARGIN}\n"
            f"stopasgroup={'false' if self.manifest.runner else 'true'}\n"  # a shell passes no signal on
            "killasgroup=true\n"
            "redirect_stderr=true\n"
            f"stdout_logfile={self.layout.logs}/{self.slot}-{worker and f'{worker}-'}%(process_num)d.log\n"
            "stdout_logfile_maxbytes=50MB\n"
            "stdout_logfile_backups=5\n"
        )

    def _worker_counts(self) -> dict[str, int]:
        """Return the number of processes of each group of workers."""
        workers = self.manifest.workers.items()
        return {self.layout.group(self.slot, worker): entry.count for worker, entry in workers}

    def port(self, process: int) -> int | None:
        """Return the port that the launcher passes to the process; None for a process that listens on a socket."""
        return port_of(self.manifest.port, self.slot, process) if self.manifest.port else None

    def _require_free_ports(self) -> None:
        for process in self.processes:
            port = self.port(process)
            if port is None:
                return
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ProcessGroupError(f"port {port}, which process {process} needs, is taken") from error

    # Health

    def wait_healthy(self) -> None:
        """Wait until every process answers its health path with success, and is one of this release and slot; then look again.

        :raises ProcessGroupError: when one does not within ``health.timeout`` seconds, or does not stay up.
        """
        timeout = self.manifest.health.timeout
        deadline = time.monotonic() + timeout
        waiting = list(self.processes)
        answered: dict[int, str] = {}
        while waiting:
            infos = self._infos()
            patience = max(deadline - time.monotonic(), 1.0)
            problems = self._problems(waiting, infos, patience)
            # What a process has answered before says more than that the last of its answers did not come in time.
            answered |= {process: problem for process, problem in problems.items() if not problem.startswith(SILENT)}
            waiting = [process for process, problem in problems.items() if problem]
            if waiting and time.monotonic() > deadline:
                process = waiting[0]
                problem = answered.get(process, problems[process])
                log = self._log(self.layout.log(self.slot, process))
                raise ProcessGroupError(f"process {process} {problem} within {timeout} s (health.timeout){log}")
            if waiting:
                time.sleep(INTERVAL)
        pids = self.pids()
        time.sleep(STEADY_SECONDS)
        infos = self._infos()
        for process in self.processes:
            info = infos.get(process)
            if info is None or info.pid != pids.get(process):
                raise self._down(f"process {process}", info, self.layout.log(self.slot, process))
        self.require_healthy()
        self._wait_for_workers(deadline)

    def require_healthy(self) -> None:
        """See that every process is well at this moment.

        :raises ProcessGroupError: when one is not.
        """
        for process, problem in self._problems(self.processes, self._infos()).items():
            if problem:
                raise ProcessGroupError(f"process {process} {problem}{self._log(self.layout.log(self.slot, process))}")

    def pids(self) -> dict[int, int]:
        """Return the process id of each served process."""
        return {process: info.pid for process, info in self._infos().items()}

    def _infos(self) -> dict[int, supervisord.ProcessInfo]:
        return {int(info.name): info for info in supervisord.process_infos(self.server, self.layout.group(self.slot))}

    def _problems(
        self, processes: Sequence[int], infos: dict[int, supervisord.ProcessInfo], patience: float = TIMEOUT
    ) -> dict[int, str]:
        """Return what is wrong with each process; all are asked at once, so that none that hangs delays the check of another.

        :raises ProcessGroupError: when one does not stay up.
        """
        with ThreadPoolExecutor(MAXIMUM_PROBES) as pool:
            found = pool.map(lambda process: self._problem(process, infos.get(process), patience), processes)
            return dict(zip(processes, found, strict=True))

    def _problem(self, process: int, info: supervisord.ProcessInfo | None, patience: float = TIMEOUT) -> str:
        """Return what is wrong with a process, or nothing; its answer may take ``patience`` seconds, and never more than TIMEOUT.

        :raises ProcessGroupError: when it does not stay up.
        """
        if info is None or info.state not in ("STARTING", "RUNNING"):
            raise self._down(f"process {process}", info, self.layout.log(self.slot, process))
        path = self.manifest.health.path
        address = self.address(process)
        if isinstance(address, Path) and (problem := self._socket_problem(address)):
            return problem
        try:
            answer = probe(address, path, self.manifest.host, min(patience, TIMEOUT))
            owner = listener_pid(address, info.pid)
        except OSError:
            return f"{SILENT} GET {path}"
        if not answer.healthy:
            return f"answered GET {path} with {answer.status}"
        if owner is None:
            return "answers, but its address belongs to a process that supervisord did not start"
        if answer.release not in (None, self.release):
            return f"reports to be release {answer.release} at GET {path}"
        return ""

    def _socket_problem(self, path: Path) -> str:
        """Return what is wrong with the file that a process is to listen on; the kernel follows no link of the app's there."""
        found = tree.state(path, trusted=self.layout.slot(self.slot))
        if found is None:
            return f"{SILENT}: there is no {path}"
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == pwd.getpwnam(self.layout.user).pw_uid:
            return ""
        return f"has no socket of its own at {path}"

    def _wait_for_workers(self, deadline: float) -> None:
        """Wait until supervisord finds that every worker stays up: nothing else can be asked of one."""
        while True:
            starting = False
            for log, (worker, process) in self._logs():
                infos = supervisord.process_infos(self.server, self.layout.group(self.slot, worker)) if worker else []
                info = next((one for one in infos if one.name == str(process)), None)
                if worker and (info is None or info.state not in ("STARTING", "RUNNING")):
                    raise self._down(f"{worker} {process}", info, log)
                starting |= info is not None and info.state == "STARTING"
            if not starting or time.monotonic() > deadline:
                return
            time.sleep(INTERVAL)

    def _down(self, what: str, info: supervisord.ProcessInfo | None, log: Path) -> ProcessGroupError:
        why = f" ({info.error})" if info and info.error else ""
        return ProcessGroupError(f"{what} does not stay up{why}{self._log(log)}")

    def address(self, process: int) -> Address:
        """Return where a process listens."""
        port = self.port(process)
        return ("127.0.0.1", port) if port else self.layout.socket(self.slot, process)

    # Logs

    def _logs(self) -> Iterator[tuple[Path, tuple[str, int]]]:
        """Yield the log of every process, with the worker's type (empty for a served process) and the number of it."""
        counts = {"": len(self.processes)} | {worker: entry.count for worker, entry in self.manifest.workers.items()}
        for worker, count in counts.items():
            for process in range(count):
                yield self.layout.log(self.slot, process, worker), (worker, process)

    def _log(self, log: Path) -> str:
        """Return the end of what has been logged since the start."""
        with contextlib.suppress(OSError, tree.TreeError):
            end = tree.read_end(log, SHOWN_BYTES, trusted=self.layout.logs, start=self._log_ends.get(log, 0))
            lines = end.decode(errors="replace").strip().split("\n")[-SHOWN_LINES:]
            if lines != [""]:
                return "\n".join([f"; {log} ends with", *lines])
        return f"; {log} says nothing"

    def _size(self, log: Path) -> int:
        found = tree.state(log, trusted=self.layout.logs) if self.layout.logs.is_dir() else None
        return found.st_size if found else 0

    # Hooks

    def has_hook(self, step: str) -> bool:
        """Say whether the release has a command for a step."""
        return step in self.manifest.hooks

    def run_hook(self, step: str) -> None:
        """Run the release's command for a step, as the app's user, with the environment of its processes.

        :raises ProcessGroupError: when it fails or takes too long, with its last lines.
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
            raise ProcessGroupError(f"hooks.{step} failed with exit status {done.status}:\n{done.last_lines(SHOWN_LINES)}")

    # Traffic

    def add_socket_aliases(self, count: int, other: Slot) -> None:
        """Give the slot the sockets that nginx knows until its reload: beyond its own they lead to processes that answer.

        To its own ones, or, if it listens on ports, to those of the slot ``other``, which is there until nginx has reloaded. The
        kernel follows these links as they are root's, and the directory is.
        """
        slot = self.layout.slot(self.slot)
        for process in range(count):
            link = self.layout.socket(self.slot, process)
            if self.manifest.port:
                tree.replace_link(link, f"../../{other}/run/{process}.sock", trusted=slot)
            elif process not in self.processes:
                tree.replace_link(link, f"{process % len(self.processes)}.sock", trusted=slot)

    def remove_socket_aliases(self) -> None:
        """Remove the sockets of :meth:`add_socket_aliases`, which nginx does not know any more."""
        slot = self.layout.slot(self.slot)
        for process in range(MAX_PROCESSES):
            link = self.layout.socket(self.slot, process)
            found = tree.state(link, trusted=slot)
            if found and stat.S_ISLNK(found.st_mode) and found.st_uid == 0:
                tree.remove(link, trusted=slot)


def is_live(layout: Layout, release: str, server: Any) -> bool:
    """Say whether the release is what the live slot runs, with every process of it up.

    :raises SupervisorError: when supervisord, which ``server`` leads to, cannot be asked.
    """
    live = layout.live_slot()
    return live is not None and layout.slot_release(live) == release and ProcessGroup(layout, live, release, server).is_up()
