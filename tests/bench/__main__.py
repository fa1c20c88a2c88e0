"""Benchmarks of the collection (``make bench``), as ratios to a manual setup within one run.

Hosts are booted on this machine: a shell script provisions one as in Tornado's documentation, the collection all others. A
complete run also writes the tables to ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

from tests.bench import memory, scale, static, switching
from tests.bench.hosts import ROOT, booted, run
from tests.bench.operations import HOSTS, Operations
from tests.bench.serving import Serving
from tests.bench.table import Table, say

PAGE = ROOT / "docs/benchmarks.md"
ROUNDS = 5
PARTS = ("install", "operate", "serve", "static", "switch")
#: Parts that run only if they are named, as they take long.
MORE = ("scale",)


def main() -> None:
    """Measure the requested parts, print their tables, and remove the hosts."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one of {', '.join((*PARTS, *MORE))} (default: all but {MORE[0]})"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"number of measurements (default: {ROUNDS})")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - {*PARTS, *MORE}:
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join((*PARTS, *MORE))}")
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as directory, booted(Path(directory)) as fleet:
        operations = Operations(fleet)
        if "install" in parts:
            operations.install(arguments.rounds)
        else:
            operations.prepare(HOSTS if "operate" in parts else HOSTS[:1])
        if "operate" in parts:
            operations.operate(arguments.rounds)
        if {"install", "operate"} & set(parts):
            tables.append(operations.table())
        if "serve" in parts:
            sizes = memory.table(fleet, HOSTS[0])  # before any load
            serving = Serving(fleet, HOSTS[0])
            serving.measure(arguments.rounds)
            tables += [serving.table(), sizes]
        if "static" in parts:
            tables.append(static.measure(fleet, HOSTS[0], arguments.rounds))
        if "switch" in parts:
            tables.append(switching.measure(fleet, HOSTS[0], arguments.rounds))
        if "scale" in parts:
            tables.append(scale.measure(fleet, HOSTS[0]))
    text = "\n".join(map(str, tables))
    say(f"\n{text}")
    if set(parts) == set(PARTS):
        PAGE.write_text(f"{introduction(arguments.rounds)}\n{text}")


def introduction(rounds: int) -> str:
    """Return the introduction of the page: the method and the machine."""
    memory_ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    commit = run(["git", "rev-parse", "--short", "HEAD"]).strip()
    return f"""# Benchmarks

Written by `make bench` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, commit {commit}.
Each number is the median of {rounds} rounds; alternatives are measured in turn, and a ratio is the median of the ratios per
round. Ratios are more meaningful than seconds, which depend on this machine: {os.cpu_count()} CPUs, {memory_:.0f} GiB of memory,
{system}, Linux {platform.release().partition("-")[0]}. Controller, hosts and clients share it.
"""


if __name__ == "__main__":
    main()
