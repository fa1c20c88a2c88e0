"""Access to booted test hosts: HTTP requests as a client, and Ansible runs as the operator."""

from __future__ import annotations

import asyncio
import copy
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import testinfra
import yaml
from cryptography import x509
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner
from tornado.httpclient import HTTPRequest
from tornado.netutil import DefaultExecutorResolver, OverrideResolver
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support.ansible_server import Run, Server

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

#: The scenarios' variables of app hosts.
VARIABLES = yaml.safe_load((ROOT / "molecule/shared/group_vars/app_hosts.yml").read_text())


#: Environment for runs whose output tests read: no colors, which Molecule enables on a terminal, and SSH connections that are
#: not shared with the tests.
PLAIN_ENV = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_SSH_EXTRA_ARGS": ""}

#: The directory on hosts to which :func:`copy_code` copies the collection's code.
CODE_PATH = "/root/code"

#: The group of all app hosts of a scenario.
APP_GROUP = "app_hosts"

#: The sample app as a plain Tornado program that listens on a port and does not handle signals. After ``drain`` its in-flight
#: requests fail, so the drain is longer than a long-poll.
PORT_APP: dict[str, Any] = {
    "source": {"path": str(ROOT / "files/sample_app")},
    "run": {"command": "python -m sample_app --port={port}"},
    "port": 8100,
    "domains": ["ported.test"],
    "health": {"path": "/healthz"},
    "processes": 2,
    "drain": 6,
}


@dataclass(frozen=True)
class Response:
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
    """A site of a host, requested by the domain ``name``, over TLS with ``https``.

    With the file ``ca`` the certificate must be valid for ``name`` and signed by that authority; otherwise any is accepted.
    """

    address: str
    name: str = ""
    https: bool = False
    ca: Path | None = None

    def get(self, path: str = "/", **headers: str) -> Response:
        """Send a GET request on a new connection; ``X_Real_IP="x"`` sets the header X-Real-IP."""
        return self.request("GET", path, headers=headers)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Response:
        """Send a request on a new connection."""
        connection = http.client.HTTPConnection(self.address)
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        try:
            connection.sock = self.connect()
            connection.request(method, path, body=body, headers={"Host": self.host, **named})
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, received, response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Return a connection for raw requests, with TLS if the site uses it."""
        plain = socket.create_connection((self.address, 443 if self.https else 80), timeout=60)
        return self.tls.wrap_socket(plain, server_hostname=self.host) if self.https else plain

    def certificate(self) -> x509.Certificate:
        """Return the certificate that the site serves."""
        with cast(ssl.SSLSocket, self.connect()) as connection:
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")

    def websocket(self, path: str, talk: Callable[[WebSocketClientConnection], Any], **headers: str) -> Any:
        """Open a websocket and return the result of the coroutine ``talk``; ``headers`` are as for `get`."""

        async def conversation() -> Any:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            url = f"{'wss' if self.https else 'ws'}://{self.host}{path}"
            request = HTTPRequest(url, headers=named, ssl_options=self.tls if self.https else None, connect_timeout=10)
            resolver = OverrideResolver(resolver=DefaultExecutorResolver(), mapping={self.host: self.address})
            connection = await websocket_connect(request, resolver=resolver)
            try:
                return await asyncio.wait_for(talk(connection), 20)
            finally:
                connection.close()

        return asyncio.run(conversation())

    @property
    def host(self) -> str:
        """The host name that clients send."""
        return self.name or self.address

    @property
    def tls(self) -> ssl.SSLContext:
        """The TLS context of a client of the site."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @property
    def client_address(self) -> str:
        """The controller's address in the network of the host."""
        with socket.create_connection((self.address, 22), timeout=5) as connection:
            return str(connection.getsockname()[0])


