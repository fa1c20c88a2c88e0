"""A client without credentials that keeps trying to access etcd, to detect a moment before authentication is enabled.

As a program on a host it probes the URLs of its arguments until ``/run/access-probe.stop`` exists.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

STOP = Path("/run/access-probe.stop")

#: Calls that etcd must deny without credentials: they add users and a key (`planted`), and read.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("auth/user/add", {"name": "evil", "password": "evil"}),
    ("kv/put", {"key": "cGxhbnRlZA==", "value": "eA=="}),
    ("kv/range", {"key": "AA==", "range_end": "AA=="}),
    ("auth/role/add", {"name": "evil"}),
]


def connect(url: str, timeout: float = 2.0) -> HTTPConnection:
    """Return a connection that accepts any certificate."""
    parts = urlsplit(url)
    if parts.scheme == "http":
        return HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    return HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout, context=ssl._create_unverified_context())


class AccessProbe:
    """Counts the calls that etcd denied, by URL, and records those that succeeded."""

    def __init__(self, *urls: str) -> None:
        """Send no call yet."""
        self.denied = dict.fromkeys(urls, 0)
        self.succeeded: list[str] = []

    def run(self, url: str, stopped: Callable[[], bool]) -> None:
        """Send calls in turn until ``stopped`` returns True."""
        for path, body in itertools.cycle(CALLS):
            if stopped():
                return
            try:
                with contextlib.closing(connect(url)) as connection:
                    connection.request("POST", f"/v3/{path}", json.dumps(body))
                    response = connection.getresponse()
                    body_text = response.read().decode(errors="replace")
            except (OSError, HTTPException):
                time.sleep(0.005)
                continue
            if response.status == 200:
                self.succeeded.append(f"{url} {path}: {body_text}")
            else:
                self.denied[url] += "user name is empty" in body_text

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Probe all URLs concurrently until the block ends."""
        stop = threading.Event()
        threads = [threading.Thread(target=self.run, args=(url, stop.is_set)) for url in self.denied]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)


def main() -> None:
    """Probe until the stop file exists; print the results."""
    probe = AccessProbe(*sys.argv[1:])
    for url in probe.denied:
        probe.run(url, STOP.exists)
    sys.stdout.write(json.dumps({"denied": probe.denied, "succeeded": probe.succeeded}))


if __name__ == "__main__":
    main()
