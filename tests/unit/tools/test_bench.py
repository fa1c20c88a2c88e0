from __future__ import annotations

import pytest

from tests.bench.hosts import Run
from tests.bench.memory import sizes
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
