"""Show Prometheus what the processes of all apps on this host tell of themselves: ``prometheus-tornado-exporter ADDRESS PORT``.

The collection's runner answers on a socket beside that of each process that it serves, ``run/<process>.metrics`` of a slot, in
Prometheus' text format. This asks all of them whenever it is asked, and says of each number whose it is; it keeps nothing.

An app's user may put anything in the place of such a socket. It can lie about its own numbers; it can neither speak for another
app, nor give a metric another type, nor hold up or break the answer. What is refused is counted for the app.
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
"""Seconds that all processes of an app may take to answer, busy or not. Prometheus itself waits for ten."""

SIZE = 1 << 15
"""Bytes of an answer at most; the runner's has about 4,000."""

PROCESSES = 256
"""Processes of a slot at most, as the collection starts them."""

ASKED_AT_ONCE = 16
"""Processes of an app that are asked at the same time."""

KEPT = 0.1
"""Seconds for which an answer is given to others as well: to those who have waited for it."""

ASKING = 32
"""Connections that are answered at the same time."""

CONTENT_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format, https://prometheus.io/docs/instrumenting/exposition_formats/."""

BOUNDS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf")
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")


class Family(NamedTuple):
    """A metric as the runner has it: what follows its name in a sample, the labels included."""

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

KNOWN = {f"{name}{sample}": (name, sample) for name, family in FAMILIES.items() for sample in family.samples}
"""All samples that there are, by what a line begins with: nothing else that a process says is passed on."""

NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?(e[-+][0-9]{1,3})?")


class Process(NamedTuple):
    """A process: where it answers, its app, and the labels by which Prometheus is to know it."""

    path: Path
    app: str
    labels: str


class Answer(NamedTuple):
    """What a process has said: its numbers by sample, None if it has not answered; and whether something of it was refused."""

    numbers: dict[str, float] | None
    refused: bool


def find(srv: Path) -> Iterator[Process]:
    """Yield the processes of every slot, those included that are down: what they answer on is there until the slot goes.

    Their directory is the app's, and may have any number of names: it is not listed.
    """
    for home in sorted(srv.iterdir()):
        for slot in "ab" if re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", home.name) else "":
            with contextlib.suppress(OSError):  # the slot is cleared just now, or is none
                release = (home / "slots" / slot / "release").readlink().name
                run = home / "slots" / slot / "run"
                for path in (run / f"{number}.metrics" for number in range(PROCESSES)):
                    if re.fullmatch(r"[\w.-]{1,64}", release, re.ASCII) and _exists(path):
                        labels = {"app": home.name, "release": release, "slot": slot, "process": path.stem}
                        yield Process(path, home.name, ",".join(f'{name}="{value}"' for name, value in labels.items()))


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


async def ask(path: Path) -> Answer:
    """Return what a process says of itself.

    A link in the place of its socket is not followed: it would lead to what another app says.
    """
    silent = Answer(None, refused=False)
    try:
        opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return silent
    try:
        if not stat.S_ISSOCK(os.fstat(opened).st_mode):
            return Answer(None, refused=True)
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{opened}", limit=SIZE)
    except OSError:
        return silent
    finally:
        os.close(opened)
    answer = b""
    try:
        with contextlib.closing(writer):
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            while len(answer) <= SIZE and (part := await reader.read(SIZE)):
                answer += part
    except OSError:
        return Answer(None, refused=bool(answer))
    head, _blank, body = answer.partition(b"\r\n\r\n")
    if len(answer) > SIZE or not re.match(rb"HTTP/1\.[01] 200 ", head):
        return Answer(None, refused=bool(answer))
    return parse(body)


def parse(body: bytes) -> Answer:
    """Return the numbers of an answer: of samples that are known, the first of each, and finite."""
    numbers: dict[str, float] = {}
    refused = not body.isascii()
    for line in body.decode("ascii", "replace").split("\n"):
        if not line or line.startswith(("# HELP ", "# TYPE ")):  # which are known
            continue
        sample, _blank, text = line.rpartition(" ")
        number = float(text) if NUMBER.fullmatch(text) else math.nan
        if sample in KNOWN and math.isfinite(number) and sample not in numbers:
            numbers[sample] = number
        else:
            refused = True
    return Answer(numbers, refused)


def merge(answers: Iterable[tuple[Process, Answer]]) -> str:
    """Return one text of the numbers of all processes, each with its labels: a metric's samples have to stand together in it."""
    up: list[str] = []
    errors: Counter[str] = Counter()
    samples: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for process, answer in answers:
        up.append(f"tornado_up{{{process.labels}}} {int(answer.numbers is not None)}")
        errors[process.app] += answer.refused
        for sample, number in (answer.numbers or {}).items():
            name, rest = KNOWN[sample]
            suffix, _brace, own = rest.rstrip("}").partition("{")
            samples[name].append(f"{name}{suffix}{{{process.labels}{f',{own}' if own else ''}}} {number!r}")
    lines = [*_head("tornado_up", "gauge", "Whether the process answered."), *up]
    lines += _head("tornado_scrape_errors", "gauge", "Processes of the app whose answer was refused, or a part of it.")
    lines += [f'tornado_scrape_errors{{app="{app}"}} {number}' for app, number in errors.items()]
    for name, found in samples.items():
        lines += [*_head(name, FAMILIES[name].kind, FAMILIES[name].meaning), *found] if found else []
    return "".join(f"{line}\n" for line in lines)


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


async def collect(srv: Path) -> str:
    """Ask all apps at the same time."""
    apps: dict[str, list[Process]] = {}
    for process in find(srv):
        apps.setdefault(process.app, []).append(process)
    answers = await asyncio.gather(*map(ask_app, apps.values()))
    return merge(pair for pairs in answers for pair in pairs)


async def ask_app(processes: list[Process]) -> list[tuple[Process, Answer]]:
    """Ask the processes of an app, some at the same time; those that have not answered when its time is over are too late."""
    some = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask_one(process: Process) -> Answer:
        async with some:
            return await ask(process.path)

    tasks = [asyncio.create_task(ask_one(process)) for process in processes]
    _done, late = await asyncio.wait(tasks, timeout=TIMEOUT)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    answers = (Answer(None, refused=True) if task in late else task.result() for task in tasks)
    return list(zip(processes, answers, strict=True))


class Scrape:
    """What was found last, for all who ask at about the same time."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        """Return what the processes say, asking them at most once in `KEPT` seconds."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = asyncio.run(collect(SRV)).encode()
                self._until = time.monotonic() + KEPT
            return self._text


SCRAPE = Scrape()


class Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    timeout = 5

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path != "/metrics":
            self.send_error(404)
            return
        body = SCRAPE.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: it is asked four times a minute."""


class Server(ThreadingHTTPServer):
    """Answers some at a time; who comes beyond that is turned away."""

    def __init__(self, address: str, port: int) -> None:
        """Listen."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._places = threading.BoundedSemaphore(ASKING)
        super().__init__((address, port), Handler)

    def verify_request(self, *_: object) -> bool:
        """Take a place, if there is one."""
        return self._places.acquire(blocking=False)

    def process_request_thread(self, *request: object) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(*request)  # type: ignore[arg-type]
        finally:
            self._places.release()


if __name__ == "__main__":
    try:
        server = Server(sys.argv[1], int(sys.argv[2]))
    except OSError as error:
        sys.exit(f"cannot listen on {sys.argv[1]} port {sys.argv[2]}: {error.strerror}")
    server.serve_forever()
