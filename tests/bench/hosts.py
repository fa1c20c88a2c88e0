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

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
FLEET = "bench"
#: Maximum number of hosts that the collection provisions.
MAX_HOSTS = 8
#: The host that ``install.sh`` provisions.
PLAIN = "plain"
#: Maximum duration of a program in seconds.
TIMEOUT = 1800


@dataclass(frozen=True)
class Run:
    """A run of a playbook: duration, CPU seconds of the controller and of the hosts, and output."""

    seconds: float
    cpu: float
    hosts_cpu: float
    output: str

    @property
    def tasks(self) -> int:
        """The number of tasks that ran on a host; requires ``-vvv``."""
        return sum("SSH: EXEC" in task for task in re.split(r"^(?:TASK|RUNNING HANDLER) \[", self.output, flags=re.MULTILINE)[1:])

    @property
    def round_trips(self) -> int:
        """The number of round trips to a host; requires ``-vvv``."""
        return self.output.count("SSH: EXEC")


class Fleet:
    """Booted hosts with their own project and inventory; ``directory`` has a copy of the app's code that can be changed."""

    def __init__(self, directory: Path) -> None:
        """Create the project; no host is booted yet."""
        self.directory = directory
        self.code = directory / "app"
        shutil.copytree(HERE / "app", self.code)
        shutil.copytree(ROOT / "files/sample_app/sample_app/static", self.code / "static", ignore=shutil.ignore_patterns("*.ico"))
        self.inventory = directory / "inventory"
        self.inventory.write_text(f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools.hosts inventory --fleet {FLEET}\n")
        self.inventory.chmod(0o755)
        self.variables = directory / "variables.yml"
        self.changes = 0
        self.change_variable()

    def change_code(self) -> None:
        """Change a line of the app."""
        self.changes += 1
        with (self.code / "bench_app.py").open("a") as file:
            file.write(f"# change {self.changes}\n")

    def change_variable(self) -> None:
        """Change a variable of the app."""
        self.changes += 1
        entry: dict[str, Any] = {
            "source": {"path": str(self.code)},
            "run": {"app": "bench_app:make_app"},
            "static": {"url": "/static/", "path": "static"},
            "health": {"path": "/healthz"},
            "domains": [],
            "env": {"CHANGE": str(self.changes)},
        }
        self.variables.write_text(yaml.safe_dump({"limits_open_files": 16384, "tornado_apps": {"bench": entry}}))

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
        command = ["ansible-playbook", name, "-i", str(self.inventory), "--limit", hosts, "-e", f"@{self.variables}", *options]
        started, cpu, hosts_cpu = time.monotonic(), cpu_of_children(), self.cpu_of(hosts)
        output = run(command)
        return Run(time.monotonic() - started, cpu_of_children() - cpu, self.cpu_of(hosts) - hosts_cpu, output)

    def cpu_of(self, hosts: str) -> float:
        """Return the CPU seconds of hosts since their boot (cgroup-v2.rst, cpu.stat)."""
        found = [self.ssh(host, "sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat") for host in hosts.split(":")]
        return sum(map(int, found)) / 1e6

    def call(self, command: str, *arguments: str, text: str | None = None) -> str:
        """Run a command of the test hosts."""
        return run([sys.executable, "-m", "tools.hosts", command, "--fleet", FLEET, *arguments], text)


def cpu_of_children() -> float:
    """Return the CPU seconds of ended child processes, which do not include the hosts."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def booted(directory: Path) -> Iterator[Fleet]:
    """Provide a fleet, and remove its hosts afterwards."""
    fleet = Fleet(directory)
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
