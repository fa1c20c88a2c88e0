from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSetError
from ansible_collections.funnel.tornado.plugins.modules.file_set import require_live


def test_the_site_of_a_release_that_is_no_longer_live_is_rejected(tmp_path: Path) -> None:
    layout = Layout("shop", tmp_path)
    layout.slot("a").mkdir(parents=True)
    (layout.slot("a") / "release").symlink_to("../../releases/r1")
    layout.live.symlink_to("slots/a")
    require_live({"shop": "r1"}, tmp_path)
    require_live({"blog": ""}, tmp_path)
    with pytest.raises(FileSetError, match=r"shop: release r1 is live instead of r2, .*; its site was not changed"):
        require_live({"shop": "r2"}, tmp_path)
