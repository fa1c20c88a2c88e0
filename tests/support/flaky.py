"""A service that often fails, for what is to ask again."""

from __future__ import annotations

import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlakyServer(ThreadingHTTPServer):
    """A server that answers with the statuses it is told, by path, and then with 200; ``asked`` has the times it was asked.

    The status 0 hangs up.
    """

    def __init__(self) -> None:
        """Listen on all addresses of this machine: the hosts reach it by that of their bridge."""
        super().__init__(("", 0), FlakyHandler)
        self.statuses: defaultdict[str, list[int]] = defaultdict(list)
        self.asked: defaultdict[str, list[float]] = defaultdict(list)

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that are tested may have gone away."""


class FlakyHandler(BaseHTTPRequestHandler):
    """Answers a path with itself, once its statuses are used up."""

    server: FlakyServer

    def do_GET(self) -> None:
        """Fail, or answer."""
        self.server.request_times[self.path].append(time.monotonic())
        left = self.server.statuses[self.path]
        status = left.pop(0) if left else 200
        if status == 0:
            self.close_connection = True
            return
        body = f'{{"path": "{self.path}"}}'.encode() if status == 200 else b"<html>"
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Do the same, whatever the body is."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
