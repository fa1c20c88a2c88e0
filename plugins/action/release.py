"""Controller side of the module release: parses the entry of the app, hashes its source, and sends it if the host lacks it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils import source_packing
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import KEY, load_host_state
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction, operator

#: Directory of the launcher and the runner, which are copied into each release.
PROGRAMS = Path(__file__).parents[2] / "roles/app/files"

#: Maximum size of a packed source in bytes that is sent along with the module: a query and a separate file would take four
#: more round trips.
MAX_INLINE_SOURCE = 200_000


class ActionModule(ModuleAction):
    """Builds a release; sends the source only to a host that lacks the release."""

    MODULE = "release"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "str", "required": True},
                "apps": {"type": "dict", "required": True},
                "version": {"type": "str"},
                "again": {"type": "bool", "default": False},
                "preempt": {"type": "bool", "default": False},
                "wait": {"type": "int", "default": 60},
            }
        )
        try:
            name = arguments["name"]
            entries = with_versions(arguments["apps"], {name: arguments["version"]})
            if name not in entries:
                raise AnsibleActionFail(f"{VARIABLE}: no such app {name}")
            app = load({name: entries[name]}, complete=False)[name]
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        known = load_host_state(self._templar, task_vars or {}).releases.get(name, {})
        if known.get("entry") == entry_digest(app) and not (arguments["again"] or arguments["preempt"]):
            release = {"id": known["id"], "live": known["id"], "revision": known["revision"], "content": known["content"]}
            return {"changed": False, "waiting": False, "settled": True, "once": app.may_run_once} | release
        self.require_host()
        local = local_source(app, self._loader.get_basedir())
        options = {option: arguments[option] for option in ("version", "again", "preempt", "wait")}
        result = self._release(app, local, options, task_vars or {})
        return {"waiting": False, "settled": False, "once": app.may_run_once} | result

    def _release(self, app: App, local: Path | None, options: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        arguments = {
            "name": app.name,
            # Text replaces the dict: Ansible would mask each value of its secrets in all output, even a value such as "1".
            "apps": {},
            "app": json.dumps(build_entry(app)),
            "revision": revision(app, local) if local else "",
            "launcher": launcher(),
            "runner": runner(),
            "builder": operator(),
        } | options
        packed = self._pack(app, local) if local else b""
        if len(packed) <= MAX_INLINE_SOURCE:
            return self.run_module(arguments | ({"content": base64.b64encode(packed).decode()} if local else {}), task_vars)
        result = self.run_module(arguments, task_vars)
        if not result.pop("needs_source", False):
            return result
        with self.transfer(packed) as path:
            return self.run_module(arguments | {"archive": path}, task_vars)

    def _pack(self, app: App, local: Path) -> bytes:
        try:
            return source_packing.pack(local) if local.is_dir() else local.read_bytes()
        except source_packing.SourceError as error:
            raise AnsibleActionFail(f"{VARIABLE}.{app.name}.source.path: {error}") from error

    def run_module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module; remove its arguments, which contain the text of the programs, from the result."""
        result = super().run_module(arguments, task_vars)
        result.pop("invocation", None)
        return result


def release_inputs(apps: Iterable[App], playbook: str) -> dict[str, Any]:
    """Return what a host needs to determine which releases of ``apps`` are settled.

    A source that cannot be sent is omitted: the build reports it.
    """
    revisions, entries = {}, {}
    for app in apps:
        with contextlib.suppress(AnsibleActionFail):
            local = local_source(app, playbook)
            revisions[app.name] = revision(app, local) if local else ""
            entries[app.name] = build_entry(app)
    return {"apps": entries, "revisions": revisions, "launcher": launcher(), "runner": runner()}


def entry_digest(app: App) -> str:
    """Return a digest of the entry of an app, which does not help to guess the secrets in it."""
    return hashlib.blake2b(json.dumps(build_entry(app), sort_keys=True).encode(), key=KEY.encode()).hexdigest()


def launcher() -> str:
    """Return the text of the launcher."""
    return (PROGRAMS / "launch.py").read_text(encoding="utf-8")


def runner() -> str:
    """Return the files of the runner by name, as JSON."""
    return json.dumps({path.name: path.read_text(encoding="utf-8") for path in sorted((PROGRAMS / "runner").glob("*.py"))})


def build_entry(app: App) -> dict[str, Any]:
    """Return the entry of ``app`` without the password hashes, which only nginx needs."""
    entry = to_entry(app)
    del entry["basic_auth"]
    return entry


def with_versions(apps: Any, versions: dict[str, str | None]) -> Any:
    """Override the versions of some sources; leave malformed entries to the validation."""
    changed = {}
    for name, version in versions.items():
        entry = apps.get(name) if isinstance(apps, dict) else None
        if version is not None and isinstance(entry, dict) and isinstance(entry.get("source"), dict):
            changed[name] = {**entry, "source": {**entry["source"], "version": version}}
    return {**apps, **changed} if changed else apps


def local_source(app: App, playbook: str) -> Path | None:
    """Return the directory or archive of a source on the controller; None if the host fetches the source.

    :raises AnsibleActionFail: when it does not exist.
    """
    if app.source.path is not None:
        key, name = "path", app.source.path
    elif app.source.archive is not None and not app.source.archive_is_url:
        key, name = "archive", app.source.archive
    else:
        return None
    try:
        return source_packing.locate(name, playbook, directory=key == "path")
    except source_packing.SourceError as error:
        raise AnsibleActionFail(f"{VARIABLE}.{app.name}.source.{key}: {error}") from error


def revision(app: App, local: Path) -> str:
    """Return the hash of a source on the controller.

    :raises AnsibleActionFail: when it contains files that cannot be sent, or does not match the checksum of the entry.
    """
    key = "path" if local.is_dir() else "checksum"
    try:
        return source_packing.revision(local) if key == "path" else source_packing.archive_revision(local, app.source.checksum)
    except source_packing.SourceError as error:
        raise AnsibleActionFail(f"{VARIABLE}.{app.name}.source.{key}: {error}") from error
