"""The result of a build whose release an operator rolled back from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.modules.release import Build, complete

BUILD = Build(load({"shop": {"source": {"path": "."}, "run": {"app": "web:app"}}})["shop"])


@pytest.mark.parametrize(("slots", "settled"), [("a", True), ("ab", False)])
def test_a_rolled_back_app_is_settled_when_the_replaced_slot_is_gone(tmp_path: Path, slots: str, *, settled: bool) -> None:
    layout = Layout("shop", tmp_path)
    for slot in slots:
        layout.slot("a" if slot == "a" else "b").mkdir(parents=True)
    (layout.slot("a") / "release").symlink_to("../../releases/r1")
    layout.live.symlink_to("slots/a")
    found = complete(layout, BUILD, {"id": "r2", "rolled_back": "release r2 was rolled back"})
    assert (found["id"], found["live"], found["stays"], found["settled"]) == ("r2", "r1", True, settled)


def test_a_rolled_back_app_without_a_live_release_is_settled(tmp_path: Path) -> None:
    layout = Layout("shop", tmp_path)
    layout.slot("a").mkdir(parents=True)
    assert complete(layout, BUILD, {"id": "r2", "rolled_back": "release r2 was rolled back"})["settled"]
