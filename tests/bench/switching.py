"""What clients notice of a deploy: how long their answers take, next to those before it."""

from __future__ import annotations

import sys
import time

from tests.bench.hosts import Fleet
from tests.bench.table import Table, median, ratio, say
from tests.support.load import Load

#: Seconds of an idle operator, before each deploy.
QUIET = 8


def measure(fleet: Fleet, host: str, rounds: int) -> Table:
    """Deploy changed code under load; an answer that fails ends the benchmark."""
    quiet, busy = [], []
    for number in range(1, rounds + 1):
        fleet.change_code()
        with Load(fleet.addresses()[host], get="/healthz", post="", poll="", websocket="") as clients:
            began = time.time()
            time.sleep(QUIET)
            deployed = time.time()
            fleet.playbook("playbooks/deploy.yml", host)
            ended = time.time()
        if clients.result.failed:
            sys.exit(f"a deploy was noticed: {clients.result.reasons}")
        quiet.append(clients.result.latency(began, deployed))
        busy.append(clients.result.latency(deployed, ended))
        say(f"deploy under load, round {number} of {rounds}: p99 {quiet[-1].p99:.1f} ms before, {busy[-1].p99:.1f} ms during")
    table = Table(
        "A deploy, as clients see it",
        "Milliseconds to an answer, from the command to its end, and before; Ansible works on the same CPUs. No request failed.",
        ["", "before", "during", "during / before"],
    )
    for name in ("p50", "p99"):
        before, during = ([getattr(one, name) for one in found] for found in (quiet, busy))
        table.rows.append([name, f"{median(before):.1f}", f"{median(during):.1f}", f"{ratio(during, before):.2f}x"])
    return table
