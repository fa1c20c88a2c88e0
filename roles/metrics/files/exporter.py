"""Export the metrics of the processes of all apps on this host to Prometheus: ``prometheus-tornado-exporter ADDRESS PORT``.

The collection's runner serves the metrics of each process in the Prometheus text format on a socket, ``run/<process>.metrics`` of
a slot. The exporter scrapes all sockets on each request and labels the samples; it stores nothing.

The user of an app can replace a socket. So an app can lie about its own values, but it can neither export samples of another app,
nor change the type of a metric, nor delay or corrupt the output. Rejected responses are counted for each app.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

SRV = Path("/srv")

TIMEOUT = 3.0
"""Maximum seconds for all processes of an app to respond; Prometheus itself waits for ten."""

MAX_SIZE = 1 << 15
"""Maximum size of a response in bytes; that of the runner has about 4,000."""

MAX_PROCESSES = 256
"""Maximum number of processes in a slot, which the collection enforces."""

CONCURRENT_SCRAPES = 16
"""Processes of an app that are scraped concurrently."""

CACHE_SECONDS = 0.1
"""Seconds for which a response is reused for concurrent requests."""

MAX_CONNECTIONS = 32
"""Maximum number of concurrent connections."""

CONTENT_TYPE = "text/plain; version=0.0.4"
"""The Prometheus text format, https://prometheus.io/docs/instrumenting/exposition_formats/."""

BOUNDS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf")
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")


class Family(NamedTuple):
    """A metric of the runner; ``samples`` are the possible suffixes of its name, with labels."""

    kind: str
    meaning: str
    samples: frozenset[str] = frozenset({""})


HISTOGRAM = frozenset({"_sum", "_count", *(f'_bucket{{le="{bound}"}}' for bound in BOUNDS)})

FAMILIES = {
    "tornado_requests_total": Family(
        "counter",
        "Completed requests by status class of the response.",
        frozenset(f'{{status="{status}"}}' for status in STATUSES),
    ),
    "tornado_requests_in_progress": Family("gauge", "In-flight requests: response not complete."),
    "tornado_request_duration_seconds": Family(
        "histogram", "Time from the request headers to the end of the response.", HISTOGRAM
    ),
    "tornado_websockets_open": Family("gauge", "Open websockets."),
    "tornado_event_loop_lag_seconds": Family(
        "histogram", "Delay of a callback in the event loop, measured once a second.", HISTOGRAM
    ),
    "process_cpu_seconds_total": Family("counter", "CPU time of the process, user and system."),
    "process_resident_memory_bytes": Family("gauge", "Resident memory size."),
    "process_open_fds": Family("gauge", "Open file descriptors."),
    "process_max_fds": Family("gauge", "Maximum number of open file descriptors."),
    "process_start_time_seconds": Family("gauge", "Start time of the process, in Unix time."),
}

SAMPLES = {f"{name}{sample}": (name, sample) for name, family in FAMILIES.items() for sample in family.samples}
"""All valid samples by the start of their line; others are rejected."""

NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?(e[-+][0-9]{1,3})?")


class Process(NamedTuple):
    """A process: the path of its socket, its app, and its labels."""

    path: Path
    app: str
    labels: str


class Response(NamedTuple):
    """The values of a process by sample, None without a valid response, and whether anything was rejected."""

    values: dict[str, float] | None
    rejected: bool


def find(srv: Path) -> Iterator[Process]:
    """Yield the processes of every slot, including those that are down, whose sockets remain.

    The app owns the directory of the sockets and can create any number of files, so the directory is not listed.
    """
    for home in sorted(srv.iterdir()):
        for slot in "ab" if re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", home.name) else "":
            with contextlib.suppress(OSError):  # no slot, or one that is being cleared
                release = (home / "slots" / slot / "release").readlink().name
                run = home / "slots" / slot / "run"
                for path in (run / f"{number}.metrics" for number in range(MAX_PROCESSES)):
                    if re.fullmatch(r"[\w.-]{1,64}", release, re.ASCII) and _exists(path):
                        labels = {"app": home.name, "release": release, "slot": slot, "process": path.stem}
                        yield Process(path, home.name, ",".join(f'{name}="{value}"' for name, value in labels.items()))


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


