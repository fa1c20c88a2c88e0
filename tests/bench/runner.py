"""CPU time of the runner, compared to the same app started as in Tornado's documentation."""

from __future__ import annotations

from tests.bench.hosts import Fleet, wrk
from tests.bench.table import Table, median, ratio, say

SECONDS = 3
CONNECTIONS = 40
#: A header that nginx adds to each request.
HEADER = "X-Request-ID: 0123456789abcdef0123456789abcdef"
PLAIN_WAY, RUNNER = "python bench_app.py", "runner"
PORTS = {PLAIN_WAY: 8091, RUNNER: 8092}
#: Both write an access log; the runner also sums up metrics and logs the request ID.
COMMANDS = {
    PLAIN_WAY: "bench_app.py --port=8091",
    RUNNER: "../runner bench_app:make_app --port 8092 --address 0.0.0.0 --xheaders --metrics /run/bench.metrics",
}
START = "cd /srv/bench/live/release/src; nohup ../venv/bin/python {command} > /run/bench.log 2>&1 < /dev/null & echo $!"
TICKS = "cut -d ' ' -f 14-15 /proc/{process}/stat"


def measure(fleet: Fleet, host: str, rounds: int) -> Table:
    """Start a process of each kind and request small answers from them in turn; a failed request ends the benchmark."""
    address = fleet.addresses()[host]
    processes = {kind: fleet.ssh(host, START.format(command=command)).strip() for kind, command in COMMANDS.items()}
    found: dict[str, list[float]] = {kind: [] for kind in COMMANDS}
    try:
        for port in PORTS.values():
            fleet.ssh(host, f"until timeout 1 bash -c '</dev/tcp/127.0.0.1/{port}' 2>/dev/null; do sleep 0.2; done")
        for number in range(1, rounds + 1):
            for kind, process in processes.items():
                before = ticks(fleet, host, process)
                requests = wrk(f"http://{address}:{PORTS[kind]}/healthz", CONNECTIONS, SECONDS, HEADER).requests
                found[kind].append((ticks(fleet, host, process) - before) * 10_000 / requests)
            say(f"runner, round {number} of {rounds}: {found[PLAIN_WAY][-1]:.1f}, {found[RUNNER][-1]:.1f} us")
    finally:
        fleet.ssh(host, f"kill {' '.join(processes.values())}")
    table = Table(
        "CPU time of the runner",
        "Microseconds of a Tornado process per request for a small answer, without a proxy. Both ways write an access log; the\n"
        "runner's has the request ID, and its process counts metrics.",
        ["", *COMMANDS, "runner / plain"],
    )
    cells = [f"{median(values):.1f}" for values in found.values()]
    table.rows.append(["small answers", *cells, f"{ratio(found[RUNNER], found[PLAIN_WAY]):.2f}x"])
    return table


def ticks(fleet: Fleet, host: str, process: str) -> int:
    """Return the clock ticks that a process has used."""
    return sum(map(int, fleet.ssh(host, TICKS.format(process=process)).split()))
