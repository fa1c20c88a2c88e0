"""How a test talks to a booted host: over HTTP as any client, and over SSH as its operator."""

from __future__ import annotations

import asyncio
import copy
import http.client
import json
import os
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
from tornado.httpclient import HTTPRequest
from tornado.netutil import DefaultExecutorResolver, OverrideResolver
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support.ansible_server import Run, Server

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

#: What the scenarios set for their app hosts.
VARIABLES = yaml.safe_load((ROOT / "molecule/shared/group_vars/app_hosts.yml").read_text())


#: For what a program prints to be read by a test: Molecule asks for colours when it runs on a terminal. And the connections
#: of playbooks are their own, not those of the tests.
PLAIN = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_SSH_EXTRA_ARGS": ""}

#: Where :func:`copy_code` puts the collection's code on hosts.
CODE = "/root/code"

#: The group of the scenarios' app hosts.
ALL = "app_hosts"

#: The sample app as a program that knows of a port only, and nothing of being stopped: Tornado's own way of being started.
#: What it has in progress when ``drain`` is over is cut, so that is longer than a long-poll.
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
    """One site of one host, as the network sees it: by ``name``, over TLS with ``https``.

    A certificate has to be signed by that of the file ``ca``, and for ``name``; without one any will do.
    """

    address: str
    name: str = ""
    https: bool = False
    ca: Path | None = None

    def get(self, path: str = "/", **headers: str) -> Answer:
        """GET ``path`` on a connection of its own; ``X_Real_IP="x"`` is the header X-Real-IP."""
        return self.request("GET", path, headers=headers)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection(self.address)
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        try:
            connection.sock = self.connect()
            connection.request(method, path, body=body, headers={"Host": self.host, **named})
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, received, answer.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Return a connection, with its TLS if the site has some, to say anything on."""
        plain = socket.create_connection((self.address, 443 if self.https else 80), timeout=60)
        return self.tls.wrap_socket(plain, server_hostname=self.host) if self.https else plain

    def certificate(self) -> x509.Certificate:
        """Return the certificate that the site shows."""
        with cast(ssl.SSLSocket, self.connect()) as connection:
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")

    def websocket(self, path: str, talk: Callable[[WebSocketClientConnection], Any], **headers: str) -> Any:
        """Open a websocket, return what the coroutine ``talk`` makes of it; ``headers`` are as for `get`."""

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
        """What a client calls the site."""
        return self.name or self.address

    @property
    def tls(self) -> ssl.SSLContext:
        """What a client expects of the site's TLS."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @property
    def client_address(self) -> str:
        """The address that this machine has for the host."""
        with socket.create_connection((self.address, 22), timeout=5) as connection:
            return str(connection.getsockname()[0])


def hosts(*names: str) -> dict[str, Host]:
    """Return hosts of a scenario by their names, its app hosts if none is named, for tests that deal with several at once."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return {
        name: testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory) for name in names or ("debian12", "debian13")
    }


def address(host: Host) -> str:
    """Return the address at which Ansible reaches the host."""
    variables: dict[str, Any] = host.ansible.get_variables()  # type: ignore[attr-defined]  # testinfra types its modules as one
    return str(variables["ansible_host"])


def python(host: Host, code: str) -> Any:
    """Run ``code`` on the host as root and return what it prints, parsed as JSON."""
    return json.loads(host.check_output("python3 -c %s", code))


def processes(host: Host, app: str) -> dict[str, int]:
    """Return the process ids of an app's running processes by their names."""
    lines = host.check_output("supervisorctl status | grep -E %s", f"^{app}-[ab][.:]").splitlines()
    rows = [line.split() for line in lines]
    return {row[0]: int(row[3].rstrip(",")) for row in rows if row[1] == "RUNNING"}


