"""Show Prometheus what the processes of all apps on this host tell of themselves: ``prometheus-tornado-exporter ADDRESS PORT``.

The collection's runner answers on a socket beside that of each process that it serves, ``run/<process>.metrics`` of a slot, in
Prometheus' text format. This asks all of them whenever it is asked, and says of each number whose it is; it keeps nothing.

An app's user may put anything in the place of such a socket. It can lie about its own app; it can neither speak for another
one, nor hold up or break the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

SRV = Path("/srv")

TIMEOUT = 3.0
"""Seconds that a process may take to answer, which its event loop may have to come to. Prometheus itself waits for ten."""

SIZE = 1 << 20
"""Bytes of an answer at most; the runner's has about 4,000."""

CONTENT_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format, https://prometheus.io/docs/instrumenting/exposition_formats/."""

HEAD = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) .*")
SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{((?:le|status)="[^"\\]*")\})?'
    r" ([0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?)"
)  # no more of the format than the runner writes


class Process(NamedTuple):
    """A process: where it answers, and the labels by which Prometheus is to know it."""

    path: Path
    labels: str


def find(srv: Path) -> Iterator[Process]:
    """Yield the processes of every slot, those included that are down: what they answer on is there until the slot goes."""
    for home in sorted(srv.iterdir()):
        for slot in "ab":
            with contextlib.suppress(OSError):  # the slot is cleared just now, or is none
                release = (home / "slots" / slot / "release").readlink().name
                for path in sorted((home / "slots" / slot / "run").iterdir()):
                    if re.fullmatch(r"[0-9]{1,3}\.metrics", path.name):
                        labels = {"app": home.name, "release": release, "slot": slot, "process": path.stem}
                        yield Process(path, ",".join(f'{name}="{value}"' for name, value in labels.items()))


async def ask(path: Path) -> str | None:
    """Return what a process says of itself; None if it says nothing in time."""
    with contextlib.suppress(OSError, ValueError):
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(path)
            with contextlib.closing(writer):
                writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = b""
                while part := await reader.read(SIZE):
                    answer += part
                    if len(answer) > SIZE:
                        return None
        head, _blank, body = answer.partition(b"\r\n\r\n")
        return body.decode() if re.match(rb"HTTP/1\.[01] 200 ", head) else None
    return None


def merge(answers: Iterable[tuple[str, str | None]]) -> str:
    """Return one text of those of all processes, each with its labels: a metric's samples have to stand together in it."""
    families = {"tornado_up": {"HELP": "# HELP tornado_up Whether the process answered.", "TYPE": "# TYPE tornado_up gauge"}}
    for labels, text in answers:
        up = f"tornado_up{{{labels}}}"
        families["tornado_up"][up] = f"{up} {int(text is not None)}"
        family: dict[str, str] = {}
        for line in (text or "").split("\n"):
            if head := HEAD.fullmatch(line):
                family = families.setdefault(head[2], {})
                family.setdefault(head[1], line)
            elif sample := SAMPLE.fullmatch(line):
                name, own, value = sample.groups()
                series = f"{name}{{{labels}{f',{own}' if own else ''}}}"
                family.setdefault(series, f"{series} {value}")
    return "".join(f"{line}\n" for family in families.values() for line in family.values())


async def collect(srv: Path) -> str:
    """Ask all processes at the same time."""
    processes = list(find(srv))
    texts = await asyncio.gather(*(ask(process.path) for process in processes))
    return merge(zip((process.labels for process in processes), texts, strict=True))


class Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    timeout = 10

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path != "/metrics":
            self.send_error(404)
            return
        body = asyncio.run(collect(SRV)).encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: it is asked four times a minute."""


class Server(ThreadingHTTPServer):
    """Answers some at a time."""

    def __init__(self, address: str, port: int) -> None:
        """Listen."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)


if __name__ == "__main__":
    try:
        server = Server(sys.argv[1], int(sys.argv[2]))
    except OSError as error:
        sys.exit(f"cannot listen on {sys.argv[1]} port {sys.argv[2]}: {error.strerror}")
    server.serve_forever()
