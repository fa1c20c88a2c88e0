"""Hosts of the benchmark, and the commands run on them."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.snapshots import directory

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
FLEET = "bench"
#: Maximum number of hosts that the collection provisions.
MAX_HOSTS = 8
#: The host that ``install.sh`` provisions.
PLAIN = "plain"
#: Limit of open files, at most that of processes of this machine.
OPEN_FILES = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
#: Prints the CPU time of a host in microseconds, and the bytes that it has received.
COUNTERS = "sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat; cat /sys/class/net/host0/statistics/rx_bytes"
#: Maximum duration of a program in seconds.
TIMEOUT = 1800


@dataclass(frozen=True)
class Run:
    """A run of a playbook: duration, CPU seconds of the controller and of the hosts, output, and kB that the hosts received."""

    seconds: float
    cpu: float
    hosts_cpu: float
    output: str
    received: float = 0

    @property
    def tasks(self) -> int:
        """The number of tasks that ran on a host; requires ``-vvv``."""
        return sum("SSH: EXEC" in task for task in re.split(r"^(?:TASK|RUNNING HANDLER) \[", self.output, flags=re.MULTILINE)[1:])

    @property
    def round_trips(self) -> int:
        """The number of round trips to a host; requires ``-vvv``."""
        return self.output.count("SSH: EXEC")


class Fleet:
    """Booted hosts with their own project and inventory; ``project`` has a copy of the app's code that can be changed."""

    def __init__(self, project: Path) -> None:
        """Create the project; no host is booted yet."""
        self.directory = project
        self.code = project / "app"
        shutil.copytree(HERE / "app", self.code)
        shutil.copytree(ROOT / "files/sample_app/sample_app/static", self.code / "static", ignore=shutil.ignore_patterns("*.ico"))
        self.inventory = project / "inventory"
        self.inventory.write_text(f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools.hosts inventory --fleet {FLEET}\n")
        self.inventory.chmod(0o755)
        self.variables = project / "variables.yml"
        self.changes = 0
        #: The number of equal apps, other apps, and further variables.
        self.count = 1
        self.more: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] = {}
        self.change_variable()

    def change_code(self) -> None:
        """Change a line of the app."""
        self.changes += 1
        with (self.code / "bench_app.py").open("a") as file:
            file.write(f"# change {self.changes}\n")

    def change_variable(self) -> None:
        """Change a variable of the apps."""
        self.changes += 1
        entry: dict[str, Any] = {
            "source": {"path": str(self.code)},
            "run": {"app": "bench_app:make_app"},
            "static": {"url": "/static/", "path": "static"},
            "health": {"path": "/healthz"},
            "domains": [],
            "env": {"CHANGE": str(self.changes)},
        }
        apps = {"bench": entry} | {
            f"bench{number}": entry | {"domains": [f"bench{number}.test"]} for number in range(2, self.count + 1)
        }
        variables = {"limits_open_files": OPEN_FILES, "tornado_apps": apps | self.more}
        self.variables.write_text(yaml.safe_dump(variables | self.settings))

    def boot(self, *names: str) -> None:
        """Replace all hosts by these, bare ones."""
        self.call("down", "--all")
        self.call("up", *(f"{name}:bookworm" for name in names))

    def addresses(self) -> dict[str, str]:
        """Return the addresses of the hosts by name."""
        return {line.split()[0]: line.split()[1] for line in self.call("list").splitlines()}

    def ssh(self, host: str, script: str) -> str:
        """Run a script on a host as root."""
        return self.call("ssh", host, "bash -seu", text=script)

    def install(self) -> float:
        """Provision the host of the manual setup; return the duration in seconds."""
        files = (file for file in sorted(self.code.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
        copies = "".join(
            f"mkdir -p /opt/app/{file.parent.relative_to(self.code)}\n"
            f"cat > /opt/app/{file.relative_to(self.code)} <<'END OF FILE'\n{file.read_text()}END OF FILE\n"
            for file in files
        )
        started = time.monotonic()
        self.ssh(PLAIN, copies + (HERE / "install.sh").read_text())
        return time.monotonic() - started

    def playbook(self, name: str, hosts: str, *options: str) -> Run:
        """Run a playbook on some of the hosts."""
        return self._measure(hosts, ["ansible-playbook", name, "--limit", hosts, "-e", f"@{self.variables}", *options])

    def ansible(self, hosts: str, *options: str) -> Run:
        """Run a single module on some of the hosts."""
        return self._measure(hosts, ["ansible", hosts, *options])

    def _measure(self, hosts: str, command: list[str]) -> Run:
        before, cpu, started = self.counters(hosts), cpu_of_children(), time.monotonic()
        output = run([*command, "-i", str(self.inventory)])
        seconds = time.monotonic() - started
        used, after = cpu_of_children() - cpu, self.counters(hosts)
        return Run(seconds, used, after[0] - before[0], output, after[1] - before[1])

    def clone(self, host: str, clones: list[str]) -> None:
        """Remove all hosts, and boot clones of one of them."""
        name = f"{FLEET}-{time.time_ns()}"
        self.call("snapshot", name, host)
        self.call("down", "--all")
        snapshot = directory(ROOT, name)
        for clone in clones:
            shutil.copytree(snapshot / host, snapshot / clone, ignore=shutil.ignore_patterns("root"))
        self.call("up", "--from", name, *(f"{clone}:bookworm" for clone in clones))

    def counters(self, hosts: str) -> tuple[float, float]:
        """Return the CPU seconds of hosts since their boot (cgroup-v2.rst, cpu.stat), and the kB that they have received.

        Both are 0 for too many hosts to be asked one by one.
        """
        names = hosts.split(":")
        if len(names) > MAX_HOSTS:
            return 0, 0
        found = [self.ssh(host, COUNTERS).split() for host in names]
        return sum(int(cpu) for cpu, _received in found) / 1e6, sum(int(received) for _cpu, received in found) / 1e3

    def call(self, command: str, *arguments: str, text: str | None = None) -> str:
        """Run a command of the test hosts."""
        return run([sys.executable, "-m", "tools.hosts", command, "--fleet", FLEET, *arguments], text)


def cpu_of_children() -> float:
    """Return the CPU seconds of ended child processes, which do not include the hosts."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def booted(project: Path) -> Iterator[Fleet]:
    """Provide a fleet, and remove its hosts afterwards."""
    fleet = Fleet(project)
    try:
        yield fleet
    finally:
        fleet.call("down", "--all")


def run(command: list[str], text: str | None = None) -> str:
    """Run a program and return its output; its failure ends the benchmark."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Load:
    """The result of wrk: the number of requests, their rate per second, and percentiles of the latency in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float


def wrk(url: str, connections: int, seconds: int, *headers: str) -> Load:
    """Generate load with wrk; a failed request ends the benchmark."""
    options = [option for header in headers for option in ("-H", header)]
    output = run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *options, url])
    requests, rate = re.search(r"(\d+) requests in", output), re.search(r"Requests/sec:\s+([\d.]+)", output)
    latency = {
        name: float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
        for name, value, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)", output)
    }
    if not requests or not rate or "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"{url} failed:\n{output}")
    return Load(int(requests[1]), float(rate[1]), latency["50"], latency["99"])
