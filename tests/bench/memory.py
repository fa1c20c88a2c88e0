"""What the collection takes of a host's memory, next to the plain way."""

from __future__ import annotations

import re
import sys
from collections import defaultdict

from tests.bench.hosts import PLAIN, Fleet
from tests.bench.table import Table, median

#: Prints, of each process of a host, its share of what it maps (PSS, of /proc/PID/smaps_rollup) in kB, and its command line.
LIST = """python3 - <<'END'
import contextlib, pathlib, re
for directory in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        size = re.search("^Pss: +([0-9]+)", (directory / "smaps_rollup").read_text(), re.MULTILINE)
        print(size[1], (directory / "cmdline").read_text().replace(chr(0), " "))
END
"""
#: What runs, by a pattern of its command line. All else is of a bare Debian.
KINDS = {
    "Tornado process": r"/runner |bench_app\.py --port=80\d\d $",
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
    if missing := KINDS.keys() - found:
        sys.exit(f"no such process runs: {', '.join(sorted(missing))}")
    return found
