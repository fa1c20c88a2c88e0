"""Prometheus metrics of a process and its server, in the text format, on a Unix socket.

https://prometheus.io/docs/instrumenting/exposition_formats/. The format is written without ``prometheus_client``, which would
have to be installed in the application's environment.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tornado import netutil
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPServerRequest, ResponseStartLine

from .errors import RunnerError, reason
from .sockets import Listener

if TYPE_CHECKING:
    from .interface import AppServer

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Histogram buckets in seconds: the default of Prometheus' own client libraries."""

STATUSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
"""Status classes by index. none: the client disconnected, or the body was too large, before there was a response."""

LAG_INTERVAL = 1.0
"""Seconds between two measurements of the event loop lag."""


class Histogram:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        """Start with no observations."""
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add an observation."""
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def samples(self) -> dict[str, float]:
        """Return the samples of the text format, whose buckets are cumulative."""
        bounds = (*map(str, BUCKETS), "+Inf")
        buckets: dict[str, float] = {
            f'_bucket{{le="{bound}"}}': count for bound, count in zip(bounds, itertools.accumulate(self.counts), strict=True)
        }
        return buckets | {"_sum": self.sum, "_count": sum(self.counts)}


class Traffic:
    """The completed requests of a server: how many, by status class, and how long they took."""

    def __init__(self) -> None:
        """Start with no requests."""
        self.statuses: collections.Counter[int] = collections.Counter()
        self.durations = Histogram()

    def record(self, status: int, seconds: float) -> None:
        """Add a request; the status is 0 if there was no response."""
        self.statuses[status // 100] += 1
        self.durations.observe(seconds)


class Metrics:
    """Serves the metrics of a process on a Unix socket until the process exits.

    Process metrics have the names that Prometheus' own client libraries use. Labels for app and process are left to the
    scraper, which knows the owner of each socket.
    """

    def __init__(self, server: AppServer, path: Path) -> None:
        """Listen on a Unix socket; raise RunnerError if that fails."""
        self.server = server
        self.start_time = time.time()
        self.lag = Histogram()
        try:
            bound = netutil.bind_unix_socket(str(path), mode=0o660)
        except (OSError, ValueError) as error:
            problem = reason(error) if isinstance(error, OSError) else "it exists and is not a socket"
            raise RunnerError(f"cannot listen on {path} for --metrics: {problem}") from None
        HTTPServer(self.respond).add_socket(Listener(fileno=bound.detach()))
        self.schedule_lag_measurement()

    def schedule_lag_measurement(self) -> None:
        """Schedule the next measurement of the event loop lag."""
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_INTERVAL
        loop.call_at(due, self.measure_lag, due)

    def measure_lag(self, due: float) -> None:
        """Record how late the event loop runs this callback, which was due at ``due``."""
        self.lag.observe(max(asyncio.get_running_loop().time() - due, 0))
        self.schedule_lag_measurement()

    def respond(self, request: HTTPServerRequest) -> None:
        """Respond to a request for any path."""
        body = "".join(f"{line}\n" for line in self.lines()).encode()
        headers = HTTPHeaders({"Content-Type": "text/plain; version=0.0.4", "Content-Length": str(len(body))})
        connection = cast(HTTPConnection, request.connection)
        connection.write_headers(ResponseStartLine("", 200, "OK"), headers, body)
        connection.finish()

    def lines(self) -> Iterator[str]:
        """Yield the lines of the text format."""
        for kind, name, meaning, value in self.families():
            yield f"# HELP {name} {meaning}"
            yield f"# TYPE {name} {kind}"
            for suffix, number in (value if isinstance(value, dict) else {"": value}).items():
                yield f"{name}{suffix} {number}"

    def families(self) -> Iterator[tuple[str, str, str, float | dict[str, float]]]:
        """Yield type, name and description of each metric, and its value, or its values by the suffix of the name."""
        server, traffic = self.server, self.server.traffic
        statuses: dict[str, float] = {f'{{status="{name}"}}': traffic.statuses[number] for number, name in enumerate(STATUSES)}
        memory = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
        files = sum(1 for _file in Path("/proc/self/fd").iterdir()) - 1  # without the descriptor that lists them
        max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield "counter", "tornado_requests_total", "Completed requests by status class of the response.", statuses
        yield "gauge", "tornado_requests_in_progress", "In-flight requests: response not complete.", server.in_flight_requests
        yield (
            "histogram",
            "tornado_request_duration_seconds",
            "Time from the request headers to the end of the response.",
            traffic.durations.samples(),
        )
        yield "gauge", "tornado_websockets_open", "Open websockets.", server.open_websockets
        yield (
            "histogram",
            "tornado_event_loop_lag_seconds",
            "Delay of a callback in the event loop, measured once a second.",
            self.lag.samples(),
        )
        yield "counter", "process_cpu_seconds_total", "CPU time of the process, user and system.", time.process_time()
        yield "gauge", "process_resident_memory_bytes", "Resident memory size.", memory
        yield "gauge", "process_open_fds", "Open file descriptors.", files
        yield "gauge", "process_max_fds", "Maximum number of open file descriptors.", max_files
        yield "gauge", "process_start_time_seconds", "Start time of the process, in Unix time.", self.start_time
