"""A real HTTP server that records the notifications that it gets."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Webhook(BaseHTTPRequestHandler):
    """Records requests; the path is the status code of the answer, or ``/hang`` for none."""

    server: Hooks

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((self.path, dict(self.headers), body))
        if self.path.startswith("/hang"):
            self.server.released.wait(20)
        self.send_response(int(self.path[1:4]) if self.path[1:4].isdigit() else 200)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Be quiet."""


class Hooks(ThreadingHTTPServer):
    """A real HTTP server that records what it gets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Webhook)
        self.received: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def __enter__(self) -> Self:
        """Serve until the context ends."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    @property
    def events(self) -> list[str]:
        return [body["event"] for _path, _headers, body in self.received]
