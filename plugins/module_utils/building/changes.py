"""Reasons why a release differs from the live one: names of keys of the app's entry, without their values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.building.integrity import is_damaged
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import Programs
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

#: Reasons that are no keys of an entry. ``BUILD`` stands for all that affects a build and is not in the manifest.
FIRST, CODE, DEPENDENCIES, COLLECTION, BUILD = "first release", "code", "dependencies", "collection", "build settings"
DAMAGE = "damaged files"

#: Keys of the entry by field of the manifest, where the names differ; an empty one is part of another field.
KEYS = {"revision": CODE, "host": "domains", "hooks_timeout": "hooks.timeout", "runner": "run"}

#: Keys of the entry by option of the runner.
RUNNER_KEYS = {
    "--drain": "drain",
    "--max-body-size": "upload_size",
    "--log-to": "services",
    "--debug": "debug",
    "--watch": "watch",
    "--loop": "run.loop",
    "--threads": "run.threads",
    "--socket": "port",
    "--port": "port",
}

#: Fields whose values a Procfile in the source defines, so that only a build knows them.
PROCFILE_FIELDS = ("argv", "workers", "hooks", "hooks_once")


def change_reasons(layout: Layout, app: App, planned: ReleaseManifest, programs: Programs) -> list[str]:
    """Return why the planned release of ``app`` is another one than the live release; empty if it is the live one.

    Changed dependencies are known when the release is built.
    """
    live = layout.live_release()
    if live == planned.id:
        return []
    if live is None:
        return [FIRST]
    if is_damaged(layout, live):
        return [DAMAGE]
    if not layout.is_built(live):
        return [FIRST]
    built = layout.is_built(planned.id)
    before, after = read_manifest(layout, live), read_manifest(layout, planned.id) if built else planned
    reasons = list(_manifest_reasons(_fields(before), _fields(after), app))
    if built and _environment(layout, live) != _environment(layout, planned.id):
        reasons.append(DEPENDENCIES)
    secrets = json.loads((layout.release(live) / "secrets.json").read_text(encoding="utf-8"))
    reasons += _variables("secrets", secrets, app.secret_environment, app.services.secret_environment)
    if _programs(layout, live) != programs:
        reasons.append(COLLECTION)
    return sorted(set(reasons), key=lambda reason: (reason != CODE, reason != DEPENDENCIES, reason)) or [BUILD]


def _fields(manifest: ReleaseManifest) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(manifest.to_json())
    return {name: value for name, value in fields.items() if name not in ("app", "id", "built", "by")}


def _manifest_reasons(before: Mapping[str, Any], after: Mapping[str, Any], app: App) -> Iterator[str]:
    """Yield the keys of the fields that differ."""
    unknown = PROCFILE_FIELDS if not after["argv"] else ()
    for name in before.keys() - set(unknown):
        old, new = before[name], after[name]
        if old == new:
            continue
        if name == "environment":
            yield from _variables("env", old, new, app.services.environment)
        elif name == "hooks_once":
            yield from (f"hooks.{step}" for step in {*old} ^ {*new})
        elif name == "argv" and before["runner"] and after["runner"]:
            yield from (RUNNER_KEYS.get(option, "run") for option in _changed(_options(old), _options(new)))
        elif name == "argv":
            yield "run"
        elif name in ("health", "hooks", "workers"):
            yield from (f"{name}.{key}" for key in _changed(old, new))
        else:
            yield KEYS.get(name, name)


def _variables(key: str, old: Mapping[str, str], new: Mapping[str, str], services: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of the environment variables that differ; those of services as one."""
    yield from ("services" if name in services else f"{key}.{name}" for name in _changed(old, new))


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    return (key for key in {**old, **new} if old.get(key) != new.get(key))


def _options(argv: list[str]) -> dict[str, list[str]]:
    """Return the values of the runner's options by option; those of positional arguments by an empty string."""
    options: dict[str, list[str]] = {"": []}
    option = ""
    for word in argv:
        if word.startswith("--"):
            option = word
        options.setdefault(option, []).append(word)
    return options


def _environment(layout: Layout, release: str) -> str:
    """Return the name of the virtual environment of a release, a hash of its dependencies."""
    return (layout.release(release) / "venv").readlink().name


def _programs(layout: Layout, release: str) -> Programs:
    """Return the launcher and the runner of a release on this host."""
    directory = layout.release(release)
    launcher = (directory / "launch.py").read_text(encoding="utf-8").partition("\n")[2]
    return Programs(launcher, {path.name: path.read_text(encoding="utf-8") for path in directory.glob("runner/*.py")})
