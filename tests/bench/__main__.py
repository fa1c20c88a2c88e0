"""``make bench``: how fast the collection is, as ratios to plain ways of doing the same, within one run.

Hosts are booted on this machine: one is provisioned by a shell script, as Tornado's documentation has it, all others by the
collection. The tables are printed; if nothing was left out, they take the place of those in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

from tests.bench import memory, switching
from tests.bench.hosts import ROOT, booted, run
from tests.bench.operations import HOSTS, Operations
from tests.bench.serving import Serving
from tests.bench.table import Table, say

PAGE = ROOT / "docs/benchmarks.md"
ROUNDS = 5
PARTS = ("install", "operate", "serve", "switch")


def main() -> None:
    """Measure the parts that are asked for, and print their tables; leave no host behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them if none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each is measured, in turn (default: {ROUNDS})")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}, but {', '.join(PARTS)}")
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as directory, booted(Path(directory)) as fleet:
        operations = Operations(fleet)
        if "install" in parts:
            operations.install(arguments.rounds)
        else:
            operations.prepare()
        if "operate" in parts:
            operations.operate(arguments.rounds)
        if {"install", "operate"} & set(parts):
            tables.append(operations.table())
        if "serve" in parts:
            sizes = memory.table(fleet, HOSTS[0])  # as long as no way of serving has been kept busy for longer
            serving = Serving(fleet, HOSTS[0])
            serving.measure(arguments.rounds)
            tables += [serving.table(), sizes]
        if "switch" in parts:
            tables.append(switching.measure(fleet, HOSTS[0], arguments.rounds))
    text = "\n".join(map(str, tables))
    say(f"\n{text}")
    if set(parts) == set(PARTS):
        PAGE.write_text(f"{introduction(arguments.rounds)}\n{text}")


def introduction(rounds: int) -> str:
    """Return what stands above the tables: what they are, and the machine they are of."""
    memory_ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    commit = run(["git", "rev-parse", "--short", "HEAD"]).strip()
    return f"""# Benchmarks

Written by `make bench` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, commit {commit}.
Each number is the median of {rounds} rounds; what is compared is measured in turn, and a ratio is the median of
those within the rounds: it says more than the seconds, which are of this machine: {os.cpu_count()} CPUs,
{memory_:.0f} GiB of memory, {system}, Linux {platform.release().partition("-")[0]}. Controller, hosts and clients share it.
"""


if __name__ == "__main__":
    main()
