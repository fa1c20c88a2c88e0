"""An HTTP server that fails on demand, for tests of clients that retry."""

from __future__ import annotations

import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlakyServer(ThreadingHTTPServer):
    """Responds to a path with the given ``statuses`` in order, then with 200; ``request_times`` records each request by path.

    The status 0 closes the connection without a response.
    """

    def __init__(self) -> None:
        """Listen on all addresses: the hosts connect to the address of their bridge."""
        super().__init__(("", 0), FlakyHandler)
        self.statuses: defaultdict[str, list[int]] = defaultdict(list)
        self.request_times: defaultdict[str, list[float]] = defaultdict(list)

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect early."""


class FlakyHandler(BaseHTTPRequestHandler):
    """Responds with the requested path once its statuses are used up."""

    server: FlakyServer

    def do_GET(self) -> None:
        """Respond with the next status."""
        self.server.request_times[self.path].append(time.monotonic())
        remaining = self.server.statuses[self.path]
        status = remaining.pop(0) if remaining else 200
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
        """Ignore the body and respond like GET."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Log nothing."""
