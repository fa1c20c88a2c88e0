"""Runs the sample app as a process: ``python -m sample_app``."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2] / "files/sample_app"
PATIENCE = 30.0  # timeout in seconds, much more than any step takes


class Response(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class App:
    """A process of the app, and the lines that it has written to stderr."""

    def __init__(self, *arguments: str, cwd: Path = ROOT, **environment: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-B", "-m", "sample_app", "--port=0", *arguments],
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "TORNADO_APP": "sample", **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.popen.pid
        self.lines: list[str] = []
        self.updated = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.port = int(self.wait_for(r" serving https?://.*:(\d+)/")[1])

    def read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self.updated:
                self.lines.append(line.rstrip("\n"))
                self.updated.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until that many lines match, and return the last match."""

        def matches() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self.updated:
            self.updated.wait_for(lambda: len(matches()) >= times or not self.reader.is_alive(), PATIENCE)
            assert len(matches()) >= times, "\n".join(self.lines)
            return matches()[times - 1]

    def fetch(self, path: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None) -> Response:
        """Send a request on a new connection; a body other than bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
            kind = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method or ("GET" if body is None else "POST"), path, sent, kind | (headers or {}))
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())

    def kill(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)
        self.reader.join(PATIENCE)
        assert self.popen.stderr is not None
        self.popen.stderr.close()
