"""Memory and latency of many open websockets behind the collection's nginx."""

from __future__ import annotations

import asyncio
import resource
import time

from tests.bench.hosts import OPEN_FILES, Fleet
from tests.bench.memory import LIST, sizes
from tests.bench.table import Table, percentile, say

WEBSOCKETS = 10_000
#: Workers of nginx, each of which needs two connections for each of its websockets, and its limit of open files.
SETTINGS = {"nginx_worker_processes": 2, "nginx_worker_connections": OPEN_FILES - 1000}
#: Websockets that are opened concurrently, and those that then exchange a message, one after the other.
CONCURRENT = 50
ASKED = 500
#: Timeout of an answer in seconds.
TIMEOUT = 30.0

UPGRADE = (
    "GET /echo HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
#: A text frame with the mask 0 and six characters (RFC 6455, section 5.2), and the frame of its echo.
FRAME = b"\x81\x86" + bytes(4) + b"hello!"
ECHO = b"\x81\x06hello!"

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def measure(fleet: Fleet, host: str) -> Table:
    """Open the websockets and keep them open while memory and latency are measured."""
    limit = 2 * WEBSOCKETS
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    fleet.settings = SETTINGS
    fleet.change_variable()
    fleet.playbook("site.yml", host)
    before = memory(fleet, host)
    count, latencies, after = asyncio.run(_hold(fleet, host))
    nginx, tornado = ((after[kind] - before[kind]) * 1000 / max(count, 1) for kind in ("nginx, all processes", "Tornado process"))
    fleet.settings = {}
    say(f"{count} websockets open: nginx {nginx:.1f}, Tornado {tornado:.1f} kB each")
    table = Table(
        "Open websockets",
        f"Websockets that one client opened at once, and kB (PSS) of each in nginx and Tornado. {ASKED} of them then exchanged\n"
        "a message, one after the other; percentiles of its latency in milliseconds. nginx has two workers for it, as a process\n"
        f"has at most {OPEN_FILES:,} open files on this machine.",
        ["", "open", "nginx", "Tornado", "p50", "p99"],
    )
    cells = [
        f"{count:,}",
        f"{nginx:.1f}",
        f"{tornado:.1f}",
        f"{percentile(latencies, 50):.1f}",
        f"{percentile(latencies, 99):.1f}",
    ]
    table.rows.append([f"{WEBSOCKETS:,} websockets", *cells])
    return table


def memory(fleet: Fleet, host: str) -> dict[str, float]:
    """Return the sum of the memory in MB per kind of process."""
    return {kind: sum(found) for kind, found in sizes(fleet.ssh(host, LIST)).items()}


async def _hold(fleet: Fleet, host: str) -> tuple[int, list[float], dict[str, float]]:
    """Open the websockets; return their number, the latencies in milliseconds, and the memory in MB while they are open."""
    address = fleet.addresses()[host]
    limit = asyncio.Semaphore(CONCURRENT)

    async def connect() -> Stream | None:
        async with limit:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(address, 80), TIMEOUT)
                writer.write(UPGRADE.format(host=address).encode())
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                return None
            return (reader, writer) if b" 101 " in head.partition(b"\r\n")[0] else None

    streams = [stream for stream in await asyncio.gather(*(connect() for _ in range(WEBSOCKETS))) if stream]
    used = await asyncio.to_thread(memory, fleet, host)
    latencies = []
    for reader, writer in streams[:ASKED]:
        started = time.monotonic()
        writer.write(FRAME)
        await asyncio.wait_for(reader.readexactly(len(ECHO)), TIMEOUT)
        latencies.append((time.monotonic() - started) * 1000)
    for _reader, writer in streams:
        writer.close()
    return len(streams), latencies, used
