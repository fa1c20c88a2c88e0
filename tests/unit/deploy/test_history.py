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


def serve(layout: Layout, release: str) -> None:
    (layout.slot("a") / "release").unlink(missing_ok=True)
    (layout.slot("a") / "release").symlink_to(f"../../releases/{release}")
    history.record(layout, release, f"revision of {release}", "alice@desk")


def test_nothing_was_before_the_first(layout: Layout) -> None:
    serve(layout, "r1")
    assert history.previous(layout) is None


def test_going_back_twice_ends_where_it_began(layout: Layout) -> None:
    serve(layout, "r1")
    serve(layout, "r2")
    assert history.previous(layout) == "r1"
    serve(layout, "r1")
    assert history.previous(layout) == "r2"


def test_a_restart_of_the_same_release_is_not_what_was_before(layout: Layout) -> None:
    for release in ("r1", "r2", "r2"):
        serve(layout, release)
    assert history.previous(layout) == "r1"


def test_what_was_undone_is_not_what_was_before(layout: Layout) -> None:
    serve(layout, "r1")
    serve(layout, "r2")
    history.undo(layout, "r2", "half of all answers were 5xx")
    assert history.latest(layout) == "r1"
    serve(layout, "r3")
    history.undo(layout, "r1", "is not the latest")
    assert history.previous(layout) == "r1"
    assert [entry.undone for entry in history.read(layout)] == ["", "half of all answers were 5xx", ""]


def test_the_oldest_are_forgotten(layout: Layout) -> None:
    for number in range(history.LENGTH + 1):
        serve(layout, f"r{number}")
    assert history.read(layout)[0].release == "r1"
