"""Health checks of processes that wait for a CPU, of their sockets, and of workers during the soak."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import HealthCheck, ReleaseManifest, Worker
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.health import HealthChecks, require_healthy
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup, ProcessGroupError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import ProcessInfo

#: The name of the app, which is also its user: one that every host has.
APP = "daemon"

MANIFEST = ReleaseManifest(app=APP, id="1f2e", revision="r1", health=HealthCheck(timeout=1))


class Group(ProcessGroup):
    """A process group whose processes a test starts instead of supervisord."""

    def __init__(self, base: Path, **keys: Any) -> None:
        layout = Layout(APP, base=base)
        layout.release("1f2e").mkdir(parents=True)
        layout.run("b").mkdir(parents=True)
        layout.manifest("1f2e").write_text(replace(MANIFEST, **keys).to_json())
        super().__init__(layout, "b", "1f2e", None)
        self.found: dict[str, ProcessInfo] = {}

    def infos(self, worker: str = "") -> dict[int, ProcessInfo]:
        """Return the process of the test, if it is one of the worker."""
        return {0: self.found[worker]} if worker in self.found else {}

    def run(self, pid: int, worker: str = "", state: str = "RUNNING") -> None:
        """Set the only process of a worker, or the one that serves requests."""
        self.found[worker] = ProcessInfo("0", f"{APP}-b", state, pid, "exit status 1" if state == "BACKOFF" else "")


@pytest.fixture
def busy() -> Iterator[int]:
    """Start a process that never listens, and shares one CPU with five others."""
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), "sh", "-c", "while :; do :; done"]
    processes = [subprocess.Popen(command) for _number in range(6)]
    yield processes[0].pid
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_process_that_waits_for_a_cpu_gets_more_time_to_become_healthy(tmp_path: Path, busy: int) -> None:
    group = Group(tmp_path, processes=1)
    group.run(busy)
    began = time.monotonic()
    with pytest.raises(ProcessGroupError, match=r"within 1 s \(health.timeout\), not counting [1-4] s without a free CPU"):
        HealthChecks(group).wait()
    assert time.monotonic() - began > 2


def test_a_process_that_only_waits_for_something_else_gets_no_more_time(tmp_path: Path) -> None:
    group = Group(tmp_path, processes=1)
    with subprocess.Popen(["sleep", "60"]) as process:
        group.run(process.pid)
        try:
            with pytest.raises(ProcessGroupError, match=re.escape("within 1 s (health.timeout);")):
                HealthChecks(group).wait()
        finally:
            process.kill()


#: A program that listens on the sockets of its arguments; those that begin with @ are abstract.
LISTENER = """
import socket, sys, time
sockets = [socket.socket(socket.AF_UNIX) for path in sys.argv[1:]]
for listening, path in zip(sockets, sys.argv[1:]):
    listening.bind(path.replace("@", "\\0"))
    listening.listen()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("runner", "sockets", "advice"),
    [
        (True, ["run/0.metrics"], ""),
        (True, ["run/0.metrics", "tmp/debug"], "/debug: let it return the application without listening itself"),
        (False, ["tmp/debug"], "/debug: pass it {socket}"),
        (False, ["@debug"], "; it listens on @debug: pass it {socket};"),
        (False, ["./debug"], "; it listens on ./debug: pass it {socket};"),
        (False, ["run/0.sock", "tmp/debug"], ""),
    ],
)
def test_only_a_process_that_listens_elsewhere_is_advised_about_its_address(
    tmp_path: Path, *, runner: bool, sockets: list[str], advice: str
) -> None:
    group = Group(tmp_path, processes=1, runner=runner)
    directories = {"run": group.layout.run("b"), "tmp": tmp_path}
    paths = [re.sub(r"^(run|tmp)(?=/)", lambda match: str(directories[match[0]]), name) for name in sockets]
    command = [sys.executable, "-c", LISTENER, *paths]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            group.run(process.pid)
            with pytest.raises(ProcessGroupError) as found:
                HealthChecks(group).wait()
        finally:
            process.kill()
    assert (advice in str(found.value)) if advice else ("it listens on" not in str(found.value)), str(found.value)


#: A program that listens on the socket of its argument and answers each request with 200.
SERVER = """
import contextlib, socket, sys
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[1])
    listening.listen()
    print("ready", flush=True)
    while True:
        with contextlib.suppress(OSError), listening.accept()[0] as connection:
            if connection.recv(10_000):
                connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
"""


@pytest.fixture
def answering() -> Iterator[Group]:
    """Yield a group whose process answers; other users can reach its socket, as far as the mode of the socket lets them."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        group = Group(Path(directory), processes=1)
        socket = group.layout.socket("b", 0)
        with subprocess.Popen([sys.executable, "-c", SERVER, socket], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                shutil.chown(socket, APP)
                group.run(process.pid)
                yield group
            finally:
                process.kill()


def test_a_socket_that_nginx_cannot_use_is_refused_although_root_can(answering: Group) -> None:
    socket = answering.layout.socket("b", 0)
    socket.chmod(0o600)
    expected = (
        f"process 0 refuses connections of nginx: {socket} has mode 0600, and www-data cannot write to it; "
        "let the program create it with mode 0660"
    )
    with pytest.raises(ProcessGroupError, match=re.escape(expected)):
        require_healthy(answering)
    os.chown(socket, pwd.getpwnam(APP).pw_uid, pwd.getpwnam("www-data").pw_gid)
    socket.chmod(0o660)
    require_healthy(answering)


def test_an_answer_of_a_process_that_supervisord_did_not_start_is_refused(answering: Group) -> None:
    answering.layout.socket("b", 0).chmod(0o666)
    require_healthy(answering)
    with subprocess.Popen(["sleep", "60"]) as supervised:
        answering.run(supervised.pid)
        try:
            with pytest.raises(ProcessGroupError, match="belongs to a process that supervisord did not start: let it"):
                require_healthy(answering)
        finally:
            supervised.kill()


def test_a_worker_that_crashes_or_is_restarted_is_not_stable(tmp_path: Path) -> None:
    group = Group(tmp_path, processes=0, workers={"queue": Worker(["q"], 1)})
    health = HealthChecks(group)
    group.run(100, "queue")
    health.require_stable()
    health.require_stable()
    group.run(0, "queue", "BACKOFF")
    with pytest.raises(ProcessGroupError, match=r"queue 0 does not stay up \(exit status 1\)"):
        health.require_stable()
    group.run(101, "queue")
    with pytest.raises(ProcessGroupError, match=r"queue 0 exited and was restarted; /\S+/b-queue-0\.log has no new lines"):
        health.require_stable()
