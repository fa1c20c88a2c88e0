"""Releases with which nothing is left to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import Programs
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.settled import fixed_revision, settled_releases
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

RUN = {"run": {"app": "shop.web:make_app"}}
CHECKSUM = "5" * 64


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ({"path": "."}, "hash"),
        ({"archive": "shop.tar"}, "hash"),
        ({"archive": "https://example.com/shop.tar", "checksum": f"sha256:{CHECKSUM}"}, CHECKSUM),
        ({"package": "shop", "version": "1.2"}, "shop==1.2"),
        ({"git": "https://example.com/shop.git"}, None),
    ],
)
def test_the_revision_is_known_unless_it_must_be_fetched(source: dict[str, Any], revision: str | None) -> None:
    assert fixed_revision(load({"shop": {"source": source, **RUN}})["shop"], "hash") == revision


def test_a_missing_directory_has_no_revision(tmp_path: Path) -> None:
    entry = {"source": {"directory": str(tmp_path / "absent")}, "run": {"app": "shop.web:make_app"}, "debug": True}
    with pytest.raises(BuildError):
        fixed_revision(load({"shop": entry})["shop"], "")


def test_an_app_that_is_not_on_the_host_or_malformed_is_not_settled() -> None:
    entries = {"not-on-this-host": {"source": {"path": "."}, **RUN}, "malformed": {"source": {}}}
    assert settled_releases(entries, {"not-on-this-host": "hash"}, Programs("launcher", {})) == {}
