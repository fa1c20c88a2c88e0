"""A service that often fails, for what is to ask again."""

from __future__ import annotations

from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Flaky(ThreadingHTTPServer):
    """A server that fails as often as it is told to before it answers; ``asked`` counts requests by their paths."""

    def __init__(self) -> None:
        """Listen on all addresses of this machine: the hosts reach it by that of their bridge."""
        super().__init__(("", 0), FlakyHandler)
        self.failures: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()


class FlakyHandler(BaseHTTPRequestHandler):
    """Answers a path with itself, once its failures are used up."""

    server: Flaky

    def do_GET(self) -> None:
        """Fail, or answer."""
        self.server.asked[self.path] += 1
        failing = self.server.failures[self.path] > 0
        self.server.failures[self.path] -= failing
        body = f'{{"path": "{self.path}"}}'.encode()
        self.send_response(503 if failing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
