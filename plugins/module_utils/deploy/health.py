"""Health checks of the processes of a release, which connect as nginx does, and the reasons why a process is unhealthy."""

from __future__ import annotations

import pwd
import re
import stat
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import NGINX_USER
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import (
    TIMEOUT,
    ProbeResult,
    listener_pid,
    listening_addresses,
    probe,
)
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup, ProcessGroupError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import INTERVAL

#: Seconds between the first successful health check and the last one before the switch: a program may respond at once and exit
#: a moment later, for example when its first connection to a database fails.
STABILITY_SECONDS = 1.2

#: A process that waits for a CPU gets that time in addition to `health.timeout`, which is for what it does itself: up to this
#: multiple of the timeout, and unless it is shorter than this time in seconds.
MAX_STARVED = 4
MIN_EXTENSION = 0.5

#: Processes checked concurrently: a process that does not respond delays few others.
MAX_CONCURRENT_CHECKS = 64

#: Starts of the problems of a process that does not listen or respond.
NO_ANSWER = ("did not answer", "did not create")

#: An address of a TCP listener, which has no path.
_TCP_ADDRESS = re.compile(r"(?:[\d.]+|\[[\da-f:.]+\]):\d+")


def ask(process_group: ProcessGroup, process: int, timeout: float = TIMEOUT) -> ProbeResult:
    """Send the health check of the release to a process, with the permissions of nginx.

    :raises OSError: if there is no response.
    """
    manifest = process_group.manifest
    address = process_group.address(process)
    return probe(address, manifest.health.path, manifest.host, timeout, headers=manifest.health.headers, user=NGINX_USER)


def require_healthy(process_group: ProcessGroup) -> None:
    """Check the health of every process once.

    :raises ProcessGroupError: when a process is unhealthy.
    """
    HealthChecks(process_group).require()


