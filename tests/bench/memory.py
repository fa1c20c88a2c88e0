"""What the collection takes of a host's memory, next to the plain way."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.bench.hosts import PLAIN, Fleet
from tests.bench.table import Table, median

#: A process's share of what it maps (PSS, of /proc/PID/smaps_rollup), in kB, and its command line.
LIST = """
for directory in /proc/[0-9]*; do
    size=$(awk '/^Pss:/ {print $2}' "$directory/smaps_rollup" 2>/dev/null || true)
    test -z "$size" || echo "$size $(tr '\\0' ' ' < "$directory/cmdline" 2>/dev/null || true)"
done
"""
#: What runs, by a pattern of its command line. All else is of a bare Debian.
KINDS = {
    "Tornado process": r"runner\.py|bench_app\.py --port=80\d\d $",
    "nginx, all processes": r"^nginx: ",
    "supervisord": r"supervisord",
}


def table(fleet: Fleet, host: str) -> Table:
    """Return the sizes; of Tornado processes, the median one's."""
    found = [sizes(fleet.ssh(name, LIST)) for name in (host, PLAIN)]
    result = Table("A host's memory", "MB, shared pages in equal parts (PSS), before any load.", ["", "collection", "plain way"])
    for kind in KINDS:
        result.rows.append([kind, *(f"{(median if 'Tornado' in kind else sum)(one[kind]):.1f}" for one in found)])
    added = [sum(sum(values) for kind, values in one.items() if "Tornado" not in kind) for one in found]
    result.rows.append(["all but the Tornados", *(f"{size:.1f}" for size in added)])
    return result


def sizes(output: str) -> dict[str, list[float]]:
    """Return the megabytes of the processes of each kind."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in output.splitlines():
        size, _, command = line.partition(" ")
        for kind, pattern in KINDS.items():
            if re.search(pattern, command):
                found[kind].append(int(size) / 1000)
    return found
