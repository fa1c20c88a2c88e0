from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.status import HEADINGS, Process, table


def process(**changes: Any) -> Process:
    fields: dict[str, Any] = {
        "app": "shop",
        "slot": "a",
        "live": True,
        "worker": "",
        "process": 0,
        "release": "1f2e",
        "state": "RUNNING",
        "pid": 812,
        "uptime": 93_784,
        "restarts": 2,
        "connections": 3,
        "open_files": 20,
        "open_files_limit": 16_384,
        "rss": 31 * 2**20,
        "health": 200,
    }
    return Process(**(fields | changes))


def test_a_row_shows_what_an_operator_asks_for() -> None:
    row = dict(zip(HEADINGS, process().row(), strict=True))
    assert (row["uptime"], row["files"], row["MiB"], row["health"]) == ("1d 02:03:04", "20/16384", "31", "200")


def test_a_slot_that_is_not_served_says_so() -> None:
    assert process(live=False).row()[1] == "a (not live)"


def test_columns_line_up() -> None:
    heading, first, second = table([process(), process(pid=12_345, health=0)])
    assert heading.index("uptime") == first.index("1d") == second.index("1d")
    assert second.endswith("no answer")


@pytest.mark.parametrize("changes", [{"state": "FATAL"}, {"health": 0}, {"health": 500}])
def test_well_is_running_and_healthy(changes: dict[str, Any]) -> None:
    assert process().well
    assert not process(**changes).well