class HealthChecks:
    """Checks the processes of a group, and remembers their answers for the message of a failure."""

    def __init__(self, process_group: ProcessGroup) -> None:
        """Check nothing yet."""
        self.group = process_group
        self.manifest = process_group.manifest
        # An earlier answer explains more than a last check that timed out.
        self._answers: dict[int, str] = {}
        # Sizes of the log before the second and the latest check: messages omit the lines in between.
        self._repeated: dict[int, tuple[int, int]] = {}
        self._checked: set[int] = set()
        # Process ids at the first check of a soaking release, by log.
        self._pids: dict[Path, int] = {}

    def wait(self) -> None:
        """Wait until the health check of every process succeeds, and check once more that all are stable.

        :raises ProcessGroupError: when a process is unhealthy after ``health.timeout`` seconds, or exits.
        """
        timeout = self.manifest.health.timeout
        deadline = Deadline(timeout)
        starved = 0.0
        waiting = list(self.group.processes)
        while waiting:
            problems = self._problems(waiting, max(deadline.remaining, 1.0))
            waiting = [process for process, problem in problems.items() if problem]
            if waiting and deadline.expired:
                pids = self.group.pids()
                longest = max(proc.cpu_wait(pids.get(process, 0)) for process in waiting)
                extension = min(longest, MAX_STARVED * timeout) - starved
                if extension < MIN_EXTENSION:
                    more = f", not counting {starved:.0f} s without a free CPU" if starved else ""
                    raise self._error(waiting[0], problems[waiting[0]], f" within {timeout} s (health.timeout){more}")
                starved += extension
                deadline = Deadline(extension)
            if waiting:
                time.sleep(INTERVAL)
        pids = self.group.pids()
        time.sleep(STABILITY_SECONDS)
        infos = self.group.infos()
        for process in self.group.processes:
            info = infos.get(process)
            if info is None or info.pid != pids.get(process):
                raise self._exit_error(f"process {process}", info, self._log(process))
        self.require()
        self.wait_for_workers(self.group.workers.keys() - self.group.singletons.keys(), deadline)

    def require_stable(self) -> None:
        """Check every process once, and that none was restarted since the first call, workers included.

        :raises ProcessGroupError: when a process is unhealthy or was restarted.
        """
        infos = {worker: self.group.infos(worker) for worker in ("", *self.group.workers)}
        for log, (worker, process) in self.group.logs():
            name = f"{worker or 'process'} {process}"
            info = infos[worker].get(process)
            if info is None or info.state not in ("STARTING", "RUNNING"):
                raise self._exit_error(name, info, log)
            if info.pid != self._pids.setdefault(log, info.pid):
                raise ProcessGroupError(f"{name} exited and was restarted{self.group.log_end(log)}")
        self.require()

    def require(self) -> None:
        """Check every process once.

        :raises ProcessGroupError: when a process is unhealthy.
        """
        for process, problem in self._problems(self.group.processes).items():
            if problem:
                raise self._error(process, problem)

    def _problems(self, processes: Sequence[int], timeout: float = TIMEOUT) -> dict[int, str]:
        """Check the processes concurrently, so that a hanging one does not delay the others; return the problem of each.

        :raises ProcessGroupError: when a process does not run.
        """
        infos = self.group.infos()
        pool = ThreadPoolExecutor(MAX_CONCURRENT_CHECKS)
        try:
            problems = pool.map(lambda process: self._problem(process, infos.get(process), timeout), processes)
            return dict(zip(processes, problems, strict=True))
        finally:
            pool.shutdown(wait=False)  # a rollback that preempts the deploy must not wait for a process that hangs

    def _problem(self, process: int, info: supervisord.ProcessInfo | None, timeout: float) -> str:
        """Return why a process is unhealthy; empty if it is healthy. The check takes at most ``timeout``, and TIMEOUT, seconds.

        :raises ProcessGroupError: when it does not run.
        """
        if info is None or info.state not in ("STARTING", "RUNNING"):
            raise self._exit_error(f"process {process}", info, self._log(process))
        path = self.manifest.health.path
        address = self.group.address(process)
        if isinstance(address, Path) and (problem := self._socket_problem(address)):
            return problem
        if process in self._checked:
            size = self.group.log_size(process)
            self._repeated[process] = (self._repeated.get(process, (size, size))[0], size)
        self._checked.add(process)
        try:
            answer = ask(self.group, process, min(timeout, TIMEOUT))
            owner = listener_pid(address, info.pid)
        except PermissionError:
            return f"refuses connections of nginx: {self._permissions(Path(str(address)))}"
        except OSError:
            return f"did not answer GET {path}"
        if not self.manifest.health.accepts(answer.status):
            self._answers[process] = f"answered GET {path} with {answer}"
            return self._answers[process]
        if owner is None:
            return "answers, but its address belongs to a process that supervisord did not start: let it run in the foreground"
        if answer.release not in (None, self.group.release):
            return f"reports the wrong release {answer.release} at GET {path}"
        return ""

    def _socket_problem(self, path: Path) -> str:
        """Return what is wrong with the file at a process's socket path, without following links of the app."""
        found = tree.state(path, trusted=self.group.layout.slot(self.group.slot))
        if found is None:
            return f"did not create {path}"
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == pwd.getpwnam(self.group.layout.user).pw_uid:
            return ""
        return f"has no socket of its own at {path}"

    def _permissions(self, path: Path) -> str:
        found = tree.state(path, trusted=self.group.layout.slot(self.group.slot))
        mode = f"has mode {stat.S_IMODE(found.st_mode):04o}" if found else "was removed"
        return f"{path} {mode}, and {NGINX_USER} cannot write to it; let the program create it with mode 0660"

    def _error(self, process: int, problem: str, period: str = "") -> ProcessGroupError:
        """Return the error of an unhealthy process, with its last answer and its log, or with where it listens instead."""
        if problem.startswith(NO_ANSWER):
            problem = self._answers.get(process) or problem
        log = self.group.log_end(self._log(process), self._repeated.get(process, (0, 0)))
        cure = self._wrong_address(process) if problem.startswith(NO_ANSWER) else ""
        return ProcessGroupError(f"process {process} {problem}{period}{cure}{log}")

    def _wrong_address(self, process: int) -> str:
        """Return where a process listens instead of at its address, with the remedy; empty if it listens there, or nowhere."""
        info = self.group.infos().get(process)
        addresses = listening_addresses(info.pid) if info else []
        port = self.group.port(process)
        if any(address == str(self.group.address(process)) or (port and address.endswith(f":{port}")) for address in addresses):
            return ""
        run = f"{self.group.layout.run(self.group.slot)}/"  # has sockets of the runner too, such as the one for metrics
        others = [address for address in addresses if not address.startswith(run)]
        if not others:
            return ""
        if self.manifest.runner:
            return f"; it listens on {', '.join(others)}: let it return the application without listening itself"
        if port:
            return f"; it listens on {', '.join(others)}: let it listen on 127.0.0.1 and {{port}}, which is also $PORT"
        ports = all(_TCP_ADDRESS.fullmatch(address) for address in others)
        remedy = "pass it {socket}, or set port, such as port: 8000, and pass it {port}" if ports else "pass it {socket}"
        return f"; it listens on {', '.join(others)}: {remedy}"

    def wait_for_workers(self, workers: Collection[str], deadline: Deadline) -> None:
        """Wait until supervisord reports every one of ``workers`` as running, the only health check that workers have.

        :raises ProcessGroupError: when one does not stay up.
        """
        while True:
            starting = False
            for log, (worker, process) in self.group.logs():
                info = self.group.infos(worker).get(process) if worker in workers else None
                if worker in workers and (info is None or info.state not in ("STARTING", "RUNNING")):
                    raise self._exit_error(f"{worker} {process}", info, log)
                starting |= info is not None and info.state == "STARTING"
            if not starting or deadline.expired:
                return
            time.sleep(INTERVAL)

    def _exit_error(self, process: str, info: supervisord.ProcessInfo | None, log: Path) -> ProcessGroupError:
        reason = f" ({info.error})" if info and info.error else ""
        return ProcessGroupError(f"{process} does not stay up{reason}{self._in_background(info)}{self.group.log_end(log)}")

    def _in_background(self, info: supervisord.ProcessInfo | None) -> str:
        """Return the remedy for a program that exited but continues in the background."""
        layout = self.group.layout
        variables = {"TORNADO_APP": layout.app, "TORNADO_SLOT": self.group.slot, "TORNADO_PROCESS": info.name if info else ""}
        supervised = {process.pid for worker in ("", *self.group.workers) for process in self.group.infos(worker).values()}
        found = proc.pids_with_environment(pwd.getpwnam(layout.user).pw_uid, variables)
        background = [pid for pid in found if supervised.isdisjoint(proc.ancestry(pid))]
        if not background:
            return ""
        return f": it continues in the background as process {background[0]}; let it run in the foreground, not as a daemon"

    def _log(self, process: int) -> Path:
        return self.group.layout.log(self.group.slot, process)
