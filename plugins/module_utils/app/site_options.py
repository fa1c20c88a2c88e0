"""The options of a site that belong to the release of an app: they are kept with it, and a rollback restores them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import DIRECTORY, SITES

#: Keys of an entry that belong to a release as a whole. Of ``static``, only the URL does: the files are in the release.
KEYS = ("limits", "paths", "prefix", "read_timeout", "upload_size")

#: Keys of a path that stay as in the inventory: a rollback must not open what was closed since.
ACCESS_KEYS = ("allow", "deny")


def encode(app: App) -> str:
    """Return the options of an app, as the file beside its site contains them."""
    entry = to_entry(app)
    options = {key: entry.get(key) for key in KEYS} | {"static": app.static.url if app.static else None}
    return json.dumps(options, sort_keys=True) + "\n"


def restored(entry: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return an entry with the encoded options in place of its own."""
    options = json.loads(text)
    url = options.pop("static")
    own = {key: value for key, value in entry.items() if key not in (*KEYS, "static")}
    static = {"static": {**(entry.get("static") or {}), "url": url}} if url else {}
    paths = _with_access(options["paths"], entry.get("paths") or {}, options["prefix"] or "/")
    return own | static | {key: value for key, value in options.items() if value is not None} | {"paths": paths}


def _with_access(paths: Mapping[str, Any], present: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return paths with the access control of those ``present`` in the inventory, as far as they are below a prefix."""
    rules = {url: {key: options[key] for key in ACCESS_KEYS if options.get(key)} for url, options in present.items()}
    restricted = {url: rule for url, rule in rules.items() if rule and (url in paths or url.startswith(prefix))}
    return {url: {**paths.get(url, {}), **restricted.get(url, {})} for url in {**paths, **restricted}}


def applied(layout: Layout) -> str:
    """Return the options with which nginx serves an app on this host; empty if its site has none."""
    file = _directory(layout.base) / f"app.{layout.app}.options"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def all_applied(base: Path = Path("/")) -> dict[str, str]:
    """Return the options with which nginx serves the apps of this host, by app."""
    names = (path.name.split(".")[1] for path in sorted(_directory(base).glob("app.*.options")))
    return {name: applied(Layout(name, base)) for name in names}


def _directory(base: Path) -> Path:
    return base / DIRECTORY.lstrip("/") / SITES
