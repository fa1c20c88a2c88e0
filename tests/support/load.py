"""Load generator that counts the failures its clients notice: ``python -m tests.support.load ADDRESS`` until Ctrl-C.

Unlike HTTP libraries it retries and hides no failure, except in the case in which any client may: the server closes a
keep-alive connection while the next request is in flight (RFC 9112, 9.3.1). These retries are counted separately. Tests
use `Load`, which runs the generator in its own process, so that the tests do not slow it down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tornado.httpclient import HTTPError, HTTPRequest
from tornado.netutil import DefaultExecutorResolver, OverrideResolver
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

#: Close codes that ask a websocket client to reconnect: going away, and service restart (RFC 6455, 7.4.1).
RECONNECT = ("1001", "1012")

#: The close code counted for a websocket that ends without a close frame.
BROKEN = "broken"

#: Maximum number of failures whose reasons are shown.
SHOWN_REASONS = 5

#: Response time in seconds from which a response counts as delayed.
SLOW = 1.0


class Latency(NamedTuple):
    """Percentiles in milliseconds; 0 when there was no request."""

    p50: float
    p99: float
    highest: float


@dataclass
class Result:
    """The results of all clients.

    ``requests`` counts all requests, including long-polls; ``failed`` counts those without a 2xx response. ``closes``
    counts websockets by close code. ``exchanges`` has the start (``time.time()``) and duration in seconds of each successful
    request except long-polls, ``failures`` the start, duration and reason of each failed one. ``notes`` are the bodies of
    successful POSTs.
    """

    requests: int = 0
    repeated: int = 0
    reconnects: int = 0
    lost: int = 0
    doubled: int = 0
    polled: int = 0
    messages: int = 0
    closes: dict[str, int] = field(default_factory=dict)
    exchanges: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, float, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return len(self.failures)

    @property
    def posted(self) -> int:
        """The number of successful POSTs."""
        return len(self.notes)

    @property
    def reasons(self) -> list[str]:
        """The reasons of the first failures, each with the time at which it was detected."""
        shown = self.failures[:SHOWN_REASONS]
        return [f"{time.strftime('%H:%M:%S', time.localtime(began + seconds))} {reason}" for began, seconds, reason in shown]

    @property
    def cut(self) -> int:
        """The number of websockets that ended without a request to reconnect."""
        return sum(count for code, count in self.closes.items() if code not in RECONNECT)

    def latency(self, begin: float = 0.0, end: float = math.inf) -> Latency:
        """Return the latency of requests that were in flight between two times."""
        found = sorted(1000 * seconds for began, seconds in self.exchanges if began < end and began + seconds > begin)
        return Latency(*(found[int(share * (len(found) - 1))] for share in (0.5, 0.99, 1.0))) if found else Latency(0, 0, 0)

    def recovered_after(self, moment: float) -> float:
        """Return the seconds from ``moment`` until new requests succeed within `SLOW` seconds."""
        slow = [began for began, seconds in self.exchanges if seconds >= SLOW]
        failed = [began for began, _, _ in self.failures]
        return max([0.0, *(began - moment for began in slow + failed)])

    def compare(self, recorded: str) -> None:
        """Count the acknowledged notes that are missing or duplicated in ``recorded``, which has one note per line."""
        counts = Counter(recorded.split())
        self.lost = sum(counts[note] == 0 for note in self.notes)
        self.doubled = sum(counts[note] > 1 for note in self.notes)

    def fail(self, began: float, reason: str) -> None:
        """Record the failure of a request that was sent at ``began``."""
        self.failures.append((round(began, 4), round(time.time() - began, 4), reason))


def table(results: Mapping[str, Result]) -> list[str]:
    """Return the lines of a table with a heading and a row for each named result."""
    counts = ("requests", "failed", "repeated", "posted", "lost", "doubled", "polled", "messages", "cut")
    width = max(map(len, results), default=0)
    lines = [" ".join([" " * width, *(f"{name:>8}" for name in counts), "   p50", "   p99", "   max ms", "websockets closed"])]
    for name, result in results.items():
        values = [f"{getattr(result, count):8}" for count in counts]
        times = [f"{value:6.1f}" for value in result.latency()]
        closes = [f"{code} x {count}" for code, count in sorted(result.closes.items())]
        lines.append(" ".join([f"{name:{width}}", *values, *times, "  ", ", ".join(closes)]).rstrip())
        lines += [f"{'':{width}} {reason}" for reason in result.reasons]
    return lines


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of the load. Each of ``connections`` alternates between GET and POST requests, ``pause`` seconds apart.

    An empty path disables its kind of request. The response to a GET of ``recorded`` must contain each body sent to
    ``post`` on its own line; if ``recorded`` is empty, the caller verifies that with `Result.compare`. Each response to
    ``get`` must contain ``expected``. A request without a response within ``timeout`` seconds fails. The scheme ``https``
    accepts any certificate; ``port`` defaults to that of the scheme.
    """

    address: str
    port: int = 0
    scheme: str = "http"
    host: str = ""
    connections: int = 40
    polls: int = 4
    websockets: int = 4
    pause: float = 0.4
    timeout: float = 30.0
    get: str = "/whoami"
    expected: str = ""
    post: str = "/notes"
    recorded: str = "/notes"
    poll: str = "/sleep?seconds=5"
    websocket: str = "/ws"

    @property
    def clients(self) -> int:
        """The number of clients, each of which sends one request at a time."""
        return self.connections + self.polls + self.websockets

    @property
    def authority(self) -> tuple[str, int]:
        """The host name and port of the site."""
        return self.host or self.address, self.port or (443 if self.scheme == "https" else 80)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """A TLS context that accepts any certificate, for ``https``."""
        return ssl._create_unverified_context() if self.scheme == "https" else None


