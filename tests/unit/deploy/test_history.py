from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout("shop", base=tmp_path)
    layout.slot("a").mkdir(parents=True)
    layout.live.symlink_to("slots/a")
    return layout


def go_live(layout: Layout, release: str) -> None:
    (layout.slot("a") / "release").unlink(missing_ok=True)
    (layout.slot("a") / "release").symlink_to(f"../../releases/{release}")
    history.record(layout, release, f"revision of {release}", "alice@desk")


def test_the_first_release_has_no_previous_one(layout: Layout) -> None:
    go_live(layout, "r1")
    assert history.previous(layout) is None


def test_two_rollbacks_return_to_the_same_release(layout: Layout) -> None:
    go_live(layout, "r1")
    go_live(layout, "r2")
    assert history.previous(layout) == "r1"
    go_live(layout, "r1")
    assert history.previous(layout) == "r2"


def test_a_restart_does_not_change_the_previous_release(layout: Layout) -> None:
    for release in ("r1", "r2", "r2"):
        go_live(layout, release)
    assert history.previous(layout) == "r1"


def test_rollback_skips_undone_releases(layout: Layout) -> None:
    go_live(layout, "r1")
    go_live(layout, "r2")
    history.mark_undone(layout, "r2", "half of all responses were 5xx")
    assert history.latest(layout) == "r1"
    go_live(layout, "r3")
    history.mark_undone(layout, "r1", "is not the latest")
    assert history.previous(layout) == "r1"
    assert [entry.undone for entry in history.read(layout)] == ["", "half of all responses were 5xx", ""]


def test_the_oldest_entries_are_dropped(layout: Layout) -> None:
    for number in range(history.MAX_ENTRIES + 1):
        go_live(layout, f"r{number}")
    assert history.read(layout)[0].release == "r1"
