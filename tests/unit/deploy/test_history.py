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


def roll_back(layout: Layout) -> str:
    """Roll back to the previous release and return it."""
    target = history.previous(layout)
    assert target
    live = layout.live_release()
    assert live
    history.mark_undone(layout, live, "rolled back", "bob@desk")
    go_live(layout, target)
    return target


@pytest.mark.parametrize(
    ("deploys", "targets"),
    [
        (["r1", "r2", "r3"], ["r2", "r1"]),
        (["r1", "r2", "r1"], ["r2"]),
        (["r1", "r2", "r2"], ["r1"]),
    ],
)
def test_each_rollback_goes_further_back_until_nothing_is_left(layout: Layout, deploys: list[str], targets: list[str]) -> None:
    for release in deploys:
        go_live(layout, release)
    assert [roll_back(layout) for _ in targets] == targets
    assert history.previous(layout) is None


def test_a_rolled_back_release_that_is_deployed_again_is_a_target_again(layout: Layout) -> None:
    for release in ("r1", "r2"):
        go_live(layout, release)
    roll_back(layout)
    entry = history.newest_entries(layout)["r2"]
    assert entry.rollback == f"at {entry.undone_at} by bob@desk"
    for release in ("r2", "r3"):
        go_live(layout, release)
    assert history.previous(layout) == "r2"
    assert history.newest_entries(layout)["r2"].rollback == ""


def test_a_release_that_returns_has_the_site_options_with_which_it_last_served(layout: Layout) -> None:
    go_live(layout, "r1")
    history.record_site_options(layout, "r1", "first")
    go_live(layout, "r2")
    roll_back(layout)
    assert [entry.site_options for entry in history.read(layout)] == ["first", "", "first"]
    history.record_site_options(layout, "r1", "second")
    assert history.newest_entries(layout)["r1"].site_options == "second"


def test_rollback_skips_undone_releases(layout: Layout) -> None:
    go_live(layout, "r1")
    go_live(layout, "r2")
    history.mark_undone(layout, "r2", "half of all responses were 5xx")
    assert history.latest(layout) == "r1"
    go_live(layout, "r3")
    assert history.previous(layout) == "r1"
    assert [entry.undone for entry in history.read(layout)] == ["", "half of all responses were 5xx", ""]
    assert history.newest_entries(layout)["r2"].rollback == "", "nobody rolled it back"


def test_the_history_of_an_older_version_is_read(layout: Layout) -> None:
    layout.history.write_text('[{"release": "r1", "revision": "1", "at": "2026-01-02T03:04:05", "by": "bob", "undone": "5xx"}]')
    assert history.read(layout)[0].undone == "5xx"


def test_the_oldest_entries_are_dropped(layout: Layout) -> None:
    for number in range(history.MAX_ENTRIES + 1):
        go_live(layout, f"r{number}")
    assert history.read(layout)[0].release == "r1"


@pytest.mark.parametrize("text", ["", "[{", '[{"other": 1}]'])
def test_a_damaged_history_counts_as_empty(tmp_path: Path, text: str) -> None:
    layout = Layout("shop", base=tmp_path)
    layout.home.mkdir(parents=True)
    layout.history.write_text(text)
    assert history.read(layout) == []
