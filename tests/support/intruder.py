"""Somebody without a password who tries to get into etcd all the time, to be there before it asks for one.

As a program, on a host, it does so at the URLs of its arguments until ``/run/intruder.stop`` is there.
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

STOP = Path("/run/intruder.stop")

#: What etcd permits nobody who has no password: to leave users and keys (`planted`), and to read.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("auth/user/add", {"name": "evil", "password": "evil"}),
    ("kv/put", {"key": "cGxhbnRlZA==", "value": "eA=="}),
    ("kv/range", {"key": "AA==", "range_end": "AA=="}),
    ("auth/role/add", {"name": "evil"}),
]


def connect(url: str, timeout: float = 2.0) -> HTTPConnection:
    """Return a connection that takes any certificate."""
    place = urlsplit(url)
    if place.scheme == "http":
        return HTTPConnection(place.hostname or "", place.port, timeout=timeout)
    return HTTPSConnection(place.hostname or "", place.port, timeout=timeout, context=ssl._create_unverified_context())


class Intruder:
    """How many of its calls were refused by etcd, by URL, and which were not."""

    def __init__(self, *urls: str) -> None:
        """Try nothing yet."""
        self.refused = dict.fromkeys(urls, 0)
        self.got_in: list[str] = []

    def attack(self, url: str, stopped: Callable[[], bool]) -> None:
        """Try one call after the other."""
        for path, body in itertools.cycle(CALLS):
            if stopped():
                return
            try:
                with contextlib.closing(connect(url)) as connection:
                    connection.request("POST", f"/v3/{path}", json.dumps(body))
                    response = connection.getresponse()
                    said = response.read().decode(errors="replace")
            except (OSError, HTTPException):
                time.sleep(0.005)
                continue
            if response.status == 200:
                self.got_in.append(f"{url} {path}: {said}")
            else:
                self.refused[url] += "user name is empty" in said

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Attack all URLs at once."""
        stop = threading.Event()
        threads = [threading.Thread(target=self.attack, args=(url, stop.is_set)) for url in self.refused]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)


def main() -> None:
    """Attack until told to stop; print what came of it."""
    intruder = Intruder(*sys.argv[1:])
    for url in intruder.refused:
        intruder.attack(url, STOP.exists)
    sys.stdout.write(json.dumps({"refused": intruder.refused, "got_in": intruder.got_in}))


if __name__ == "__main__":
    main()
