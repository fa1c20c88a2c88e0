"""The options of a site that a rollback restores with the release, and those that stay as in the inventory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import all_applied, applied, encode, restored
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

ENTRY: dict[str, Any] = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["shop.test"]}


def options(**keys: Any) -> str:
    return encode(load({"shop": ENTRY | keys}, complete=False)["shop"])


@pytest.mark.parametrize(
    "keys",
    [
        {"prefix": "/shop/"},
        {"limits": {"requests": 5, "burst": 0, "connections": 2}},
        {"paths": {"/live/": {"read_timeout": 3600, "buffering": False}, "/up": {"upload_size": "1g", "extra": "etag off;"}}},
        {"static": {"url": "/files/", "path": "www"}},
        {"read_timeout": 9, "upload_size": "9m"},
        {},
    ],
)
def test_every_option_is_restored(keys: dict[str, Any]) -> None:
    text = options(**keys)
    for present in ({}, {"prefix": "/x/", "limits": {"requests": 1}, "paths": {"/p": {}}, "static": {}, "read_timeout": 1}):
        assert encode(load({"shop": restored(ENTRY | present, text)}, complete=False)["shop"]) == text


def test_other_keys_stay_as_in_the_inventory() -> None:
    present = ENTRY | {"domains": ["new.test"], "allow": ["192.0.2.0/24"], "headers": {"X-New": "1"}, "static": {"path": "www"}}
    found = restored(present, options(static={}))
    assert {key: found[key] for key in present} == present | {"static": {"path": "www", "url": "/static/"}}


def test_access_control_of_paths_is_not_rolled_back() -> None:
    text = options(paths={"/admin/": {"read_timeout": 9}, "/old/": {"allow": ["192.0.2.1"]}})
    present = {"/admin/": {"allow": ["192.0.2.2"]}, "/internal/": {"deny": ["192.0.2.3"], "read_timeout": 5}, "/free/": {}}
    found = load({"shop": restored(ENTRY | {"paths": present}, text)}, complete=False)["shop"].paths
    rules = {url: (path.read_timeout, path.allow, path.deny) for url, path in found.items()}
    assert rules == {
        "/admin/": (9, ["192.0.2.2"], []),
        "/old/": (None, ["192.0.2.1"], []),
        "/internal/": (None, [], ["192.0.2.3"]),
    }


def test_access_control_outside_of_the_earlier_prefix_does_not_apply() -> None:
    present = ENTRY | {"prefix": "/new/", "paths": {"/new/admin/": {"allow": ["192.0.2.1"]}}}
    assert restored(present, options(prefix="/old/"))["paths"] == {}


def test_applied_options_are_read_from_beside_the_sites(tmp_path: Path) -> None:
    directory = tmp_path / "etc/nginx/funnel"
    directory.mkdir(parents=True)
    for name in ("app.shop.options", "app.shop.conf", "app.my-api.options", "nginx.other.options"):
        (directory / name).write_text(name)
    assert all_applied(tmp_path) == {"my-api": "app.my-api.options", "shop": "app.shop.options"}
    assert applied(Layout("blog", tmp_path)) == ""
