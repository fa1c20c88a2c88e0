"""Runs the runner as its users do: a process of its own, asked over its socket or port."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.sample_app import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "roles/app/files/runner"
SAMPLE_APP = ROOT / "files/sample_app"
PATIENCE = 20.0  # seconds until a test that waits gives up: much more than anything takes


class Connection(http.client.HTTPConnection):
    """A kept-alive connection to a unix socket (a path) or a TCP port."""

    def __init__(self, place: Path | int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.auto_open = 0
        self.sock: socket.socket
        if isinstance(place, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(PATIENCE)
            self.sock.connect(str(place))
        else:
            self.sock = socket.create_connection(("127.0.0.1", place), PATIENCE)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")

    def send_request(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        self.request("GET" if body is None else "POST", path, body, headers or {})

    def answer(self) -> Answer:
        response = self.getresponse()
        return Answer(response.status, response.headers, response.read())

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        self.send_request(path, body, headers)
        return self.answer()

    def is_closed_by_server(self) -> bool:
        """Wait for the end of the connection; False if something else comes."""
        return self.sock.recv(1) == b""


class Process:
    """A runner, and what it has said on stderr."""

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
        self.place: Path | int | None = None
        self.lines: list[str] = []
        self.said = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self.said:
                self.lines.append(line.rstrip("\n"))
                self.said.notify_all()
        with self.said:
            self.said.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until so many lines match, and return the last match."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self.said:
            self.said.wait_for(lambda: len(found()) >= times or not self.reader.is_alive(), PATIENCE)
            assert len(found()) >= times, f"no line {pattern!r} in:\n{self.log}"
            return found()[times - 1]

    def connect(self, place: Path | None = None, tls: ssl.SSLContext | None = None) -> Connection:
        where = place or self.place
        assert where is not None
        return Connection(where, tls)

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Ask on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            return connection.ask(path, body, headers)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def status(self) -> int:
        """Wait for the end, and return the exit status."""
        status = self.popen.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return status

    def stop(self) -> int:
        self.signal()
        return self.status()

    def kill(self) -> None:
        """End the process and its children, whatever they are at."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.status()
        assert self.popen.stderr is not None
        self.popen.stderr.close()


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Return a function that starts a runner of the sample app, or of another target, and leaves it to itself."""
    with contextlib.ExitStack() as processes:

        def spawn(
            *arguments: str | Path,
            target: str = "sample_app.web:make_app",
            cwd: Path = SAMPLE_APP,
            env: dict[str, str] | None = None,
            **options: Any,
        ) -> Process:
            process = Process([target, *map(str, arguments)], cwd, env or {}, **options)
            processes.callback(process.kill)
            return process

        yield spawn


@pytest.fixture
def serve(spawn: Callable[..., Process]) -> Callable[..., Process]:
    """Return a function that starts a runner (on a free port unless told otherwise) and waits until it serves."""

    def serve(*arguments: str | Path, **options: Any) -> Process:
        if "--socket" not in arguments and "--port" not in arguments:
            arguments += ("--port", "0")
        process = spawn(*arguments, **options)
        place = process.wait_for(r" serving .* on (?:unix:(\S+)|https?://\S+:(\d+)) ")
        process.place = int(place[2]) if place[2] else Path(place[1])
        return process

    return serve


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Return a function that waits until what it is given returns something true."""

    def eventually(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)
        return result

    return eventually
