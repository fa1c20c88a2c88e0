from __future__ import annotations

from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.removal import PushFiles, find_resources


def test_directories_without_an_app_user_are_not_resources_of_an_app(tmp_path: Path) -> None:
    for name in ("root", "nobodys-app"):
        layout = Layout(name, base=tmp_path)
        layout.home.mkdir(parents=True)
        layout.logs.mkdir(parents=True)
        assert find_resources(layout, PushFiles(tmp_path / "entry", tmp_path / "repository")) == []
