"""Starts the runner as a process and sends requests to its socket or port."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.sample_app import Response

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "roles/app/files/runner"
SAMPLE_APP = ROOT / "files/sample_app"
PATIENCE = 20.0  # timeout in seconds: much more than any step takes

TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

XHEADERS = {"X-Real-Ip": "192.0.2.1", "X-Forwarded-For": "192.0.2.2", "X-Scheme": "https", "X-Forwarded-Proto": "http"}

APP = """\
    import asyncio, logging, time, warnings
    from tornado.ioloop import IOLoop
    from tornado.web import Application, RequestHandler

    class Main(RequestHandler):
        def get(self):
            self.write("one")

    def make_app():
        return Application([("/", Main)])
"""


def write_app(directory: Path, text: str = APP, more: str = "") -> Path:
    """Write an application, ``web:make_app``, and return the directory to serve it from."""
    (directory / "web.py").write_text(textwrap.dedent(text) + textwrap.dedent(more))
    return directory


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a pid file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


class Connection(http.client.HTTPConnection):
    """A keep-alive connection to a Unix socket (a path) or a TCP port."""

    def __init__(self, address: Path | int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.auto_open = 0
        self.sock: socket.socket
        if isinstance(address, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(PATIENCE)
            self.sock.connect(str(address))
        else:
            self.sock = socket.create_connection(("127.0.0.1", address), PATIENCE)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")

    def send_request(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        self.request("GET" if body is None else "POST", path, body, headers or {})

    def read_response(self) -> Response:
        response = self.getresponse()
        return Response(response.status, response.headers, response.read())

    def fetch(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Response:
        self.send_request(path, body, headers)
        return self.read_response()

    def is_closed_by_server(self) -> bool:
        """Wait until the server closes the connection; return False if it sends data instead."""
        return self.sock.recv(1) == b""


class Process:
    """A runner process, and the lines that it has written to stderr."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str], **options: Any) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TORNADO")}
        self.popen = subprocess.Popen(
            [sys.executable, str(RUNNER), *arguments],
            cwd=cwd,
            env=clean | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.pid = self.popen.pid
        self.address: Path | int | None = None
        self.lines: list[str] = []
        self.updated = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self.updated:
                self.lines.append(line.rstrip("\n"))
                self.updated.notify_all()
        with self.updated:
            self.updated.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until that many lines match, and return the last match."""

        def matches() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self.updated:
            self.updated.wait_for(lambda: len(matches()) >= times or not self.reader.is_alive(), PATIENCE)
            assert len(matches()) >= times, f"no line {pattern!r} in:\n{self.log}"
            return matches()[times - 1]

    def connect(self, address: Path | None = None, tls: ssl.SSLContext | None = None) -> Connection:
        target = address or self.address
        assert target is not None
        return Connection(target, tls)

    def fetch(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Response:
        """Send a request on a connection of its own, and return the response."""
        with contextlib.closing(self.connect()) as connection:
            return connection.fetch(path, body, headers)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """Wait until the process exits, and return the exit status."""
        status = self.popen.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return status

    def stop(self) -> int:
        """Send SIGTERM, wait until the process exits, and return the exit status."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        assert self.popen.stderr is not None
        self.popen.stderr.close()


Serve = Callable[..., Process]
Eventually = Callable[[Callable[[], Any]], Any]


@contextlib.contextmanager
def load_generator(connect: Callable[[], Connection], clients: int = 16) -> Iterator[Callable[[], Counter[int]]]:
    """Send GET and POST requests on keep-alive connections; yield a function that counts the responses by process.

    Failed requests are not retried; that function raises their errors.
    """
    end = threading.Event()
    results: list[concurrent.futures.Future[Counter[int]]] = []

    def client() -> Counter[int]:
        counts: Counter[int] = Counter()
        connection = None
        while not end.is_set():
            connection = connection or connect()
            who = connection.fetch("/whoami")
            assert who.status == 200
            counts[who.json["pid"]] += 1
            if who.headers["Connection"] != "close":
                body = uuid.uuid4().hex.encode()
                echo = connection.fetch("/echo", body)
                assert (echo.status, echo.body) == (200, body)
                if echo.headers["Connection"] != "close":
                    continue
            connection.close()
            connection = None
        return counts

    def responses() -> Counter[int]:
        total = sum((result.result() for result in results), Counter())
        assert total.total() > 100
        return total

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results += [pool.submit(client) for _ in range(clients)]
        try:
            yield responses
        finally:
            end.set()
