from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.hosts import Fleet, Run
from tests.bench.memory import sizes
from tests.bench.operations import INSTALL, PING, UNCHANGED, Operations
from tests.bench.table import Table, ratio

OUTPUT = """
TASK [Print variables of the controller] *****
ok: [app1]
TASK [funnel.tornado.limits : Set the limits] *****
<192.0.2.1> SSH: EXEC ssh -C ...
<192.0.2.1> SSH: EXEC ssh -C ...
ok: [app1]
RUNNING HANDLER [Restart] *****
<192.0.2.1> SSH: EXEC ssh -C ...
"""


def test_run_counts_tasks_and_round_trips() -> None:
    assert (Run(1.0, 0.5, 0.2, OUTPUT).tasks, Run(1.0, 0.5, 0.2, OUTPUT).round_trips) == (2, 3)


def test_ratio_is_the_median_of_the_ratios_per_round() -> None:
    assert ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_table_is_markdown() -> None:
    table = Table("Title", "Text.", ["", "one"], [["name", "1.0"]])
    assert str(table) == "## Title\n\nText.\n\n|      | one |\n|------|----:|\n| name | 1.0 |\n"


def test_operations_are_compared_to_a_ping_and_to_one_host(tmp_path: Path) -> None:
    operations = Operations(Fleet(tmp_path))
    for name, seconds in ((PING, 1.0), (UNCHANGED, 2.0)):
        operations.runs[name, 1] = [Run(seconds, 0.5, 0.2, OUTPUT, received=7)] * 3
        operations.runs[name, 3] = [Run(3 * seconds, 1.5, 0.6, OUTPUT)] * 3
    operations.costs[UNCHANGED] = Run(2.0, 0.5, 0.2, OUTPUT)
    operations.runs[INSTALL, 1] = [Run(4.0, 0.5, 0.2, OUTPUT)]
    operations.answers, operations.healthy, operations.manual = [1.5] * 3, [0.5] * 3, [2.0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in str(operations.table()).splitlines() if line[:1] == "|"]
    unchanged = ["run without changes", "2.0", "2.0x", "0.5", "3", "6.0", "3.0x", "2.9x", "0.50", "2", "3", "7"]
    assert unchanged in rows
    assert {len(row) for row in rows} == {len(unchanged)}


def test_memory_is_grouped_by_kind_of_process() -> None:
    lines = [
        "2000 nginx: master process",
        "500 nginx: worker process",
        "30000 python /srv/bench/releases/x/runner a:b",
        "90 python3 /usr/bin/supervisord",
        "9 bash",
    ]
    assert sizes("\n".join(lines)) == {"nginx, all processes": [2.0, 0.5], "Tornado process": [30.0], "supervisord": [0.09]}


def test_missing_process_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no process found: Tornado process, supervisord"):
        sizes("2000 nginx: master process")
