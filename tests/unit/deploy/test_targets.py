from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.targets import deployed_apps, rollback_state


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return an app with the live release r2, which replaced r1; neither is on the host any more."""
    layout = Layout("shop", base=tmp_path)
    layout.slot("a").mkdir(parents=True)
    layout.live.symlink_to("slots/a")
    (layout.slot("a") / "release").symlink_to("../../releases/r2")
    for release in ("r1", "r2"):
        history.record(layout, release, f"revision of {release}", "alice@desk")
    return layout


def test_the_history_has_the_newest_release_first(layout: Layout) -> None:
    state = rollback_state(layout)
    assert (state["live"], state["starting"], state["site_options"]) == ("r2", "", "")
    assert [(entry["release"], entry["built"], entry["content"]) for entry in state["releases"]] == [
        ("r2", False, ""),
        ("r1", False, ""),
    ]
    assert deployed_apps(layout.base) == [layout]


@pytest.mark.parametrize(
    ("release", "starting"),
    [
        ("r3", "r3"),
        ("r2", ""),  # it has switched, and drains
        ("", ""),  # it may have nothing to do, so it must not make a rollback stay at the live release
    ],
)
def test_only_a_deploy_of_another_release_is_starting(layout: Layout, release: str, starting: str) -> None:
    with deploy_lock(layout, "alice@desk") as note_step:
        note_step("a step", release)
        assert rollback_state(layout)["starting"] == starting
    assert rollback_state(layout)["starting"] == ""


def test_a_damaged_release_does_not_prevent_a_rollback_to_another_one(layout: Layout) -> None:
    for release in ("r1", "r2"):
        layout.release(release).mkdir(parents=True)
        layout.manifest(release).write_text(ReleaseManifest("shop", release, "v1").to_json())
        for name in ("launch.py", "secrets.json"):
            (layout.release(release) / name).write_text("{}")
    (layout.release("r2") / "launch.py").unlink()
    releases = {entry["release"]: (entry["built"], bool(entry["content"])) for entry in rollback_state(layout)["releases"]}
    assert releases == {"r1": (True, True), "r2": (False, False)}


def test_damaged_site_options_of_a_release_count_as_missing(layout: Layout) -> None:
    history.record_site_options(layout, "r1", "{")
    assert [entry["site_options"] for entry in rollback_state(layout)["releases"]] == ["", ""]
