from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.pruning import prune, remove_unfinished
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Create releases r1 to r4, of which r3 and r4 share an environment, and one of a failed build."""
    layout = Layout("shop", tmp_path)
    layout.releases.mkdir(parents=True)
    for number, environment in ((1, "e1"), (2, "e2"), (3, "e3"), (4, "e3")):
        release = layout.release(f"r{number}")
        release.mkdir()
        (release / "venv").symlink_to(f"../../environments/{environment}")
        os.utime(release, (number, number))
    for environment in ("e1", "e2", "e3", "failed"):
        (layout.environments / environment).mkdir(parents=True)
    return layout


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_the_newest_releases_and_those_in_use_stay(layout: Layout) -> None:
    assert prune(layout, {"r1"}, 1) == ["r3", "r2"]
    assert names(layout.releases) == {"r1", "r4"}
    assert names(layout.environments) == {"e1", "e3"}


def test_more_releases_stay_if_configured(layout: Layout) -> None:
    assert prune(layout, set(), 3) == ["r1"]


def test_unfinished_builds_leave_nothing(layout: Layout) -> None:
    (layout.releases / ".building-r5").mkdir()
    remove_unfinished(layout)
    assert names(layout.releases) == {"r1", "r2", "r3", "r4"}
    assert names(layout.environments) == {"e1", "e2", "e3"}


def test_environments_in_use_stay_below_a_link(layout: Layout, tmp_path: Path) -> None:
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    remove_unfinished(Layout("shop", link))
    assert names(layout.environments) == {"e1", "e2", "e3"}
