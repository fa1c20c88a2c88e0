"""Random operations and faults on hosts under load (``make chaos``), with checks of what clients and hosts show.

The steps are drawn by this program: the stateful testing of Hypothesis begins each of its many examples with a fresh state, which
is a minute of booting and provisioning here.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.chaos.host import Controller
from tests.chaos.sequence import Sequence, summary

#: The seed that every run of the test suite has, besides a random one.
FIXED_SEED = 1

#: Lines of the last playbook that a failure prints.
SHOWN_LINES = 60


def parse_steps(text: str) -> list[int]:
    """Return step numbers such as ``3,5-7``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def shortened(steps: list[int]) -> Iterator[list[int]]:
    """Yield shorter sequences that end with the step that failed."""
    for count in (1, 2, 4, 8):
        if count < len(steps):
            yield steps[-count:]


def main() -> int:
    """Boot the hosts, run the seeds, and remove the hosts; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, action="append", help=f"replay a seed (default: {FIXED_SEED}, and a random one)")
    parser.add_argument("--minutes", type=float, default=1.0, help="duration of each seed (default: %(default)g)")
    parser.add_argument("--steps", type=parse_steps, help="run only these steps of a seed, such as 3,5-7")
    parser.add_argument("--hosts", type=int, default=1, help="number of app hosts (default: %(default)s)")
    parser.add_argument(
        "--balancers", type=int, default=0, help="number of load balancers, with a floating IP (default: %(default)s)"
    )
    parser.add_argument("--release", default="bookworm", help="release of the hosts (default: %(default)s)")
    parser.add_argument("--fleet", default="chaos", help="name of the fleet (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the hosts running; the next run uses them")
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        controller = Controller(arguments.fleet, arguments.release, Path(directory), arguments.hosts, arguments.balancers)
        try:
            for seed in arguments.seed or (FIXED_SEED, secrets.randbelow(10**6)):
                sequence = Sequence(controller, seed)
                if not run(sequence, arguments.steps or itertools.count(1), arguments.minutes):
                    report(sequence, shorten=not arguments.steps)
                    return 1
                total += sequence.counts
        finally:
            if not arguments.keep:
                controller.remove()
    sys.stdout.write(f"no violation; {summary(total)}\n")
    return 0


def run(sequence: Sequence, steps: Iterable[int], minutes: float) -> bool:
    """Run steps of a sequence."""
    sequence.note(f"seed {sequence.seed}")
    return sequence.run(steps, minutes)


def report(sequence: Sequence, *, shorten: bool) -> None:
    """Print how to replay a failure, and the shortest sequence of its steps that fails as well."""
    lines = sequence.output.splitlines()[-SHOWN_LINES:]
    sys.stdout.write("\n".join(["", "the last playbook:", *lines, "", "history:", *sequence.history, ""]))
    steps = list(range(1, sequence.counts["steps"] + 1))
    command = f"make chaos SEED={sequence.seed} APP_HOSTS={len(sequence.hosts)} BALANCERS={len(sequence.balancers)}"
    sys.stdout.write(f"replay: {command} STEPS=1-{len(steps)}\n")
    for fewer in shortened(steps) if shorten else ():
        again = Sequence(sequence.controller, sequence.seed)
        if not run(again, fewer, 60) and again.counts["steps"]:  # a host that cannot be provisioned again proves nothing
            sys.stdout.write(f"shorter: {command} STEPS={','.join(map(str, fewer))}\n")
            return


if __name__ == "__main__":
    sys.exit(main())
