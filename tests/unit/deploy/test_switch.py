"""Steps of a switch for which no process has to run."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import encode
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import front_door_check, history, switch
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup, ProcessGroupError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import Switcher, SwitchRequest


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Return an app with the live release r2 in slot b, and r1, which served before, in slot a; all processes run."""
    layout = Layout("shop", base=tmp_path)
    for slot, release in (("a", "r1"), ("b", "r2")):
        layout.release(release).mkdir(parents=True)
        layout.manifest(release).write_text(ReleaseManifest("shop", release, f"revision of {release}").to_json())
        layout.run(slot).mkdir(parents=True)
        layout.upstream(slot).write_text("server unix:0.sock;\n")
        (layout.slot(slot) / "release").symlink_to(f"../../releases/{release}")
        history.record(layout, release, f"revision of {release}", "alice@desk")
    layout.environments.mkdir()
    layout.served_marker("a").touch()
    layout.live.symlink_to("slots/b")
    layout.current.symlink_to("live/release")

    def ignore(*_args: object) -> None:
        """Replace a step that needs root or a running supervisord."""

    for name in ("stop_workers", "link_protection_problem"):
        monkeypatch.setattr(switch, name, ignore)
    monkeypatch.setattr(switch, "is_live", lambda layout, release, _server: layout.live_release() == release)
    for name in ("_protect", "_return_workers"):
        monkeypatch.setattr(Switcher, name, ignore)
    monkeypatch.setattr(ProcessGroup, "serves", lambda _self: True)
    return layout


def test_a_switch_without_a_drain_leaves_the_slot_that_a_live_target_replaced(layout: Layout) -> None:
    result = Switcher(layout, SwitchRequest("r2", rollback=True, drain=False)).run()
    assert (result.draining, layout.slot("a").exists(), result.steps) == (True, True, [])


def test_a_rollback_to_a_slot_that_still_runs_records_the_site_options_of_the_replaced_release(layout: Layout) -> None:
    entry: dict[str, Any] = {"source": {"path": "."}, "run": {"app": "web:app"}, "read_timeout": 9}
    text = encode(load({"shop": entry})["shop"])
    (directory := layout.base / "etc/nginx/funnel").mkdir(parents=True)
    (directory / "app.shop.options").write_text(text)
    result = Switcher(layout, SwitchRequest("r1", by="bob@desk", rollback=True, drain=False)).run()
    assert (result.draining, layout.live_release()) == (True, "r1")
    entries = history.newest_entries(layout)
    assert {release: found.site_options for release, found in entries.items()} == {"r1": "", "r2": text}
    assert entries["r2"].undone_by == "bob@desk"


def test_a_rollback_on_a_full_disk_is_recorded_once_the_disk_has_space(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write = history._write

    def write_after_the_switch(layout: Layout, entries: list[history.HistoryEntry]) -> None:
        if layout.live_release() != "r1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(layout, entries)

    monkeypatch.setattr(history, "_write", write_after_the_switch)
    Switcher(layout, SwitchRequest("r1", by="bob@desk", rollback=True, drain=False)).run()
    assert layout.live_release() == "r1"
    assert history.newest_entries(layout)["r2"].rollback


def test_a_disk_that_stays_full_is_reported_after_the_switch(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(history, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        Switcher(layout, SwitchRequest("r1", rollback=True, drain=False)).run()
    assert layout.live_release() == "r1"


@pytest.mark.parametrize("by", ["", "bob@desk"])
def test_a_deploy_that_completes_a_rollback_does_not_undo_it(layout: Layout, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(front_door_check, "problem", lambda *_args, **_options: "nginx answers with 502")
    history.mark_undone(layout, "r1", "rolled back", by)
    expected = contextlib.nullcontext() if by else pytest.raises(ProcessGroupError, match="nginx answers with 502")
    with expected:
        Switcher(layout, SwitchRequest("r2"))._ask_front_door()
