"""The hosts under test: their power, commands as root, and playbooks of an operator."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.ansible_server import Run, Server
from tools import hosts as hosts_tool
from tools.fleet import CLONE as ROOT
from tools.fleet import Fleet

#: Maximum duration of a playbook in seconds, and of the first one, which installs the packages.
TIMEOUT = 240.0
PROVISIONING = 900.0

#: The last part of the floating IP; the addresses of hosts follow it.
FLOATING_IP = 10

#: Plain output, and a connection per task, as a host that loses power would leave a persistent connection hanging.
ENVIRONMENT = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_SSH_EXTRA_ARGS": ""}


@dataclass(frozen=True)
class Command:
    """A playbook with its options and the desired apps."""

    playbook: str
    apps: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the command as an operator types it, without the inventory."""
        return " ".join([self.playbook, *(f"-e {name}={value}" for name, value in self.options.items())])


class Host:
    """A booted host."""

    def __init__(self, fleet: str, name: str) -> None:
        """Find the address of the host."""
        self.fleet_name, self.fleet, self.name = fleet, Fleet(fleet), name
        self.address = self.fleet.hosts[name].address

    def power(self, command: str) -> None:
        """Run the command ``up``, ``off`` or ``reboot`` of ``tools.hosts``."""
        run_tool(self.fleet_name, command, self.name)

    def run(self, *command: str, seconds: float = 60) -> str:
        """Run a command as root and return its output. Raises `OSError` if it fails or the host does not answer."""
        argv = self.fleet.ssh_command(self.fleet.hosts[self.name], shlex.join(command))
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=seconds, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise OSError(str(error)) from error
        if done.returncode != 0:
            raise OSError(f"{self.name}: {command[0]}: exit status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def python(self, code: str, *arguments: str) -> Any:
        """Run Python code as root and return its output, parsed as JSON."""
        return json.loads(self.run("python3", "-c", code, *arguments))


@dataclass(frozen=True)
class Entrance:
    """An address at which clients reach the apps, the hosts that answer there, and those that requests pass on their way."""

    name: str
    address: str
    hosts: Sequence[Host]
    balancers: Sequence[Host] = ()


class Controller:
    """Boots the hosts and runs the playbooks of an operator, the first of which provisions the hosts."""

    def __init__(self, fleet: str, release: str, directory: Path, count: int = 1, balancers: int = 0) -> None:
        """Boot the app hosts and load balancers; ``directory`` receives the inventory and the variables of each run."""
        self.fleet, self.directory = fleet, directory
        groups = {
            "app_hosts": [f"app{number}" for number in range(1, count + 1)],
            "balancers": [f"lb{number}" for number in range(1, balancers + 1)],
        }
        run_tool(fleet, "up", *(f"{name}:{release}" for names in groups.values() for name in names))
        self.hosts, self.balancers = ([Host(fleet, name) for name in names] for names in groups.values())
        self.inventory = directory / "inventory.yml"
        found: Any = hosts_tool.inventory(Fleet(fleet), "app_hosts")
        variables = found["_meta"]["hostvars"]
        inventory = {group: {"hosts": {name: variables[name] for name in names}} for group, names in groups.items() if names}
        self.entrances = [Entrance(host.name, host.address, [host]) for host in self.hosts]
        if balancers:
            address = f"{self.hosts[0].address.rpartition('.')[0]}.{FLOATING_IP}"
            inventory["balancers"]["vars"] = {"keepalived_address": f"{address}/24"}
            self.entrances = [Entrance("floating IP", address, self.hosts, self.balancers)]
        self.inventory.write_text(yaml.safe_dump(inventory))
        self.environment = os.environ | ENVIRONMENT
        self.server = Server(ROOT, self.environment)
        self.runs = 0

    @property
    def addresses(self) -> list[str]:
        """The addresses that serve the apps: those of the app hosts, and the floating IP."""
        return [*dict.fromkeys([host.address for host in self.hosts] + [entrance.address for entrance in self.entrances])]

    def remove(self) -> None:
        """Remove the hosts."""
        run_tool(self.fleet, "down", "--all")

    def start(self, command: Command) -> Run:
        """Start a playbook."""
        self.runs += 1
        variables = self.directory / f"variables-{self.runs}.yml"
        variables.write_text(yaml.safe_dump({"limits_open_files": 16384, "tornado_apps": command.apps}))
        argv = ["ansible-playbook", command.playbook, "-i", str(self.inventory), "-e", f"@{variables}"]
        for name, value in command.options.items():
            argv += ["-e", f"{name}={value}"]
        return self.server.start(argv, ROOT, self.environment)


def run_tool(fleet: str, command: str, *arguments: str) -> None:
    """Run a command of ``tools.hosts``."""
    subprocess.run(
        [sys.executable, "-m", "tools.hosts", command, "--fleet", fleet, *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=200,
    )


def finish(run: Run, seconds: float = TIMEOUT) -> tuple[int, str]:
    """Wait for the end of a playbook; return its exit status and output."""
    try:
        output, _ = run.communicate(seconds)
    except subprocess.TimeoutExpired:
        run.kill()
        output, _ = run.communicate(30)
        return run.wait(30), f"{output}\nkilled after {seconds:g} s"
    return run.wait(30), output


def now() -> float:
    """Return the time, which the hosts share with this machine."""
    return time.time()
