from __future__ import annotations

from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.removal import PushFiles, find_resources


def test_what_has_an_apps_name_and_no_apps_user_is_not_touched(tmp_path: Path) -> None:
    for name in ("root", "nobodys-app"):
        layout = Layout(name, base=tmp_path)
        layout.home.mkdir(parents=True)
        layout.logs.mkdir(parents=True)
        assert find_resources(layout, PushFiles(tmp_path / "entry", tmp_path / "repository")) == []