class Load:
    """Puts load on a site during a ``with`` block; the options are those of `Shape`."""

    def __init__(self, address: str, **options: Any) -> None:
        """Send nothing yet."""
        self.shape = Shape(address=address, **options)
        self.result = Result()

    def __enter__(self) -> Load:
        """Return once every connection has received a response."""
        options = [f"--{name}={value}" for name, value in dataclasses.asdict(self.shape).items() if name != "address"]
        command = [sys.executable, "-m", "tests.support.load", self.shape.address, "--json", *options]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.stdout.readline() == "running\n", "the load generator did not start"
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the load and read the result."""
        with self.process:
            self.stdin.close()
            response = self.stdout.read()
        assert self.process.returncode == 0, "the load generator failed"
        self.result = Result(**json.loads(response))


#: The type of the fixture ``clients``, which puts load on several hosts and yields the load of each by host name.
Clients = Callable[..., AbstractContextManager[dict[str, Load]]]


class Generator:
    """Runs all clients of a site."""

    def __init__(self, shape: Shape) -> None:
        """Send nothing yet."""
        self.shape = shape
        self.result = Result()
        self.stopping = asyncio.Event()

    async def run(self) -> Result:
        """Run the clients until ``stopping`` is set."""
        shape = self.shape
        busy = [asyncio.create_task(self.send_short_requests(number)) for number in range(shape.connections)]
        waiting = [asyncio.create_task(self.send_long_polls()) for _ in range(shape.polls if shape.poll else 0)]
        waiting += [asyncio.create_task(self.keep_websocket_open()) for _ in range(shape.websockets if shape.websocket else 0)]
        await self.stopping.wait()
        await asyncio.gather(*busy)  # waits for the responses, which acknowledge the last POSTs
        for task in waiting:
            task.cancel()
        for ended in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        if shape.post and shape.recorded:
            content = await Connection(shape, self.result).request("GET", shape.recorded)
            self.result.compare((content or b"").decode())
        return self.result

    def connect(self) -> Connection:
        """Return a connection for short requests."""
        return Connection(self.shape, self.result)

    def receive(self, content: bytes) -> None:
        """Take the content of a successful response to a GET request."""

    async def send_short_requests(self, number: int) -> None:
        """Send short requests on one connection."""
        connection = self.connect()
        await asyncio.sleep(self.shape.pause * number / self.shape.connections)
        for turn in itertools.count(number):
            if self.stopping.is_set():
                break
            began, start = time.time(), time.monotonic()
            if turn % 2 and self.shape.post:
                note = uuid.uuid4().hex
                response = await connection.request("POST", self.shape.post, note.encode())
                self.result.notes += [note] * (response is not None)
            else:
                response = await connection.request("GET", self.shape.get, expected=self.shape.expected)
                if response is not None:
                    self.receive(response)
            if response is not None:
                self.result.exchanges.append((round(began, 4), round(time.monotonic() - start, 5)))
            await asyncio.sleep(self.shape.pause)
        connection.close()

    async def send_long_polls(self) -> None:
        """Send long-polls in sequence."""
        connection = Connection(self.shape, self.result)
        while True:
            response = await connection.request("GET", self.shape.poll)
            self.result.polled += response is not None
            await asyncio.sleep(self.shape.pause)

    async def keep_websocket_open(self) -> None:
        """Keep a websocket open, and reconnect whenever it is closed."""
        shape = self.shape
        host, port = shape.authority
        url = f"{shape.scheme.replace('http', 'ws')}://{host}:{port}{shape.websocket}"
        request = HTTPRequest(url, headers={"Host": host}, ssl_options=shape.tls, connect_timeout=shape.timeout)
        resolver = OverrideResolver(resolver=DefaultExecutorResolver(), mapping={host: shape.address})
        for attempt in itertools.count():
            self.result.requests += 1
            self.result.reconnects += attempt > 0
            began = time.time()
            try:
                socket = await websocket_connect(request, resolver=resolver)
            except (OSError, HTTPError, WebSocketError) as error:
                self.result.fail(began, f"websocket: {error}")
                await asyncio.sleep(shape.pause)
                continue
            with contextlib.suppress(WebSocketClosedError):
                await self.talk(socket, began)
            code = str(socket.close_code or BROKEN)
            self.result.closes[code] = self.result.closes.get(code, 0) + 1

    async def talk(self, socket: WebSocketClientConnection, began: float) -> None:
        """Send messages and expect echoes until the websocket closes; it counts as one request, sent at ``began``."""
        for number in itertools.count():
            await socket.write_message(str(number))
            try:
                async with asyncio.timeout(self.shape.timeout):
                    response = await socket.read_message()
            except TimeoutError:
                self.result.fail(began, f"websocket: no answer within {self.shape.timeout:g} s")
                return socket.close()
            if response is None:
                return None
            self.result.messages += 1
            if response != str(number):
                self.result.fail(began, f"websocket: answered {response!r} to {number}")
            await asyncio.sleep(self.shape.pause)
        return None


class UnansweredError(Exception):
    """The server closed the connection before the first byte of a response."""


class Connection:
    """A keep-alive connection that reconnects when the server has closed it."""

    def __init__(self, shape: Shape, result: Result) -> None:
        """Connect at the first request."""
        self.shape = shape
        self.result = result
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: bytes = b"", expected: str = "") -> bytes | None:
        """Return the body of a successful response that contains ``expected``; on failure count it and return None."""
        self.result.requests += 1
        began = time.time()
        try:
            async with asyncio.timeout(self.shape.timeout):
                status, content = await self.exchange(method, path, body)
        except TimeoutError:
            self.close()
            self.result.fail(began, f"{method} {path}: no answer within {self.shape.timeout:g} s")
            return None
        except (OSError, EOFError, UnansweredError, ValueError, KeyError) as error:
            self.close()
            self.result.fail(began, f"{method} {path}: {type(error).__name__} {error}")
            return None
        if not 200 <= status < 300:
            self.result.fail(began, f"{method} {path}: status {status}")
            return None
        if expected.encode() not in content:
            self.result.fail(began, f"{method} {path}: {content[:200]!r} has no {expected}")
            return None
        return content

    async def exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request, retry it if the server closed the reused connection meanwhile, and return status and body."""
        if self.streams and self.streams[0].at_eof():  # closed while idle, detected before sending
            self.close()
            self.result.reconnects += 1
        reused = self.streams is not None
        try:
            return await self.send(method, path, body)
        except UnansweredError:
            if not reused:
                raise
        self.close()
        self.result.repeated += 1
        self.result.reconnects += 1
        return await self.send(method, path, body)

    async def send(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and body of the response."""
        if self.streams is None:
            host, port = self.shape.authority
            tls = self.shape.tls
            self.streams = await asyncio.open_connection(self.shape.address, port, ssl=tls, server_hostname=host if tls else None)
        reader, writer = self.streams
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.shape.authority[0]}", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except ConnectionError as error:
            raise UnansweredError(str(error)) from error
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise UnansweredError("connection closed") from error
        first, *rest = head.splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(first.split()[1]), content

    def close(self) -> None:
        """Close the connection; the next request reconnects."""
        if self.streams:
            self.streams[1].close()
            self.streams = None


async def generate(shape: Shape) -> Result:
    """Generate load until SIGINT, or until standard input closes, as when the parent process exits."""
    generator = Generator(shape)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, generator.stopping.set)
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    waiting = asyncio.create_task(stdin.read())
    waiting.add_done_callback(lambda _: generator.stopping.set())
    running = asyncio.create_task(generator.run())
    while len(generator.result.exchanges) + generator.result.failed < shape.connections and not running.done():
        await asyncio.sleep(0.05)
    sys.stdout.write("running\n")
    sys.stdout.flush()
    return await running


def main() -> None:
    """Parse the command line, and print the result as a table or as JSON."""
    parser = argparse.ArgumentParser(description="Put load on a site until Ctrl-C and count the failures of its clients.")
    parser.add_argument("address")
    parser.add_argument("--json", action="store_true", help="print the complete result instead of a table")
    for option in dataclasses.fields(Shape):
        if option.name != "address":
            kind = {"int": int, "float": float, "str": str}[str(option.type)]
            parser.add_argument(f"--{option.name}", type=kind, default=option.default, help="default: %(default)r")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    result = asyncio.run(generate(Shape(**options)))
    lines = [json.dumps(dataclasses.asdict(result))] if as_json else table({options["address"]: result})
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