async def scrape(path: Path) -> Response:
    """Return the response of a process.

    A link in place of the socket is not followed, because it could point to that of another app.
    """
    silent = Response(None, rejected=False)
    try:
        opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return silent
    try:
        if not stat.S_ISSOCK(os.fstat(opened).st_mode):
            return Response(None, rejected=True)
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{opened}", limit=MAX_SIZE)
    except OSError:
        return silent
    finally:
        os.close(opened)
    response = b""
    try:
        with contextlib.closing(writer):
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            while len(response) <= MAX_SIZE and (part := await reader.read(MAX_SIZE)):
                response += part
    except OSError:
        return Response(None, rejected=bool(response))
    head, _blank, body = response.partition(b"\r\n\r\n")
    if len(response) > MAX_SIZE or not re.match(rb"HTTP/1\.[01] 200 ", head):
        return Response(None, rejected=bool(response))
    return parse(body)


def parse(body: bytes) -> Response:
    """Return the values in a response: the first finite one of each valid sample."""
    values: dict[str, float] = {}
    rejected = not body.isascii()
    for line in body.decode("ascii", "replace").split("\n"):
        if not line or line.startswith(("# HELP ", "# TYPE ")):
            continue
        sample, _blank, text = line.rpartition(" ")
        number = float(text) if NUMBER.fullmatch(text) else math.nan
        if sample in SAMPLES and math.isfinite(number) and sample not in values:
            values[sample] = number
        else:
            rejected = True
    return Response(values, rejected)


def merge(responses: Iterable[tuple[Process, Response]]) -> str:
    """Return the labeled samples of all processes in the text format, grouped by metric."""
    up: list[str] = []
    errors: Counter[str] = Counter()
    samples: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for process, response in responses:
        up.append(f"tornado_up{{{process.labels}}} {int(response.values is not None)}")
        errors[process.app] += response.rejected
        for sample, value in (response.values or {}).items():
            name, rest = SAMPLES[sample]
            suffix, _brace, own = rest.rstrip("}").partition("{")
            samples[name].append(f"{name}{suffix}{{{process.labels}{f',{own}' if own else ''}}} {value!r}")
    lines = [*_head("tornado_up", "gauge", "Whether the process responded."), *up]
    lines += _head("tornado_scrape_errors", "gauge", "Processes of the app whose response was rejected, at least in part.")
    lines += [f'tornado_scrape_errors{{app="{app}"}} {number}' for app, number in errors.items()]
    for name, found in samples.items():
        lines += [*_head(name, FAMILIES[name].kind, FAMILIES[name].meaning), *found] if found else []
    return "".join(f"{line}\n" for line in lines)


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


async def collect(srv: Path) -> str:
    """Scrape all apps concurrently."""
    apps: dict[str, list[Process]] = {}
    for process in find(srv):
        apps.setdefault(process.app, []).append(process)
    responses = await asyncio.gather(*map(scrape_app, apps.values()))
    return merge(pair for pairs in responses for pair in pairs)


async def scrape_app(processes: list[Process]) -> list[tuple[Process, Response]]:
    """Scrape the processes of an app with limited concurrency; cancel those that do not respond within `TIMEOUT`."""
    semaphore = asyncio.Semaphore(CONCURRENT_SCRAPES)

    async def scrape_process(process: Process) -> Response:
        async with semaphore:
            return await scrape(process.path)

    tasks = [asyncio.create_task(scrape_process(process)) for process in processes]
    _done, late = await asyncio.wait(tasks, timeout=TIMEOUT)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    responses = (Response(None, rejected=True) if task in late else task.result() for task in tasks)
    return list(zip(processes, responses, strict=True))


class Cache:
    """The last response, shared by concurrent requests."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        """Return the metrics, scraping the processes at most once in `CACHE_SECONDS`."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = asyncio.run(collect(SRV)).encode()
                self._until = time.monotonic() + CACHE_SECONDS
            return self._text


CACHE = Cache()


class Handler(BaseHTTPRequestHandler):
    """Handler of GET /metrics."""

    timeout = 5

    def do_GET(self) -> None:
        """Respond with the metrics."""
        if self.path != "/metrics":
            self.send_error(404)
            return
        body = CACHE.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: Prometheus sends several requests a minute."""


class Server(ThreadingHTTPServer):
    """HTTP server with a limited number of connections; further ones are closed."""

    def __init__(self, address: str, port: int) -> None:
        """Listen."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((address, port), Handler)

    def verify_request(self, *_: object) -> bool:
        """Accept the connection if the limit permits."""
        return self._connections.acquire(blocking=False)

    def process_request_thread(self, *request: object) -> None:
        """Handle the request and release the connection."""
        try:
            super().process_request_thread(*request)  # type: ignore[arg-type]
        finally:
            self._connections.release()


if __name__ == "__main__":
    try:
        server = Server(sys.argv[1], int(sys.argv[2]))
    except OSError as error:
        sys.exit(f"cannot listen on {sys.argv[1]} port {sys.argv[2]}: {error.strerror}")
    server.serve_forever()
