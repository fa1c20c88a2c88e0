"""Memory usage of a host, compared to the manual setup."""

from __future__ import annotations

import re
import sys
from collections import defaultdict

from tests.bench.hosts import PLAIN, Fleet
from tests.bench.table import Table, median

#: Prints the proportional set size (PSS, in /proc/PID/smaps_rollup) in kB and the command line of each process of a host.
LIST = """python3 - <<'END'
import contextlib, pathlib, re
for directory in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        size = re.search("^Pss: +([0-9]+)", (directory / "smaps_rollup").read_text(), re.MULTILINE)
        print(size[1], (directory / "cmdline").read_text().replace(chr(0), " "))
END
"""
#: Kinds of processes with patterns of their command lines. All others belong to a bare Debian.
KINDS = {
    "Tornado process": r"/runner |bench_app\.py --port=80\d\d $",
    "nginx, all processes": r"^nginx: ",
    "supervisord": r"supervisord",
}


def table(fleet: Fleet, host: str) -> Table:
    """Return the memory usage per kind of process; the median of the Tornado processes."""
    found = [sizes(fleet.ssh(name, LIST)) for name in (host, PLAIN)]
    result = Table("Memory usage", "Proportional set size (PSS) in MB, before any load.", ["", "collection", "manual setup"])
    for kind in KINDS:
        result.rows.append([kind, *(f"{(median if 'Tornado' in kind else sum)(host_sizes[kind]):.1f}" for host_sizes in found)])
    added = [sum(sum(values) for kind, values in host_sizes.items() if "Tornado" not in kind) for host_sizes in found]
    result.rows.append(["all except Tornado", *(f"{size:.1f}" for size in added)])
    return result


def sizes(output: str) -> dict[str, list[float]]:
    """Return the sizes in MB of the processes of each kind."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in output.splitlines():
        size, _, command = line.partition(" ")
        for kind, pattern in KINDS.items():
            if re.search(pattern, command):
                found[kind].append(int(size) / 1000)
    if missing := KINDS.keys() - found:
        sys.exit(f"no process found: {', '.join(sorted(missing))}")
    return found
