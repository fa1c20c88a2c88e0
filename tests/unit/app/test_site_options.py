"""The options of a site that a rollback restores with the release, and those that stay as in the inventory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import (
    all_applied,
    applied,
    encode,
    restored,
    undamaged,
)
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

ENTRY: dict[str, Any] = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["shop.test"]}
OLD: dict[str, Any] = {"allow": ["192.0.2.1"]}
NEW: dict[str, Any] = {"allow": ["192.0.2.9"]}


def options(**keys: Any) -> str:
    return encode(load({"shop": ENTRY | keys}, complete=False)["shop"])


def options_with(**keys: Any) -> str:
    """Return valid options with keys that are not."""
    return json.dumps(json.loads(options()) | keys)


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


@pytest.mark.parametrize(
    ("present", "earlier", "rules"),
    [
        # The inventory has the path without rules, or rules around it: those of the earlier release do not replace them.
        ({"paths": {"/a/": {}}}, {"/a/": OLD}, {"/a/": {}}),
        ({"paths": {"/a/": NEW}}, {"/a/b/": OLD, "/a/c": OLD}, {"/a/b/": {}, "/a/c": {}, "/a/": NEW}),
        ({"deny": ["192.0.2.2"]}, {"/a/": OLD}, {"/a/": {}}),
        # The rules of a path with a slash also cover the path without it, which the earlier release serves separately.
        ({"paths": {"/a/": NEW}}, {"/a": {}}, {"/a": NEW, "/a/": NEW}),
        ({"paths": {"/a/": NEW}}, {"/a": OLD}, {"/a": NEW, "/a/": NEW}),
        ({"paths": {"/a/": NEW, "/a": {}}}, {"/a": {}}, {"/a": {}, "/a/": NEW}),
        ({"paths": {"/a/": NEW, "/a": {}}, "deny": ["192.0.2.2"]}, {}, {"/a": {}, "/a/": NEW}),
        # A path without a slash contains no other.
        ({"paths": {"/a": NEW}}, {"/a/": OLD, "/ab": OLD}, {"/a/": OLD, "/ab": OLD, "/a": NEW}),
    ],
)
def test_rules_of_the_earlier_release_apply_only_where_the_inventory_has_none(
    present: dict[str, Any], earlier: dict[str, Any], rules: dict[str, Any]
) -> None:
    assert restored(ENTRY | present, options(paths=earlier))["paths"].keys() == rules.keys()
    found = load({"shop": restored(ENTRY | present, options(paths=earlier))}, complete=False)["shop"].paths
    assert {url: (path.allow, path.deny) for url, path in found.items()} == {
        url: (rule.get("allow", []), rule.get("deny", [])) for url, rule in rules.items()
    }


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ({"deny": ["192.0.2.2"]}, False),
        ({"paths": {"/blog/": NEW}}, False),
        ({"paths": {"/blog/": {}, "/other/": NEW}}, True),
        ({"deny": ["192.0.2.2"], "domains": ["other.test"]}, True),
    ],
)
def test_rules_of_other_apps_on_the_site_replace_those_of_the_earlier_release(other: dict[str, Any], *, kept: bool) -> None:
    entry = ENTRY | {"prefix": "/blog/"}
    text = options(prefix="/blog/", paths={"/blog/a/": OLD})
    assert restored(entry, text, [ENTRY | other])["paths"]["/blog/a/"].get("allow") == (OLD["allow"] if kept else None)


@pytest.mark.parametrize(("prefix", "url"), [("/old/", "/old/admin/"), (None, "/admin/")])
def test_access_control_moves_with_the_prefix(prefix: str | None, url: str) -> None:
    present = ENTRY | {"prefix": "/new/", "paths": {"/new/admin/": NEW}}
    text = options(**({"prefix": prefix} if prefix else {}), paths={f"{url}api/": OLD})
    found = load({"shop": restored(present, text)}, complete=False)["shop"].paths
    assert (found[url].allow, found[f"{url}api/"].allow) == (NEW["allow"], [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"static": null}',
        options_with(extra=1),
        options_with(paths=None),
        options_with(paths={"/a/": None}),
        options_with(prefix=["/a/"]),
        options_with(read_timeout="9" * 2_000_000),
    ],
)
def test_damaged_options_are_ignored(tmp_path: Path, text: str) -> None:
    (directory := tmp_path / "etc/nginx/funnel").mkdir(parents=True)
    file = directory / "app.shop.options"
    file.write_text(text)
    assert applied(Layout("shop", tmp_path)) == undamaged(text) == ""
    assert restored(ENTRY, text) == ENTRY
    file.write_bytes(b"\xff")
    assert all_applied(tmp_path) == {"shop": ""}


@pytest.mark.parametrize(
    "keys", [{"paths": ["/a/"]}, {"paths": {"/a/": None}}, {"paths": {1: {}}}, {"prefix": 1}, {"static": "www"}, {"domains": "a"}]
)
def test_malformed_entries_are_left_to_the_validation(keys: dict[str, Any]) -> None:
    assert restored(ENTRY | keys, options(read_timeout=9)) == ENTRY | keys
    assert restored(ENTRY, options(), [ENTRY | keys])["domains"] == ENTRY["domains"]


def test_applied_options_are_read_from_beside_the_sites(tmp_path: Path) -> None:
    directory = tmp_path / "etc/nginx/funnel"
    directory.mkdir(parents=True)
    for name in ("app.shop.options", "app.shop.conf", "app.my-api.options", "nginx.other.options"):
        (directory / name).write_text(options(read_timeout=len(name)))
    assert all_applied(tmp_path) == {"my-api": options(read_timeout=18), "shop": options(read_timeout=16)}
    assert applied(Layout("blog", tmp_path)) == ""
