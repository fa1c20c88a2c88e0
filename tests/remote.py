"""How a test talks to a booted host: over HTTP as any client, and over SSH as its operator."""

from __future__ import annotations

import asyncio
import copy
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection, websocket_connect

T = TypeVar("T")

ROOT = Path(__file__).parents[1]

#: What the scenarios set for their app hosts.
VARIABLES = yaml.safe_load((ROOT / "molecule/shared/group_vars/app_hosts.yml").read_text())


@dataclass(frozen=True)
class Answer:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Site:
    """One site of one host, as the network sees it."""

    address: str
    name: str = ""

    def get(self, path: str = "/", **headers: str) -> Answer:
        """GET ``path`` on a connection of its own; ``X_Real_IP="x"`` is the header X-Real-IP."""
        return self.request("GET", path, headers=headers)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        try:
            connection.request(method, path, body=body, headers={"Host": self.name or self.address, **named})
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, received, answer.read())
        finally:
            connection.close()

    def websocket(self, path: str, talk: Callable[[WebSocketClientConnection], Any]) -> Any:
        """Open a websocket, return what the coroutine ``talk`` makes of it."""

        async def conversation() -> Any:
            connection = await websocket_connect(f"ws://{self.address}{path}", connect_timeout=10)
            try:
                return await asyncio.wait_for(talk(connection), 20)
            finally:
                connection.close()

        return asyncio.run(conversation())

    @property
    def client_address(self) -> str:
        """The address that this machine has for the host."""
        with socket.create_connection((self.address, 22), timeout=5) as connection:
            return str(connection.getsockname()[0])


def address(host: Host) -> str:
    """Return the address at which Ansible reaches the host."""
    variables: dict[str, Any] = host.ansible.get_variables()  # type: ignore[attr-defined]  # testinfra types its modules as one
    return str(variables["ansible_host"])


def python(host: Host, code: str) -> Any:
    """Run ``code`` on the host as root and return what it prints, parsed as JSON."""
    return json.loads(host.check_output("python3 -c %s", code))


def processes(host: Host, app: str) -> dict[str, int]:
    """Return the process ids of an app's running processes by their names."""
    lines = host.check_output("supervisorctl status | grep -E %s", f"^{app}-[ab]:").splitlines()
    rows = [line.split() for line in lines]
    return {row[0]: int(row[3].rstrip(",")) for row in rows if row[1] == "RUNNING"}


def apps(**changes: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of the scenarios' app hosts with ``changes`` in the entries of their apps."""
    entries = copy.deepcopy(VARIABLES["tornado_apps"])
    for name, keys in changes.items():
        entries.setdefault(name, {}).update(keys)
    return {"tornado_apps": entries}


def run_site(name: str, directory: Path, variables: dict[str, Any], *options: str) -> tuple[int, str]:
    """Run site.yml on one host with ``variables`` over those of the scenarios; return its exit status and all it printed.

    ``directory`` takes the variables' file.
    """
    extra = directory / "variables.yml"
    extra.write_text(yaml.safe_dump(VARIABLES | variables, sort_keys=False))
    return run_playbook("site.yml", name, "-e", f"@{extra}", *options)


def run_playbook(playbook: str, name: str, *options: str) -> tuple[int, str]:
    """Run a playbook on one host of the scenario; return its exit status and all it printed."""
    command = ["ansible-playbook", playbook, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--limit", name, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def eventually(look: Callable[[], T | bool], seconds: float = 30) -> T:
    """Return the first true value of ``look``, which may fail meanwhile; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except (AssertionError, OSError, RuntimeError, http.client.HTTPException):  # RuntimeError: SSH does not answer
            if time.monotonic() > deadline:
                raise
        else:
            if found or time.monotonic() > deadline:
                assert found
                return cast(T, found)
        time.sleep(0.2)
