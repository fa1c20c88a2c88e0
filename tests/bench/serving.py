"""Throughput and latency of three ways to serve the same app, with a Tornado per CPU."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections import defaultdict

from tornado.httpclient import HTTPError
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.bench.hosts import PLAIN, Fleet, Load, wrk
from tests.bench.table import Table, median, percentile, ratio, say

SECONDS = 3
CONNECTIONS = 40
WEBSOCKETS = 1000
#: Websockets that are opened concurrently; more than the listen backlog would wait a second for a retransmitted SYN.
CONCURRENT = 50
#: Timeout of an answer on a websocket in seconds.
TIMEOUT = 10.0

DOCUMENTED, COLLECTION, BARE = "documentation's nginx", "collection's nginx", "Tornados with reuse_port"
#: Requests of wrk: name, path and number of connections.
REQUESTS = {
    "small answers": ("/healthz", CONNECTIONS),
    "small answers, one client": ("/healthz", 1),
    "100 kB answers": ("/large", CONNECTIONS),
    "static file": ("/static/style.css", CONNECTIONS),
}
#: The same ASGI app, served by gunicorn with uvicorn workers (see peers.sh), and by the collection's runner.
ASGI = "small ASGI answers, uvicorn"
ASGI_NAME, ASGI_PORT = "asgi.test", 8085


class Serving:
    """Measurements by kind of request and way of serving, one per round."""

    def __init__(self, fleet: Fleet, host: str) -> None:
        """Start without measurements."""
        addresses = fleet.addresses()
        fleet.ssh(PLAIN, "supervisorctl start shared:*")
        self.stacks = {DOCUMENTED: (addresses[PLAIN], 80), COLLECTION: (addresses[host], 80), BARE: (addresses[PLAIN], 8082)}
        self.found: dict[tuple[str, str], list[Load]] = defaultdict(list)
        self.websockets: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)

    def measure(self, rounds: int) -> None:
        """Measure each way of serving under each load, in turn."""
        for number in range(1, rounds + 1):
            say(f"serving, round {number} of {rounds}")
            for name, (path, connections) in REQUESTS.items():
                for stack, (address, port) in self.stacks.items():
                    self.found[name, stack].append(wrk(f"http://{address}:{port}{path}", connections, SECONDS))
                    say(f"  {name}, {stack}: {self.found[name, stack][-1].rate:.0f}/s")
            for stack, port in ((DOCUMENTED, ASGI_PORT), (COLLECTION, 80)):
                found = wrk(f"http://{self.stacks[stack][0]}:{port}/", CONNECTIONS, SECONDS, f"Host: {ASGI_NAME}")
                self.found[ASGI, stack].append(found)
                say(f"  {ASGI}, {stack}: {found.rate:.0f}/s")
            for stack, (address, port) in self.stacks.items():
                self.websockets[stack].append(asyncio.run(talk(f"ws://{address}:{port}/echo")))
                say(f"  websockets, {stack}: {self.websockets[stack][-1][0]} open")

    def table(self) -> Table:
        """Return the medians, and the median ratios within a round."""
        table = Table(
            "Serving",
            "Requests per second, and the 50th and 99th percentile of the latency in milliseconds, measured with wrk on the\n"
            f"same machine over {CONNECTIONS} connections. Each websocket sends a message per second and waits for its echo.",
            ["", *self.stacks, "collection / documentation", "collection / bare"],
        )
        for name in (*REQUESTS, ASGI):
            rates = {stack: [result.rate for result in self.found[name, stack]] for stack in self.stacks}
            cells = []
            for found in (self.found[name, stack] for stack in self.stacks):
                p50, p99 = ([getattr(result, field) for result in found] for field in ("p50", "p99"))
                rate = [result.rate for result in found]
                cells.append(f"{median(rate):.0f}/s, {median(p50):.1f} / {median(p99):.1f} ms" if found else "")
            ours = rates[COLLECTION]
            ratios = (f"{ratio(ours, rates[other]):.2f}x" if rates[other] else "" for other in (DOCUMENTED, BARE))
            table.rows.append([name, *cells, *ratios])
        cells = []
        for rounds in self.websockets.values():
            cells.append(f"{median([count for count, _ in rounds]):.0f} open")
            if latencies := [latency for _, found in rounds for latency in found]:
                cells[-1] += f", {percentile(latencies, 50):.1f} / {percentile(latencies, 99):.1f} ms"
        table.rows.append([f"{WEBSOCKETS:,} websockets", *cells, "", ""])
        return table


async def talk(url: str) -> tuple[int, list[float]]:
    """Open websockets and exchange messages; return the number of open websockets, and the latencies in milliseconds."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * WEBSOCKETS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    limit = asyncio.Semaphore(CONCURRENT)

    async def connect() -> WebSocketClientConnection | None:
        async with limit:
            try:
                return await asyncio.wait_for(websocket_connect(url), TIMEOUT)
            except (HTTPError, OSError, StreamClosedError, TimeoutError):
                return None

    sockets = [socket for socket in await asyncio.gather(*(connect() for _ in range(WEBSOCKETS))) if socket]
    latencies: list[float] = []

    async def keep_talking(socket: WebSocketClientConnection, number: int) -> None:
        await asyncio.sleep(number / max(len(sockets), 1))  # spread the messages over a second
        for _ in range(SECONDS):
            started = time.monotonic()
            await socket.write_message("x" * 100)
            if await asyncio.wait_for(socket.read_message(), TIMEOUT) is None:
                sys.exit(f"{url} closed a websocket")
            latencies.append((time.monotonic() - started) * 1000)
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - started)))

    await asyncio.gather(*(keep_talking(socket, number) for number, socket in enumerate(sockets)))
    for socket in sockets:
        socket.close()
    return len(sockets), latencies
