"""Runs MongoDB, etcd and a TCP forwarder as local processes for tests."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pymongo
from pymongo.errors import PyMongoError

from tools.packages import as_root, install, run

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/servers"
PATIENCE = 60.0  # timeout of a server's start in seconds, much more than it takes

#: The administrator of a `mongod` with authentication.
ADMIN = ("admin", "not-for-others")

FORWARD = """
import asyncio, sys

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def forward(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(forward, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


class Server:
    """A server process that can be stopped, restarted with its data, and paused."""

    def __init__(self, command: Sequence[str | Path], port: int, check_ready: Callable[[], object], log: Path) -> None:
        """Start the server with ``command``; ``check_ready`` raises an exception until it is ready."""
        self.command, self.port, self.check_ready, self.log = list(map(str, command)), port, check_ready, log
        self.start()

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.check_ready()
            except (OSError, URLError, PyMongoError):
                if time.monotonic() < deadline and self.process.poll() is None:
                    time.sleep(0.05)
                    continue
                self.kill()
                raise RuntimeError(f"{self.command[0]} does not start:\n{self.log.read_text()[-3000:]}") from None
            return

    def stop(self) -> None:
        """Stop the server gracefully."""
        self.terminate(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server."""
        self.terminate(signal.SIGKILL)

    def terminate(self, number: signal.Signals) -> None:
        """Terminate the server with a signal, if it runs."""
        self.resume()
        self.process.send_signal(number)
        self.process.wait(PATIENCE)

    def pause(self) -> None:
        """Suspend the server: the kernel accepts connections, but nothing responds."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the server."""
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def mongod(*, auth: bool = False) -> Iterator[Server]:
    """Run MongoDB on a free port of 127.0.0.1; with ``auth``, `ADMIN` is its only user."""
    install(["libcurl4"])
    program = Path(sysconfig.get_path("purelib"), "fiftyone/db/bin/mongod")
    port = free_port()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=500)
    with tempfile.TemporaryDirectory(prefix="mongod-") as directory, client:
        command: list[str | Path] = [program, "--bind_ip=127.0.0.1", f"--port={port}", f"--dbpath={directory}"]
        # A small cache, as the default is half of the memory.
        command += [f"--unixSocketPrefix={directory}", "--wiredTigerCacheSizeGB=0.25", "--quiet"]

        def check_ready() -> None:
            client.admin.command("ping")

        server = Server(command, port, check_ready, Path(directory, "log"))
        try:
            if auth:
                client.admin.command("createUser", ADMIN[0], pwd=ADMIN[1], roles=["root"])
                server.stop()
                server.command.append("--auth")
                server.start()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def etcd(certificate: str = "", key: str = "") -> Iterator[Server]:
    """Run etcd on a free port of 127.0.0.1, with TLS if certificate and key files are given."""
    port, peers, monitor = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="etcd-") as directory:
        client, peer = f"{'https' if certificate else 'http'}://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
        options = {
            "data-dir": directory,
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "listen-metrics-urls": f"http://127.0.0.1:{monitor}",
        }
        if certificate:
            options |= {"cert-file": certificate, "key-file": key}

        def check_ready() -> None:
            with urlopen(f"http://127.0.0.1:{monitor}/health", timeout=1) as response:
                assert response.status == 200

        command: list[str | Path] = [etcd_program(), *(f"--{name}={value}" for name, value in options.items())]
        server = Server(command, port, check_ready, Path(directory, "log"))
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def link(target: int) -> Iterator[Server]:
    """Forward a free port of 127.0.0.1 to another; while paused it behaves like a network that drops all packets."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="link-") as directory:

        def check_ready() -> None:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()

        server = Server([sys.executable, "-c", FORWARD, str(port), str(target)], port, check_ready, Path(directory, "log"))
        try:
            yield server
        finally:
            server.kill()


def etcd_program() -> Path:
    """Return the installed etcd, or unpack Debian's package without installing it, which would start the service."""
    if installed := shutil.which("etcd"):
        return Path(installed)
    program = CACHE / "usr/bin/etcd"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            Path(directory).chmod(0o755)
            to = "download etcd-server"
            run([*as_root(to), "apt-get", "--quiet=2", "update"], to)
            run(["sh", "-c", 'cd "$0" && apt-get --quiet=2 download etcd-server', directory], to)
            (package,) = Path(directory).glob("etcd-server_*.deb")
            run(["dpkg-deb", "--extract", str(package), directory], "unpack etcd-server")
            program.parent.mkdir(parents=True, exist_ok=True)
            Path(directory, "usr/bin/etcd").rename(program)
    return program


def free_port() -> int:
    """Return an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
