"""The options of a site that belong to the release of an app: they are kept with it, and a rollback restores them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import DIRECTORY, SITES

#: Keys of an entry that belong to a release as a whole. Of ``static``, only the URL does: the files are in the release.
KEYS = ("limits", "paths", "prefix", "read_timeout", "upload_size")

#: The keys of the encoded options, with the types of their values.
TYPES: Mapping[str, tuple[type, ...]] = {
    "limits": (dict,),
    "paths": (dict,),
    "prefix": (str, NoneType),
    "read_timeout": (int, NoneType),
    "static": (str, NoneType),
    "upload_size": (str, NoneType),
}

#: Characters of the longest encoded options that are read.
MAX_SIZE = 1 << 20

#: Keys of a path that stay as in the inventory: a rollback must not open what was closed since.
ACCESS_KEYS = ("allow", "deny")


def encode(app: App) -> str:
    """Return the options of an app, as the file beside its site contains them."""
    entry = to_entry(app)
    options = {key: entry.get(key) for key in KEYS} | {"static": app.static.url if app.static else None}
    return json.dumps(options, sort_keys=True) + "\n"


def decode(text: str) -> dict[str, Any] | None:
    """Return the options that a text contains; None if it is damaged."""
    try:
        options = json.loads(text) if len(text) <= MAX_SIZE else None
    except (RecursionError, ValueError):
        return None
    if not isinstance(options, dict) or options.keys() != TYPES.keys():
        return None
    are_plain = all(isinstance(options[key], types) for key, types in TYPES.items())
    return options if are_plain and all(isinstance(path, dict) for path in options["paths"].values()) else None


def undamaged(text: object) -> str:
    """Return a text that contains options as it is; an empty one if it is damaged."""
    return text if isinstance(text, str) and decode(text) is not None else ""


def restored(entry: Mapping[str, Any], text: str, others: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return an entry with the encoded options in place of its own; leave a malformed entry to the validation.

    :arg others: the entries of the other apps, some of which may share the site.
    """
    options = decode(text)
    if options is None or not _is_well_formed(entry):
        return dict(entry)
    url = options.pop("static")
    own = {key: value for key, value in entry.items() if key not in (*KEYS, "static")}
    static = {"static": {**(entry.get("static") or {}), "url": url}} if url else {}
    around = [other for other in others if _is_well_formed(other) and _domains(other) == _domains(entry)]
    paths = _with_access(options["paths"], options["prefix"] or "/", entry, around)
    return own | static | {key: value for key, value in options.items() if value is not None} | {"paths": paths}


def _with_access(
    paths: Mapping[str, Any], prefix: str, entry: Mapping[str, Any], around: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the paths of an earlier release with the access control of the inventory, below the prefix of the earlier release.

    In nginx, the rules of a path replace those around it. So a path keeps its earlier rules only where the inventory has none.
    """
    present, present_prefix = entry.get("paths") or {}, entry.get("prefix") or "/"
    moved = {
        f"{prefix}{url.removeprefix(present_prefix)}": path for url, path in present.items() if url.startswith(present_prefix)
    }
    moved |= {url: path for url, path in present.items() if url in paths or url.startswith(prefix)}
    rules = _rules_by_url(moved)
    restricted = {*rules, *_rules_by_url({prefix: entry})}
    for other in around:
        restricted |= {*_rules_by_url({other.get("prefix") or "/": other, **(other.get("paths") or {})})}
    # A path with a slash also covers that without it, unless the site has both.
    found: dict[str, dict[str, Any]] = {url: {} for url in moved if f"{url}/" in rules}
    for url, options in paths.items():
        if url in moved or any(_covers(path, url) for path in restricted):
            found[url] = {key: value for key, value in options.items() if key not in ACCESS_KEYS}
        else:
            found[url] = dict(options)
        if url not in moved:
            found[url] |= rules.get(f"{url}/", {})
    return {url: {**found.get(url, {}), **rules.get(url, {})} for url in {**found, **rules}}


def _rules_by_url(paths: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the access control of the paths that have any."""
    rules = {url: {key: options[key] for key in ACCESS_KEYS if options.get(key)} for url, options in paths.items()}
    return {url: rule for url, rule in rules.items() if rule}


def _covers(path: str, url: str) -> bool:
    """Return whether the options of a path apply to ``url``, unless another path is nearer."""
    return url == path or (path.endswith("/") and f"{url}/".startswith(path))


def _is_well_formed(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry of the inventory, which is not validated yet, has the structure that this module reads."""
    paths = entry.get("paths") or {}
    return (
        isinstance(entry.get("prefix") or "/", str)
        and isinstance(entry.get("static") or {}, Mapping)
        and isinstance(entry.get("domains") or [], list)
        and isinstance(paths, Mapping)
        and all(isinstance(url, str) and isinstance(options, Mapping) for url, options in paths.items())
    )


def _domains(entry: Mapping[str, Any]) -> set[str]:
    return {str(domain) for domain in entry.get("domains") or []}


def applied(layout: Layout) -> str:
    """Return the options with which nginx serves an app on this host; empty if its site has none, or if they are damaged."""
    try:
        with (_directory(layout.base) / f"app.{layout.app}.options").open("rb") as file:
            return undamaged(file.read(MAX_SIZE + 1).decode())
    except (OSError, UnicodeDecodeError):
        return ""


def all_applied(base: Path = Path("/")) -> dict[str, str]:
    """Return the options with which nginx serves the apps of this host, by app."""
    names = (path.name.split(".")[1] for path in sorted(_directory(base).glob("app.*.options")))
    return {name: applied(Layout(name, base)) for name in names}


def _directory(base: Path) -> Path:
    return base / DIRECTORY.lstrip("/") / SITES
