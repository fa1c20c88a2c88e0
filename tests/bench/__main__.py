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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tests.bench import memory, peers, runner, scale, secure, static, switching, websockets
from tests.bench.hosts import ROOT, Fleet, booted, run
from tests.bench.operations import HOSTS, Operations
from tests.bench.serving import Serving
from tests.bench.table import Table, say

PAGE = ROOT / "docs/benchmarks.md"
#: The end of the page: what limits each number, and what was tried.
LIMITS = Path(__file__).with_name("limits.md")
ROUNDS = 5
#: Rounds of the provisioning of bare hosts, the longest operation.
INSTALL_ROUNDS = 2
PARTS = ("install", "operate", "serve", "static", "runner", "switch", "many")
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
    with tempfile.TemporaryDirectory() as directory, booted(Path(directory)) as fleet:
        tables = [table for wanted, step in steps(fleet, arguments.rounds) if wanted & set(parts) for table in step(parts)]
    text = "\n".join(map(str, tables))
    say(f"\n{text}")
    if set(parts) == set(PARTS):
        PAGE.write_text(f"{introduction(arguments.rounds)}\n{text}\n{LIMITS.read_text()}")


Step = Callable[[Collection[str]], list[Table]]


def steps(fleet: Fleet, rounds: int) -> Iterator[tuple[set[str], Step]]:
    """Yield the steps in order, each with the parts that it belongs to. A step gets the requested parts."""
    operations, host = Operations(fleet), HOSTS[0]

    def provision(parts: Collection[str]) -> list[Table]:
        if "install" in parts:
            operations.install(min(INSTALL_ROUNDS, rounds))
        else:
            operations.prepare(HOSTS if {"operate", "many"} & set(parts) else [host])
        if "operate" in parts:
            operations.operate(rounds)
        return [operations.table()] if {"install", "operate"} & set(parts) else []

    def serve(_parts: Collection[str]) -> list[Table]:
        sizes = memory.table(fleet, host)  # before any load
        peers.install(fleet, host)
        serving = Serving(fleet, host)
        serving.measure(rounds)
        return [serving.table(), websockets.measure(fleet, host), secure.measure(fleet, host, rounds), sizes]

    def many(_parts: Collection[str]) -> list[Table]:
        operations.many_apps()
        operations.many_hosts()
        return [operations.many_table()]

    yield {*PARTS, *MORE}, provision
    yield {"serve"}, serve
    yield {"serve"}, lambda _parts: peers.remove(fleet, host)
    yield {"static"}, lambda _parts: [static.measure(fleet, host, rounds)]
    yield {"runner"}, lambda _parts: [runner.measure(fleet, host, rounds)]
    yield {"switch"}, lambda _parts: [switching.measure(fleet, host, rounds)]
    yield {"scale"}, lambda _parts: [scale.measure(fleet, host)]
    yield {"many"}, many


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