#: Says, on a host, what of an app belongs neither to what is served nor to a release that may be served again.
FIND_LEFTOVERS = """
import fcntl, json, pathlib, subprocess, sys
app = sys.argv[1]
home = pathlib.Path("/srv", app)
live = (home / "live").readlink().name
count = json.loads((home / "live/release/release.json").read_text())["processes"]
releases = [path for path in (home / "releases").iterdir() if not path.name.startswith(".")]
run = {f"{number}.{kind}" for number in range(count) for kind in ("sock", "pid", "starts", "metrics")}
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
groups = [line.split() for line in status if line.startswith(f"{app}-")]
left += [" ".join(row) for row in groups if row[1] != "RUNNING" or not row[0].startswith(f"{app}-{live}:")]
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
    """Return what is on the host and belongs neither to what is served of an app nor to a release that may be served again."""
    return list(json.loads(host.check_output("python3 -c %s %s", FIND_LEFTOVERS, app)))


def sample_app_source(directory: Path, **files: str) -> dict[str, Any]:
    """Return the source of a copy of the sample app in which ``files`` (``web`` for web.py) are other ones."""
    copied = directory / "app"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(ROOT / "files/sample_app", copied)
    for name, text in files.items():
        path = copied / ("requirements.txt" if name == "requirements" else f"sample_app/{name}.py")
        path.write_text(text)
    return {"source": {"path": str(copied)}}


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
    return run_playbook("site.yml", name, *extra(directory, variables), *options)


def deploy(app: str, name: str, directory: Path, variables: dict[str, Any], *options: str) -> tuple[int, str]:
    """Run deploy.yml for one app; the rest is as for `run_site`, but that ``name`` may be a group."""
    return run_playbook("playbooks/deploy.yml", name, "-e", f"app={app}", *extra(directory, variables), *options)


def expect_success(finished: tuple[int, str]) -> str:
    """Return what a playbook that has to succeed has printed."""
    status, output = finished
    assert status == 0, output[-3000:]
    return output


def extra(directory: Path, variables: dict[str, Any]) -> list[str]:
    """Return the options that set ``variables`` over those of the scenarios; ``directory`` takes their file."""
    file = directory / f"{uuid.uuid4().hex}.yml"
    file.write_text(yaml.safe_dump(VARIABLES | variables, sort_keys=False))
    return ["-e", f"@{file}"]


def run_playbook(playbook: str, name: str, *options: str, seconds: float = 300) -> tuple[int, str]:
    """Run a playbook on a host or a group of the scenario, for ``seconds`` at most; return its exit status and all it printed."""
    with start_playbook(playbook, name, *options) as run:
        try:
            output, _ = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_playbook(run)
            raise
    return run.wait(), output


def copy_code(name: str, directory: Path) -> None:
    """Put the collection's code on a host or a group at ``CODE``, to be run without Ansible, of which it needs nothing."""
    packed = directory / "code.tar"
    with tarfile.open(packed, "w") as archive:
        inside = f"{Path(CODE).name}/ansible_collections/funnel/tornado/plugins/module_utils"
        archive.add(ROOT / "plugins/module_utils", inside)
    command = ["ansible", name, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "-m", "ansible.builtin.unarchive"]
    unpack = [*command, "-a", f"src={packed} dest={Path(CODE).parent}"]
    subprocess.run(unpack, cwd=ROOT, check=True, capture_output=True, timeout=120)


def start_playbook(playbook: str, name: str, *options: str) -> Run:
    """Start a playbook on a host or a group of the scenario, in a process group of its own.

    The first run of each playbook in a session of tests is that of the command as users type it.
    """
    typed = playbook not in _typed
    _typed.add(playbook)
    command = ["ansible-playbook", playbook, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--limit", name, *options]
    return ansible_server().start(command, ROOT, os.environ | PLAIN, typed=typed)


_typed: set[str] = set()


@cache
def ansible_server() -> Server:
    """Return the process that runs Ansible for the tests."""
    return Server(ROOT, os.environ | PLAIN)


def kill_playbook(run: Run) -> None:
    """End a playbook as a power cut does: at once, and nothing of it is left to say goodbye to the hosts."""
    run.kill()
    run.communicate()


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
