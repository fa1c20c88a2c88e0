"""CPU time of nginx for static files, compared to the manual setup."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from tests.bench.hosts import PLAIN, Fleet, wrk
from tests.bench.table import Table, median, ratio, say

SECONDS = 2
CONNECTIONS = 40
#: Files of the sample app, requested with the version of Tornado's ``static_url`` and a header of a browser.
FILES = {"small file": "app.js", "compressible file": "style.css"}
HEADER = "Accept-Encoding: gzip, deflate, br"
#: Prints the clock ticks (of 10 ms) that the workers of nginx have used, in user and kernel mode.
TICKS = "for pid in $(pgrep -f '^nginx: worker'); do cut -d ' ' -f 14-15 /proc/$pid/stat; done"


def measure(fleet: Fleet, host: str, rounds: int) -> Table:
    """Request each file from both setups in turn; a failed request ends the benchmark."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for kind, name in FILES.items():
            for stack in (PLAIN, host):
                found[kind, stack].append(cost(fleet, stack, name))
            say(f"static files, round {number} of {rounds}, {kind}: {found[kind, PLAIN][-1]:.1f}, {found[kind, host][-1]:.1f} us")
    table = Table(
        "CPU time for static files",
        f"Microseconds of nginx's workers per request, from wrk over {CONNECTIONS} connections. The clients accept gzip.",
        ["", "size in bytes", "documentation's nginx", "collection's nginx", "collection / documentation"],
    )
    for kind, name in FILES.items():
        size = (fleet.code / "static" / name).stat().st_size
        ours, theirs = found[kind, host], found[kind, PLAIN]
        table.rows.append([kind, str(size), f"{median(theirs):.1f}", f"{median(ours):.1f}", f"{ratio(ours, theirs):.2f}x"])
    return table


def cost(fleet: Fleet, host: str, name: str) -> float:
    """Return the CPU time of a request in microseconds."""
    version = hashlib.sha512((fleet.code / "static" / name).read_bytes()).hexdigest()
    url = f"http://{fleet.addresses()[host]}/static/{name}?v={version}"
    before = ticks(fleet, host)
    requests = wrk(url, CONNECTIONS, SECONDS, HEADER).requests
    return (ticks(fleet, host) - before) * 10_000 / requests


def ticks(fleet: Fleet, host: str) -> int:
    """Return the clock ticks that the workers of nginx have used."""
    return sum(map(int, fleet.ssh(host, TICKS).split()))
