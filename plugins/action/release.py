"""Controller side of the module release: parses the entry of the app, hashes its source, and sends it if the host lacks it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils import source_packing
from ansible_collections.funnel.tornado.plugins.plugin_utils.archive_check import archive_problem_once
from ansible_collections.funnel.tornado.plugins.plugin_utils.host_state_comparison import KEY, load_host_state
from ansible_collections.funnel.tornado.plugins.plugin_utils.module_action import ModuleAction, operator
from ansible_collections.funnel.tornado.plugins.plugin_utils.run_cache import file_once, text_once

#: Directory of the launcher and the runner, which are copied into each release.
PROGRAMS = Path(__file__).parents[2] / "roles/app/files"

#: Maximum size of a packed source in bytes that is sent along with the module: a query and a separate file would take four
#: more round trips.
MAX_INLINE_SOURCE = 200_000

#: Maximum size of the files of a source in bytes that is packed before the host is asked whether it needs it.
MAX_UNPACKED_SOURCE = 2_000_000


class ActionModule(ModuleAction):
    """Builds releases; sends a source only to a host that lacks the release, and needs no host for those that are settled."""

    MODULE = "release"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the app, or the results of several."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "str"},
                "names": {"type": "list", "elements": "str"},
                "apps": {"type": "dict", "required": True},
                "version": {"type": "str"},
                "versions": {"type": "dict", "default": {}},
                "again": {"type": "bool", "default": False},
                "preempt": {"type": "bool", "default": False},
                "wait": {"type": "int", "default": 60},
            },
            required_one_of=[("name", "names")],
            mutually_exclusive=[("name", "names")],
        )
        name, variables = arguments["name"], task_vars or {}
        names = [name] if name else arguments["names"]
        versions = {name: arguments["version"]} if name else arguments["versions"]
        apps = self._load(names, with_versions(arguments["apps"], versions))
        results = {} if arguments["again"] or arguments["preempt"] else self._settled(apps, variables)
        options = {option: arguments[option] for option in ("again", "preempt", "wait")}
        rest = [app for app in apps if app.name not in results]
        found = self._build(rest, versions, options, variables) if rest else {}
        if found and "results" not in found:
            return found  # the module could not run
        built = {result["item"]: result for result in found.pop("results", ())}
        for app in rest:
            results[app.name] = {"waiting": False, "settled": False, "once": app.may_run_once} | built[app.name]
        if name:
            return found | {key: value for key, value in results[name].items() if key != "item"}
        return found | summary([results[app.name] for app in apps])

    def _load(self, names: Iterable[str], entries: Any) -> list[App]:
        """Return the named apps.

        :raises AnsibleActionFail: with all mistakes.
        """
        if missing := [name for name in names if name not in entries]:
            raise AnsibleActionFail(f"{VARIABLE}: no such app {', '.join(missing)}")
        try:
            loaded = load({name: entries[name] for name in names}, complete=False)
        except InvalidDataError as error:
            raise AnsibleActionFail(str(error)) from error
        return [loaded[name] for name in names]

    def _settled(self, apps: Iterable[App], task_vars: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the results of the apps that the collected state of the host shows to be up to date."""
        known = load_host_state(self._templar, task_vars).releases
        return {
            app.name: {
                "item": app.name,
                "changed": False,
                "waiting": False,
                "settled": True,
                "once": app.may_run_once,
                "id": found["id"],
                "live": found["id"],
                "revision": found["revision"],
                "content": found["content"],
            }
            for app in apps
            if (found := known.get(app.name, {})) and found.get("entry") == entry_digest(app)
        }

    def _build(
        self, apps: Iterable[App], versions: Mapping[str, str | None], options: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the result of the module, which gets small sources at once, and large ones if the host needs them."""
        self.require_host()
        builds: dict[str, dict[str, Any]] = {}
        large: dict[str, Path] = {}
        room = MAX_INLINE_SOURCE
        for app in apps:
            local = local_source(app, self._loader.get_basedir())
            # Text replaces the dict: Ansible would mask each value of its secrets in all output, even a value such as "1".
            builds[app.name] = {"app": build_entry(app), "version": versions.get(app.name)}
            if local is None:
                continue
            builds[app.name]["revision"] = revision(app, local)
            small = _is_small(app, local)
            if small and (packed := packed_source(app, local)).stat().st_size <= room:
                room -= packed.stat().st_size
                builds[app.name]["content"] = base64.b64encode(packed.read_bytes()).decode()
            else:
                large[app.name] = local
        result = self._run(builds, options, task_vars)
        for _attempt in range(2):  # the second one only if a host has removed files in the meantime
            lacking = {found["item"]: found for found in result.get("results", ()) if found.get("needs_source")}
            if not lacking:
                break
            with contextlib.ExitStack() as files:
                sent = {}
                for app in (app for app in apps if app.name in lacking):
                    held = lacking[app.name].get("held", ())
                    file = files.enter_context(self.transfer(packed_source(app, large[app.name], held)))
                    sent[app.name] = builds[app.name] | {"archive": file, "base": lacking[app.name].get("base")}
                second = self._run(sent, options, task_vars)
            if "results" not in second:
                return second
            result = _merge(result, second)
        return result

    def _run(self, builds: Mapping[str, Any], options: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        programs = {"launcher": launcher(), "runner": runner(), "builder": operator()}
        return self.run_module({"apps": {}, "builds": json.dumps(builds), **programs, **options}, task_vars)

    def run_module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module; remove its arguments, which contain the text of the programs, from the result."""
        result = super().run_module(arguments, task_vars)
        result.pop("invocation", None)
        return result


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the results of two runs of the module; those of the second replace those of the same apps."""
    replaced = {found["item"] for found in second["results"]}
    rest = [found for found in first["results"] if found["item"] not in replaced]
    warnings = [*first.get("warnings", ()), *second.get("warnings", ())]
    merged = {"results": rest + second["results"], "changed": first["changed"] or second["changed"]}
    return second | merged | ({"warnings": warnings} if warnings else {})


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a task for the results of several apps."""
    diffs = [diff for result in results if (diff := result.pop("diff", None))]
    problems = [str(result["msg"]) for result in results if result.get("failed")]
    changed = any(result["changed"] for result in results)
    failure = {"failed": True, "msg": "\n".join(problems)} if problems else {}
    return {"changed": changed, "results": results, "diff": diffs} | failure


def release_inputs(apps: Iterable[App], playbook: str) -> tuple[dict[str, Any], list[str]]:
    """Return what a host needs to determine which releases of ``apps`` are settled, and the sources that cannot be sent."""
    revisions, entries, problems = {}, {}, []
    for app in apps:
        try:
            local = local_source(app, playbook)
            revisions[app.name] = revision(app, local) if local else ""
            entries[app.name] = build_entry(app)
        except AnsibleActionFail as error:
            problems.append(str(error.args[0]))  # error.message repeats the messages of the causes
    return {"apps": entries, "revisions": revisions, "launcher": launcher(), "runner": runner()}, problems


def archive_problems(apps: Iterable[App], playbook: str) -> Iterator[str]:
    """Yield the archives on the controller that hosts would refuse; :func:`release_inputs` reports those that are missing."""
    for app in apps:
        with contextlib.suppress(AnsibleActionFail):
            local = local_source(app, playbook)
            if local and local.is_file():
                problem = archive_problem_once(local, app.source.subdirectory)
                yield from [f"{VARIABLE}.{app.name}.source.{problem}"] if problem else []


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

    :raises AnsibleActionFail: when it contains files that cannot be sent or read, or does not match the checksum of the entry.
    """
    with _source_errors(app, local, "read", mismatch="checksum"):
        if local.is_dir():
            return text_once(f"revision {local}", lambda: source_packing.revision(local))
        checksum = app.source.checksum
        return text_once(f"revision {local} {checksum}", lambda: source_packing.archive_revision(local, checksum))


def packed_source(app: App, local: Path, held: Collection[str] = ()) -> Path:
    """Return the archive of a source on the controller, packed once per run for all hosts that lack the same files.

    :arg held: digests of files that the host has.
    :raises AnsibleActionFail: when it contains files that cannot be sent, or has changed during the run.
    """
    expected = revision(app, local)
    with _source_errors(app, local, "packed"):
        if local.is_file():
            return file_once(f"archive {local} {expected}", lambda file: source_packing.copy_archive(local, file, expected))
        if held:  # without what only the release has, such as bytecode, so that more hosts are alike
            own = text_once(f"digests {local} {expected}", lambda: "\n".join(source_packing.digests(local)))
            held = set(own.split()).intersection(held)
        key = f"source {local} {expected} {' '.join(sorted(held))}"
        return file_once(key, lambda file: source_packing.pack(local, file, expected, held))


def _is_small(app: App, local: Path) -> bool:
    """Return whether a source may fit into the options of the module.

    :raises AnsibleActionFail: when it cannot be read.
    """
    with _source_errors(app, local, "read"):
        if local.is_file():
            return local.stat().st_size <= MAX_INLINE_SOURCE
        return int(text_once(f"size {local}", lambda: str(source_packing.size(local)))) <= MAX_UNPACKED_SOURCE


@contextlib.contextmanager
def _source_errors(app: App, local: Path, step: str, *, mismatch: str = "archive") -> Iterator[None]:
    """Raise errors of the source of ``app`` with the path of the key.

    :arg step: what cannot be done if a file or the disk fails, such as ``read``.
    :arg mismatch: key of an archive that is not the expected one.
    """
    source, directory = f"{VARIABLE}.{app.name}.source", app.source.path is not None
    try:
        yield
    except source_packing.SourceError as error:
        raise AnsibleActionFail(f"{source}.{'path' if directory else mismatch}: {error}") from error
    except OSError as error:
        place = f"{source}.{'path' if directory else 'archive'}: {error.filename or local}"
        raise AnsibleActionFail(f"{place} cannot be {step}: {error.strerror}") from error
