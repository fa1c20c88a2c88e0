from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.status import HEADINGS, Process, _restarts, table


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
    heading, first, second = table(HEADINGS, [process().row(), process(pid=12_345, health=0).row()])
    assert heading.index("uptime") == first.index("1d") == second.index("1d")
    assert second.endswith("no answer")


@pytest.mark.parametrize("changes", [{"state": "FATAL"}, {"health": 0}, {"health": 500}])
def test_well_is_running_and_healthy(changes: dict[str, Any]) -> None:
    assert process().well
    assert not process(**changes).well


@pytest.mark.parametrize(("lines", "restarts"), [(0, 0), (1, 0), (3, 2)])
def test_every_start_but_the_first_is_a_restart(tmp_path: Path, lines: int, restarts: int) -> None:
    (tmp_path / "0.starts").write_text("812 99\n" * lines)
    assert _restarts(tmp_path / "0.starts") == restarts


def test_what_an_app_puts_in_the_place_of_its_starts_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.starts")
    (tmp_path / "1.starts").symlink_to("/dev/zero")
    assert [_restarts(tmp_path / f"{process}.starts") for process in range(3)] == [0, 0, 0]
