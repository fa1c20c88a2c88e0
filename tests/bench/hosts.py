"""The hosts of the benchmark, and what is run on them."""

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
#: How many hosts at most are provisioned by the collection.
MOST = 8
#: The host that is provisioned by ``install.sh``.
PLAIN = "plain"
#: Seconds after which a program is given up.
LONGEST = 1800


@dataclass(frozen=True)
class Run:
    """A playbook's run: its seconds, those of CPU that the controller and that the hosts took, and what it printed."""

    seconds: float
    cpu: float
    hosts_cpu: float
    output: str

    @property
    def tasks(self) -> int:
        """How many tasks touched a host; for runs with ``-vvv``."""
        return sum("SSH: EXEC" in task for task in re.split(r"^(?:TASK|RUNNING HANDLER) \[", self.output, flags=re.MULTILINE)[1:])

    @property
    def round_trips(self) -> int:
        """How many times something was sent to a host and waited for; for runs with ``-vvv``."""
        return self.output.count("SSH: EXEC")


class Fleet:
    """Booted hosts, and a project of its own whose inventory they are: ``directory`` has an app's code that may be changed."""

    def __init__(self, directory: Path) -> None:
        """Lay the project down; no host is booted yet."""
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
        """Boot these hosts, bare, in place of all that there are."""
        self.call("down", "--all")
        self.call("up", *(f"{name}:bookworm" for name in names))

    def addresses(self) -> dict[str, str]:
        """Return the hosts' addresses by their names."""
        return {line.split()[0]: line.split()[1] for line in self.call("list").splitlines()}

    def ssh(self, host: str, script: str) -> str:
        """Run a script on a host as root."""
        return self.call("ssh", host, "bash -seu", text=script)

    def install(self) -> float:
        """Provision the plain host; return the seconds that it took."""
        files = (file for file in sorted(self.code.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
        copies = "".join(
            f"mkdir -p /opt/app/{file.parent.relative_to(self.code)}\n"
            f"cat > /opt/app/{file.relative_to(self.code)} <<'END OF FILE'\n{file.read_text()}END OF FILE\n"
            for file in files
        )
        began = time.monotonic()
        self.ssh(PLAIN, copies + (HERE / "install.sh").read_text())
        return time.monotonic() - began

    def playbook(self, name: str, hosts: str, *options: str) -> Run:
        """Run a playbook on some of the hosts, as a user does."""
        command = ["ansible-playbook", name, "-i", str(self.inventory), "--limit", hosts, "-e", f"@{self.variables}", *options]
        began, cpu, hosts_cpu = time.monotonic(), cpu_of_children(), self.cpu_of(hosts)
        output = run(command)
        return Run(time.monotonic() - began, cpu_of_children() - cpu, self.cpu_of(hosts) - hosts_cpu, output)

    def cpu_of(self, hosts: str) -> float:
        """Return the seconds of CPU that some hosts have taken since they were booted (cgroup-v2.rst, cpu.stat)."""
        found = [self.ssh(host, "sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat") for host in hosts.split(":")]
        return sum(map(int, found)) / 1e6

    def call(self, command: str, *arguments: str, text: str | None = None) -> str:
        """Call the test hosts' tool."""
        return run([sys.executable, "-m", "tools.hosts", command, "--fleet", FLEET, *arguments], text)


def cpu_of_children() -> float:
    """Return the seconds of CPU of all that was run and has ended: not the hosts', which are nobody's children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def booted(directory: Path) -> Iterator[Fleet]:
    """Give a fleet, and leave no host of it behind."""
    fleet = Fleet(directory)
    try:
        yield fleet
    finally:
        fleet.call("down", "--all")


def run(command: list[str], text: str | None = None) -> str:
    """Run a program to its end and return what it printed; its failure ends the benchmark."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, text=True, check=False, env=environment, timeout=LONGEST
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout
