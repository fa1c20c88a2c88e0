"""Latency of requests during a deploy, compared to before."""

from __future__ import annotations

import sys
import time

from tests.bench.hosts import Fleet
from tests.bench.table import Table, median, ratio, say
from tests.support.load import Load

#: Seconds of load before each deploy.
BASELINE = 8


def measure(fleet: Fleet, host: str, rounds: int) -> Table:
    """Deploy changed code under load; a failed request ends the benchmark."""
    quiet, busy = [], []
    for number in range(1, rounds + 1):
        fleet.change_code()
        with Load(fleet.addresses()[host], get="/healthz", post="", poll="", websocket="") as clients:
            started = time.time()
            time.sleep(BASELINE)
            deployed = time.time()
            fleet.playbook("playbooks/deploy.yml", host)
            ended = time.time()
        if clients.result.failed:
            sys.exit(f"requests failed during a deploy: {clients.result.reasons}")
        quiet.append(clients.result.latency(started, deployed))
        busy.append(clients.result.latency(deployed, ended))
        say(f"deploy under load, round {number} of {rounds}: p99 {quiet[-1].p99:.1f} ms before, {busy[-1].p99:.1f} ms during")
    table = Table(
        "Latency during a deploy",
        "Latency in milliseconds before and during `playbooks/deploy.yml`; Ansible runs on the same CPUs. No request failed.",
        ["", "before", "during", "during / before"],
    )
    for name in ("p50", "p99"):
        before, during = ([getattr(latency, name) for latency in found] for found in (quiet, busy))
        table.rows.append([name, f"{median(before):.1f}", f"{median(during):.1f}", f"{ratio(during, before):.2f}x"])
    return table
