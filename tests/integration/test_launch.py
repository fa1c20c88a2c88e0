"""The launcher, started in a real release by a parent that acts as supervisord."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LAUNCHER = Path(__file__).parents[2] / "roles/app/files/launch.py"

#: Acts as supervisord: starts the command on each line of its input as a process group leader, and prints its process id.
SUPERVISOR = """
import json, subprocess, sys
for line in sys.stdin:
    print(subprocess.Popen(json.loads(line), process_group=0).pid, flush=True)
"""

#: Records its arguments and environment, starts a child, and waits.
PROGRAM = """
import json, os, pathlib, signal, socket, subprocess, sys, time
state = {"argv": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd(), "pid": os.getpid()}
if os.environ.get("STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ.get("LISTENER", "nobody") == os.environ.get("TORNADO_PROCESS"):
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
child = subprocess.Popen(["sleep", "60"])
path = pathlib.Path(os.environ["NOTE"])
path.with_suffix(".new").write_text(json.dumps(state | {"child": child.pid}))
path.with_suffix(".new").rename(path)
time.sleep(60)
"""


class Release:
    """A release in slot b of an app, whose program records its arguments and environment, and a supervisord that starts it."""

    def __init__(self, home: Path, **keys: Any) -> None:
        self.directory = home / "releases/1f2e"
        self.run = home / "slots/b/run"
        self.note = home / "note"
        (self.directory / "src").mkdir(parents=True)
        (self.directory / "src/program.py").write_text(PROGRAM)
        self.run.mkdir(parents=True)
        self.launcher = str(shutil.copy(LAUNCHER, self.directory))
        command = [sys.executable, "program.py"]
        description = {
            "app": "shop",
            "id": "1f2e",
            "argv": [*command, "{process}", "{socket}", "{run}"],
            "runner": False,
            "workers": {"mail": {"argv": [*command, "{process}", "{{}}"], "count": 3}},
            "hooks": {"before_switch": [*command, "{}"]},
            "environment": {"NOTE": str(self.note), "THEME": "50% 'dark'; #1"},
            "processes": 2,
            "port": None,
            "open_files": 99,
            "drain": 1,
            "health": {"timeout": 20},
        }
        (self.directory / "release.json").write_text(json.dumps(description | keys))
        (self.directory / "secrets.json").write_text(json.dumps({"COOKIE_SECRET": "secret"}))
        self.supervisor: subprocess.Popen[str] | None = None
        self.started: list[int] = []

    def launch(self, *arguments: str) -> int:
        """Run the launcher under supervisord and return its process id."""
        if self.supervisor is None:
            command = [sys.executable, "-c", SUPERVISOR]
            self.supervisor = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env={"LEAK": "1"}
            )
        assert self.supervisor.stdin is not None
        assert self.supervisor.stdout is not None
        self.supervisor.stdin.write(json.dumps([sys.executable, "-I", self.launcher, *arguments]) + "\n")
        self.started.append(int(self.supervisor.stdout.readline()))
        return self.started[-1]

    def start(self, *arguments: str) -> dict[str, Any]:
        """Run the launcher and return what its program recorded."""
        self.note.unlink(missing_ok=True)
        pid = self.launch(*arguments)
        eventually(self.note.exists)
        recorded: dict[str, Any] = json.loads(self.note.read_text())
        assert recorded["pid"] == pid
        return recorded

    def kill_supervisor(self) -> None:
        if self.supervisor is not None:
            self.supervisor.kill()
            self.supervisor.wait()
            for pipe in (self.supervisor.stdin, self.supervisor.stdout):
                assert pipe is not None
                pipe.close()
            self.supervisor = None


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Release]]:
    """Return a function that creates a release, whose processes are killed after the test."""
    releases: list[Release] = []

    def make(**keys: Any) -> Release:
        releases.append(Release(tmp_path / "shop", **keys))
        return releases[-1]

    yield make
    for release in releases:
        for group in release.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        release.kill_supervisor()


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; none if the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met within 20 s"
        time.sleep(0.01)


def test_a_process_gets_its_identity_and_nothing_of_supervisords_environment(make: Callable[..., Release]) -> None:
    release = make(port=8000)
    recorded = release.start("b", "1")
    assert recorded["argv"] == ["1", f"{release.run}/1.sock", str(release.run)]
    assert recorded["directory"] == f"{release.directory}/src"
    environment = recorded["environment"]
    assert environment.pop("PATH").startswith(f"{release.directory}/venv/bin:")
    assert environment.pop("USER")
    assert environment == {
        "COOKIE_SECRET": "secret",
        "HOME": f"{release.directory.parents[1]}/shared",
        "LANG": "C.UTF-8",
        "NOTE": str(release.note),
        "PORT": "8003",
        "PYTHONUNBUFFERED": "1",
        "THEME": "50% 'dark'; #1",
        "TORNADO_APP": "shop",
        "TORNADO_PROCESS": "1",
        "TORNADO_PROCESSES": "2",
        "TORNADO_RELEASE": "1f2e",
        "TORNADO_SLOT": "b",
        "VIRTUAL_ENV": f"{release.directory}/venv",
    }
    limits = Path(f"/proc/{recorded['pid']}/limits").read_text()
    assert next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")) == "99"
    assert (release.run / "1.starts").read_text() == f"{recorded['pid']} {stat(recorded['pid'])[19]}\n"


def test_a_worker_has_no_port_and_its_own_process_numbers(make: Callable[..., Release]) -> None:
    release = make(port=8000)
    recorded = release.start("b", "2", "mail")
    assert recorded["argv"] == ["2", "{}"]
    named = {name: recorded["environment"].get(name) for name in ("PORT", "TORNADO_PROCESS", "TORNADO_PROCESSES", "TORNADO_SLOT")}
    assert named == {"PORT": None, "TORNADO_PROCESS": "2", "TORNADO_PROCESSES": "3", "TORNADO_SLOT": "b"}
    assert (release.run / "mail.2.starts").read_text() == f"{recorded['pid']} {stat(recorded['pid'])[19]}\n"


@pytest.mark.parametrize(
    ("arguments", "slot"),
    [
        (["--hook", "before_switch", "b"], "b"),
        (["--hook", "before_switch"], None),
        (["--run", sys.executable, "program.py", "{}"], None),
    ],
)
def test_a_hook_and_a_command_have_the_environment_of_a_process(
    make: Callable[..., Release], arguments: list[str], slot: str | None
) -> None:
    release = make(port=8000)
    recorded = release.start(*arguments)
    assert recorded["argv"] == ["{}"]
    assert recorded["directory"] == f"{release.directory}/src"
    assert recorded["environment"]["COOKIE_SECRET"] == "secret"
    named = {name: value for name, value in recorded["environment"].items() if name.startswith(("TORNADO_", "PORT", "LEAK"))}
    assert named == {"TORNADO_APP": "shop", "TORNADO_RELEASE": "1f2e", "TORNADO_PROCESSES": "2"} | (
        {"TORNADO_SLOT": slot} if slot else {}
    )
    assert list(release.run.iterdir()) == []


def test_a_package_in_the_release_is_importable_and_its_commands_are_found(make: Callable[..., Release], tmp_path: Path) -> None:
    release = make(environment={"PYTHONPATH": "/own", "NOTE": str(tmp_path / "shop/note")})
    package = release.directory / "package"
    package.mkdir()
    found = release.start("b", "0")["environment"]
    assert found["PYTHONPATH"] == f"{package}:/own"
    assert found["PATH"].startswith(f"{package}/bin:{release.directory}/venv/bin:")


def test_an_orphan_is_stopped_with_its_process_group_before_its_replacement_starts(make: Callable[..., Release]) -> None:
    release = make()
    for arguments in (("b", "0"), ("b", "0", "mail")):
        old = release.start(*arguments)
        release.kill_supervisor()
        assert stat(old["pid"]), "it is an orphan"
        new = release.start(*arguments)
        assert (stat(old["pid"]), stat(old["child"])) == ([], [])
        assert stat(new["pid"])


def test_orphans_are_replaced_one_after_the_other(make: Callable[..., Release], tmp_path: Path) -> None:
    """The next orphan keeps serving requests until the replacement of the previous one listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    release = make(port=port - 1, environment={"LISTENER": "0", "NOTE": str(tmp_path / "shop/note")})
    first, second = (release.start("b", number)["pid"] for number in "01")
    release.kill_supervisor()
    release.launch("b", "1")
    time.sleep(0.5)
    assert stat(second), "it waits for the previous process"
    release.launch("b", "0")
    eventually(lambda: not stat(second))
    assert not stat(first)
    with socket.create_connection(("127.0.0.1", port), 5):
        pass


def test_an_orphan_that_does_not_stop_is_killed(make: Callable[..., Release], tmp_path: Path) -> None:
    environment = {"STUBBORN": "1", "NOTE": str(tmp_path / "shop/note")}
    release = make(environment=environment, drain=-4)  # plus STOP_MARGIN, 5 s
    old = release.start("b", "0")
    release.kill_supervisor()
    began = time.monotonic()
    release.start("b", "0")
    assert time.monotonic() - began > 1
    assert not stat(old["pid"])


def test_the_runner_gets_the_orphans_to_replace(make: Callable[..., Release]) -> None:
    release = make(runner=True)
    first = release.start("b", "0")
    release.kill_supervisor()
    second = release.start("b", "0")
    assert second["argv"][3:] == ["--replace", str(first["pid"])]
    release.kill_supervisor()
    third = release.start("b", "0")
    assert third["argv"][3:] == ["--replace", str(first["pid"]), "--replace", str(second["pid"])]
    assert all(stat(process["pid"]) for process in (first, second, third))
    assert len((release.run / "0.starts").read_text().splitlines()) == 3


def test_only_orphans_are_replaced(make: Callable[..., Release]) -> None:
    """Not processes of the same supervisord, ended ones, or others with a reused id; incomplete lines are ignored."""
    release = make(runner=True)
    release.start("b", "0")
    with subprocess.Popen(["sleep", "60"]) as unrelated:
        try:
            with (release.run / "0.starts").open("a") as file:
                file.write(f"{2**22} 1\n{unrelated.pid} 1\n\nx\n{unrelated.pid}\n")
            assert release.start("b", "0")["argv"][3:] == []
            with (release.run / "1.starts").open("a") as file:
                file.write(f"{unrelated.pid} {stat(unrelated.pid)[19]}\n")
            assert release.start("b", "1")["argv"][3:] == ["--replace", str(unrelated.pid)], "a complete line is used"
        finally:
            unrelated.kill()


#: Restricts its socket to its own user, as Tornado's bind_unix_socket does, but only after it listens.
PRIVATE_SOCKET = """
import os, signal, socket, sys, time
signal.signal(signal.SIGCHLD, lambda *_: os._exit(3))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o600)
listener.listen()
time.sleep(0.3)
os.chmod(sys.argv[1], 0o600)
time.sleep(60)
"""


def test_the_socket_of_a_program_that_restricts_it_is_opened_to_its_group(make: Callable[..., Release]) -> None:
    release = make(argv=[sys.executable, "-c", PRIVATE_SOCKET, "{socket}"])
    pid = release.launch("b", "0")
    path = release.run / "0.sock"
    eventually(path.exists)
    time.sleep(0.5)
    eventually(lambda: path.stat().st_mode & 0o777 == 0o660)
    assert stat(pid)[0] == "S", "the program gets no signal of a child that it does not know"


def test_a_missing_program_is_reported(make: Callable[..., Release]) -> None:
    release = make(argv=["no-such-program"])
    done = subprocess.run([sys.executable, "-I", release.launcher, "b", "0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "cannot start: there is no program no-such-program in the environment, the source and the system; add it to the app's "
        "dependencies, or its Debian package to packages\n",
    )
