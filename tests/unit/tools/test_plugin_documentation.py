"""The documentation of modules and filters is valid YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs import PLUGINS, documentation


@pytest.mark.parametrize("plugin", [plugin for plugins in PLUGINS.values() for plugin in plugins], ids=lambda path: path.stem)
def test_documentation_is_valid(plugin: Path) -> None:
    assert documentation(plugin)["description"]