def hosts(*names: str) -> dict[str, Host]:
    """Return the named hosts of a scenario, or all app hosts, by name."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    selected = names or AnsibleRunner.get_runner(inventory).get_hosts("app_hosts")
    return {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory) for name in selected}


def address(host: Host) -> str:
    """Return the address that Ansible uses for the host."""
    variables: dict[str, Any] = host.ansible.get_variables()  # type: ignore[attr-defined]  # testinfra types its modules as one
    return str(variables["ansible_host"])


def python(host: Host, code: str) -> Any:
    """Run Python code on the host as root and return its output, parsed as JSON."""
    return json.loads(host.check_output("python3 -c %s", code))


def processes(host: Host, app: str) -> dict[str, int]:
    """Return the process IDs of an app's running processes by name."""
    lines = host.check_output("supervisorctl status | grep -E %s", f"^{app}-[ab][.:]").splitlines()
    rows = [line.split() for line in lines]
    return {row[0]: int(row[3].rstrip(",")) for row in rows if row[1] == "RUNNING"}


#: Prints files, processes and locks of an app that belong neither to its live release nor to a release kept for a rollback.
FIND_LEFTOVERS = """
import fcntl, json, pathlib, subprocess, sys
app = sys.argv[1]
home = pathlib.Path("/srv", app)
live = (home / "live").readlink().name
release = json.loads((home / "live/release/release.json").read_text())
workers = {name: worker["count"] for name, worker in release["workers"].items()}
count = release["processes"] + sum(workers.values())
releases = [path for path in (home / "releases").iterdir() if not path.name.startswith(".")]
run = {f"{number}.{kind}" for number in range(release["processes"]) for kind in ("sock", "pid", "starts", "metrics")}
run |= {f"{name}.{number}.starts" for name, total in workers.items() for number in range(total)}
left = [path for path in home.glob(".*") if path.name != ".lock"]
left += (home / "releases").glob(".*")
left += set((home / "environments").iterdir()) - {(path / "venv").resolve() for path in releases}
left += [path for path in (home / "slots").iterdir() if path.name != live]
left += [path for path in (home / "live/run").iterdir() if path.name not in run]
left += [path for path in pathlib.Path("/etc/supervisor/conf.d").glob(f"{app}-*") if path.name != f"{app}-{live}.conf"]
left += pathlib.Path("/etc").glob(".nginx*")
with (home / ".lock").open() as lock:
    left += ["a line in .lock"] * bool(lock.read())
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        left.append("the lock")
status = subprocess.run(["supervisorctl", "status"], stdout=subprocess.PIPE, text=True).stdout.splitlines()
names = {f"{app}-{live}", *(f"{app}-{live}.{name}" for name in workers)}
groups = [line.split() for line in status if line.startswith(f"{app}-")]
left += [" ".join(row) for row in groups if row[1] != "RUNNING" or row[0].partition(":")[0] not in names]
supervised = {int(row[3].rstrip(",")) for row in groups if row[1] == "RUNNING"}
processes = set()
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if f"TORNADO_APP={app}".encode() in (path / "environ").read_bytes().split(b"\\0"):
            processes.add(int(path.name))
    except OSError:
        continue
left += [f"process {pid}" for pid in processes ^ supervised]
left += [f"{len(supervised)} processes instead of {count}"] * (len(supervised) != count)
print(json.dumps(sorted(map(str, left))))
"""


def find_leftovers(host: Host, app: str) -> list[str]:
    """Return what a deploy left on the host that belongs neither to the live release nor to one kept for a rollback."""
    return list(json.loads(host.check_output("python3 -c %s %s", FIND_LEFTOVERS, app)))


def sample_app_source(directory: Path, **files: str) -> dict[str, Any]:
    """Copy the sample app, replace ``files`` (``web`` for web.py) in the copy, and return its ``source``."""
    copied = directory / "app"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(ROOT / "files/sample_app", copied)
    for name, text in files.items():
        path = copied / ("requirements.txt" if name == "requirements" else f"sample_app/{name}.py")
        path.write_text(text)
    return {"source": {"path": str(copied)}}


def apps(**changes: dict[str, Any]) -> dict[str, Any]:
    """Return the scenarios' ``tornado_apps`` with ``changes`` of the entries."""
    entries = copy.deepcopy(VARIABLES["tornado_apps"])
    for name, keys in changes.items():
        entries.setdefault(name, {}).update(keys)
    return {"tornado_apps": entries}


def run_site(name: str, directory: Path, variables: dict[str, Any], *options: str) -> tuple[int, str]:
    """Run site.yml on a host with ``variables`` over those of the scenarios; return its exit status and output.

    The variables are written to a file in ``directory``.
    """
    return run_playbook("site.yml", name, *extra_vars(directory, variables), *options)


def deploy(app: str, name: str, directory: Path, variables: dict[str, Any], *options: str) -> tuple[int, str]:
    """Run deploy.yml for an app on a host or group; otherwise like `run_site`."""
    return run_playbook("playbooks/deploy.yml", name, "-e", f"app={app}", *extra_vars(directory, variables), *options)


def expect_success(finished: tuple[int, str]) -> str:
    """Return the output of a finished playbook; fail with the end of the output if the playbook failed."""
    status, output = finished
    assert status == 0, "\n".join(output.splitlines()[-60:])
    return output


def extra_vars(directory: Path, variables: dict[str, Any]) -> list[str]:
    """Return the options that set ``variables`` over those of the scenarios, written to a file in ``directory``."""
    file = directory / f"{uuid.uuid4().hex}.yml"
    file.write_text(yaml.safe_dump(VARIABLES | variables, sort_keys=False))
    return ["-e", f"@{file}"]


def disable_pipelining(name: str, directory: Path) -> dict[str, Any]:
    """Return variables that disable pipelining on an app host, after verifying that modules have a terminal only there."""
    variables = {"ansible_pipelining": f"{{{{ inventory_hostname != '{name}' }}}}"}
    command = ["ansible", APP_GROUP, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "-m", "ansible.builtin.command", "-a", "tty"]
    command += extra_vars(directory, variables)
    settings = os.environ | PLAIN_ENV
    tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, env=settings).stdout
    assert re.findall(r"^(\S+) \| CHANGED .*\n/dev/pts/", tried, re.MULTILINE) == [name], tried
    return variables


def run_playbook(playbook: str, name: str, *options: str, seconds: float = 300) -> tuple[int, str]:
    """Run a playbook on a host or group of the scenario for at most ``seconds``; return its exit status and output."""
    with start_playbook(playbook, name, *options) as run:
        try:
            output, _ = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_playbook(run)
            raise
    return run.wait(), output


def copy_code(name: str, directory: Path) -> None:
    """Copy the collection's code to ``CODE`` on a host or group, where it runs without Ansible."""
    packed = directory / "code.tar"
    with tarfile.open(packed, "w") as archive:
        inside = f"{Path(CODE_PATH).name}/ansible_collections/funnel/tornado/plugins/module_utils"
        archive.add(ROOT / "plugins/module_utils", inside)
    command = ["ansible", name, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "-m", "ansible.builtin.unarchive"]
    unpack = [*command, "-a", f"src={packed} dest={Path(CODE_PATH).parent}"]
    subprocess.run(unpack, cwd=ROOT, check=True, capture_output=True, timeout=120)


def start_playbook(playbook: str, name: str, *options: str) -> Run:
    """Start a playbook on a host or group of the scenario in its own process group.

    The first run of each playbook in a test session uses the real command instead of the server.
    """
    typed = playbook not in _typed
    _typed.add(playbook)
    command = ["ansible-playbook", playbook, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--limit", name, *options]
    return ansible_server().start(command, ROOT, os.environ | PLAIN_ENV, typed=typed)


_typed: set[str] = set()


@cache
def ansible_server() -> Server:
    """Return the server process that runs Ansible for the tests."""
    return Server(ROOT, os.environ | PLAIN_ENV)


def kill_playbook(run: Run) -> None:
    """Kill a playbook and its processes immediately, like a power failure of the controller."""
    run.kill()
    run.communicate()


def eventually(condition: Callable[[], T | bool], seconds: float = 30) -> T:
    """Wait until ``condition`` returns a true value, and return it; fail after ``seconds``. Errors meanwhile are retried."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except (AssertionError, OSError, RuntimeError, http.client.HTTPException):  # RuntimeError: SSH is not available
            if time.monotonic() > deadline:
                raise
        else:
            if found or time.monotonic() > deadline:
                assert found
                return cast(T, found)
        time.sleep(0.2)
