#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Build a release of an app on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Build releases of apps
version_added: 0.1.0
description:
  - >-
    A release is an immutable build of an app in C(/srv/<app>/releases/<id>): its code, virtual environment and configuration. A
    build does not affect the live release.
  - The id is a hash of the inputs, so that equal inputs are built once.
  - The host is not contacted if the variable C(__funnel_host_state), the RV(funnel.tornado.preflight#module:host_state) of a
    check in the same run, shows that the release is live and complete.
options:
  name:
    description: The app, a key of O(apps); O(names) names several.
    type: str
  names:
    description:
      - Apps that are built concurrently, one for each CPU, as far as the host has 512 MiB of free memory for each. All builds are
        completed, also if one fails.
    type: list
    elements: str
  apps:
    description: The value of C(tornado_apps).
    type: dict
    required: true
  version:
    description: Version to use instead of the version in the entry, with O(name).
    type: str
  versions:
    description: Versions to use instead of those in the entries, by app, with O(names).
    type: dict
    default: {}
  again:
    description:
      - Whether to deploy a release that was rolled back from. Otherwise such a release stays on the host, and the live one stays
        live, with a warning, or with an error if O(version) names it.
    type: bool
    default: false
  wait:
    description: Seconds to wait for another deploy of the app on this host.
    type: int
    default: 60
  preempt:
    description: Whether to preempt a deploy of the app that is running, instead of waiting for it.
    type: bool
    default: false
  builds:
    description: "Set by the action plugin: the entry and the source of each app, as JSON."
    type: str
    default: ""
  launcher:
    description: "Set by the action plugin: the launcher, which starts the processes of the app."
    type: str
    default: ""
  runner:
    description: "Set by the action plugin: the files of the runner, which serves the app, as JSON."
    type: str
    default: ""
  builder:
    description: "Set by the action plugin: the operator and the controller."
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode:
    support: full
    description:
      - Reports the release that would be built, its revision and number of processes, even on a host without the roles.
      - Queries a git repository for its commit, and fetches nothing.
  diff_mode:
    support: full
    description: Shows the live release and the new one, without commands and settings.
author:
  - The funnel.tornado developers (@funnel)
"""

EXAMPLES = r"""
- name: Build the release of the shop
  funnel.tornado.release:
    name: shop
    apps: "{{ tornado_apps }}"

- name: Build the releases of all apps
  funnel.tornado.release:
    names: "{{ tornado_apps | list }}"
    apps: "{{ tornado_apps }}"
  register: built
"""

RETURN = r"""
results:
  description: With O(names), the following values for each app, which is C(item), and C(msg) for a build that failed.
  returned: with O(names), also after a failure
  type: list
  elements: dict
once:
  description: Whether a hook of the app runs on one host before the others switch.
  returned: success
  type: bool
waiting:
  description:
    - Whether the app waits for its first push to C(source.push). Then nothing is built, and the live release stays.
    - Afterwards, the pushed source of the live release is built with the current settings.
  returned: success
  type: bool
id:
  description: Id of the release; empty without a release, and in check mode if the host does not have git yet.
  returned: success
  type: str
  sample: 3f1c0a9be2d4
live:
  description: Id of the live release; empty without one.
  returned: success
  type: str
settled:
  description:
    - Whether nothing is left to do. The release is live with all its processes, and no interrupted switch must be completed; or
      the release was rolled back from, so it stays inactive, and no switch must be completed either.
  returned: success
  type: bool
stays:
  description: Whether the live release stays, because an operator rolled back from this one.
  returned: success
  type: bool
content:
  description: Hash of the release, the same on all hosts with the same desired state, whatever their Python and CPUs.
  returned: success, if the release is on the host
  type: str
revision:
  description:
    - Revision of the source. The commit of a git repository or push, the hash of the files of a path or of an archive, the name
      and version of a package, or the hash of the dependencies of a directory on the host.
    - Empty before the first push, and in check mode if the host does not have git yet.
  returned: success
  type: str
  sample: 8f2b1c0d9e3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c
reasons:
  description:
    - Why the release differs from the live one, empty if it is the live one. V(code), V(dependencies), V(collection) for another
      version of the collection, V(damaged files) of the live release, V(first release), and the names of changed keys of the
      entry.
    - Check mode cannot compare the dependencies of code that is not on the host.
  returned: success, if the app has a release
  type: list
  elements: str
  sample: [code, env.SAMPLE_THEME]
environment:
  description: Whether the virtual environment was V(built), or V(reused) from a release with the same dependencies.
  returned: when the release was built
  type: str
  sample: reused
"""

import base64
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building import git
from ansible_collections.funnel.tornado.plugins.module_utils.building.changes import change_reasons
from ansible_collections.funnel.tornado.plugins.module_utils.building.integrity import is_damaged
from ansible_collections.funnel.tornado.plugins.module_utils.building.kept_files import (
    KeptFileError,
    complete_archive,
    held_files,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import content_hash, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import (
    Programs,
    build_release,
    choose_undamaged,
    live_pushed_source,
    plan_release,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable, printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.core.workers import memory_limit, run_concurrently
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.settled import fixed_revision, is_settled
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import has_inactive_slot
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError, build_environment, ensure_home

ARGUMENTS = {
    "name": {"type": "str"},
    "names": {"type": "list", "elements": "str"},
    "apps": {"type": "dict", "required": True},
    "version": {"type": "str"},
    "versions": {"type": "dict", "default": {}},
    # no_log keeps large texts out of the host's journal, to which Ansible writes the options of a module.
    "builds": {"type": "str", "default": "", "no_log": True},
    "launcher": {"type": "str", "default": "", "no_log": True},
    "runner": {"type": "str", "default": "", "no_log": True},
    "builder": {"type": "str", "default": ""},
    "again": {"type": "bool", "default": False},
    "preempt": {"type": "bool", "default": False},
    "wait": {"type": "int", "default": 60},
}


#: Memory that must be free for each concurrent build.
BUILD_MEMORY = 512 << 20


@dataclass(frozen=True)
class Build:
    """The build of an app, as the action plugin requests it: ``content`` is a small source in Base64, ``archive`` a file.

    If the archive is incomplete, ``base`` is the release that has the other files.
    """

    app: App
    revision: str = ""
    version: str | None = None
    archive: str | None = None
    base: str | None = None
    content: str | None = None


def main() -> None:
    """Plan the releases, and build those that do not exist."""
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True, mutually_exclusive=[("name", "names")])
    os.umask(0o022)  # independent of root's umask: nginx must traverse the directories
    os.environ.update(build_environment())  # certificates and proxy for downloads
    try:
        builds = [Build(load({name: entry.pop("app")}, complete=False)[name], **entry) for name, entry in requested(module)]
    except InvalidDataError as error:
        module.fail_json(msg=printable_message(str(error)))
    secrets = [secret for build in builds for secret in build.app.sensitive_values]
    module.no_log_values.update(secrets, map(printable, secrets))  # the output of a build may contain them
    limit = min(len(os.sched_getaffinity(0)), memory_limit(BUILD_MEMORY))
    # Not in Ansible's directory, which may be in a home that is read-only. This process removes it, as a child may be killed.
    try:
        with tempfile.TemporaryDirectory(prefix="funnel-") as directory:
            builds = [unpacked(build, Path(directory)) for build in builds]
            found = run_concurrently(lambda build: perform(module, build), builds, limit)
    except OSError as error:
        module.fail_json(msg=printable_message(error_text(error)))
    results = [result or killed(build) for build, result in zip(builds, found, strict=True)]
    for result in results:
        if warning := result.pop("warning", ""):
            module.warn(warning)
    module.exit_json(changed=any(result["changed"] for result in results), results=results)


def requested(module: AnsibleModule) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and arguments of the builds."""
    return list(json.loads(module.params["builds"]).items())


def unpacked(build: Build, directory: Path) -> Build:
    """Return the build with the source that its options contain in a file."""
    if build.content is None:
        return build
    file = directory / build.app.name
    file.write_bytes(base64.b64decode(build.content))
    return replace(build, archive=str(file), content=None)


def killed(build: Build) -> dict[str, Any]:
    """Return the result of a build whose process was killed."""
    name = build.app.name
    return {"item": name, "changed": False, "failed": True, "msg": f"{name}: the build was killed; run the same command again"}


def perform(module: AnsibleModule, build: Build) -> dict[str, Any]:
    """Return the result of an app, with ``failed`` and ``msg`` after a failure."""
    layout = Layout(build.app.name)
    try:
        if module.check_mode:
            result = release(module, layout, build)
        else:
            home_changed = ensure_home(layout)
            preempt = "deploy" if module.params["preempt"] else ""
            with deploy_lock(layout, module.params["builder"], wait=module.params["wait"], preempt=preempt) as note:
                note("the build of a release")
                result = release(module, layout, build, lambda release: note("the build of a release", release))
            if "changed" in result:
                result["changed"] |= home_changed
        result = complete(layout, build, result)
    except (BuildError, InvalidDataError, LockedError, OSError) as error:
        result = {"changed": False, "failed": True, "msg": printable_message(error_text(error))}
    return {"item": build.app.name} | result


def complete(layout: Layout, build: Build, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with the live release."""
    release, rolled_back = result.get("id", ""), result.pop("rolled_back", "")
    if rolled_back and build.version:
        return {"changed": False, "failed": True, "msg": rolled_back}
    if layout.is_built(release):
        result["content"] = content_hash(layout, read_manifest(layout, release))
    # A rolled-back app is only to be completed: the live release stays.
    live = layout.live_release() or ""
    settled = not (live and has_inactive_slot(layout)) if rolled_back else is_settled(layout, release)
    state = {"live": live, "settled": settled, "stays": bool(rolled_back)}
    return {"changed": False, "warning": rolled_back} | state | result


def rollback_notice(layout: Layout, release: str) -> str:
    """Return the notice that a release is not brought back, because an operator rolled back from it; empty if none did."""
    entry, live = history.newest_entries(layout).get(release), layout.live_release()
    if entry is None or not entry.rollback or release == live:
        return ""
    return printable_message(
        f"{layout.app}: release {release} of revision {entry.revision} was rolled back {entry.rollback}; "
        f"{f'release {live}' if live else 'no release'} stays live until its inputs change, or until a deploy with -e again=true"
    )


def release(
    module: AnsibleModule, layout: Layout, build: Build, on_build: Callable[[str], None] = lambda _release: None
) -> dict[str, Any]:
    """Return the result of a build; ``needs_source`` makes the action plugin send the source and run the module again."""
    app = build.app
    pushed = live_pushed_source(layout) if app.source.push is not None else None
    if app.source.push is not None and pushed is None:
        return {"changed": False, "id": layout.live_release() or "", "revision": "", "waiting": True}
    revision = pushed.revision if pushed else find_revision(module, layout, build)
    if revision is None:
        unresolved = f"a release of {app.source.version or 'the default branch'}, whose commit is still unknown\n"
        return {"changed": True, "id": "", "revision": "", "diff": difference(layout, unresolved)}
    programs = Programs(module.params["launcher"], json.loads(module.params["runner"]))
    planned = plan_release(app, revision, programs)
    result: dict[str, Any] = {"id": planned.id, "revision": revision}
    if not module.params["again"] and (notice := rollback_notice(layout, planned.id)):
        return result | {"changed": False, "rolled_back": notice}
    planned = choose_undamaged(layout, planned)
    result |= {"id": planned.id, "changed": not layout.is_built(planned.id)}
    if not result["changed"]:
        return result | {"reasons": change_reasons(layout, app, planned, programs)}
    result["diff"] = difference(layout, f"{planned.summary}\n")
    if module.check_mode:
        return result | {"reasons": change_reasons(layout, app, planned, programs)}
    try:
        archive = pushed.archive if pushed else sent_source(layout, build)
    except KeptFileError:
        return {"needs_source": True}
    if archive is None and (app.source.path is not None or (app.source.archive is not None and not app.source.archive_is_url)):
        return {"needs_source": True} | (offer(layout) if app.source.path is not None else {})
    on_build(planned.id)
    environment = build_release(layout, app, planned, programs, archive, module.params["builder"])
    reasons = change_reasons(layout, app, planned, programs)
    return result | {"environment": "built" if environment.built else "reused", "reasons": reasons}


def sent_source(layout: Layout, build: Build) -> Path | None:
    """Return the file with the source that the controller sent; None if it sent none.

    :raises KeptFileError: if a file that this host offered is gone.
    """
    if build.archive is None or build.base is None:
        return Path(build.archive) if build.archive else None
    whole = Path(f"{build.archive}.whole")
    complete_archive(Path(build.archive), layout.release(build.base) / "src", whole)
    return whole


def offer(layout: Layout) -> dict[str, Any]:
    """Return the live release and the digests of its files, which the controller need not send."""
    live = layout.live_release()
    if live is None or not layout.is_built(live) or is_damaged(layout, live):
        return {}
    held = list(held_files(layout.release(live) / "src"))
    return {"base": live, "held": held} if held else {}


def find_revision(module: AnsibleModule, layout: Layout, build: Build) -> str | None:
    """Return the revision of the source; None if only a fetch can resolve it."""
    app = build.app
    if app.source.git is not None:
        return git.query_commit(layout, app) if module.check_mode else git.fetch_commit(layout, app)
    return fixed_revision(app, build.revision)


def difference(layout: Layout, after: str) -> dict[str, str]:
    """Return the diff from the live release."""
    live = layout.live_release()
    before = f"{read_manifest(layout, live).summary}\n" if live and layout.is_built(live) else "nothing\n"
    return {"before": before, "after": after, "before_header": f"release of {layout.app}"}


if __name__ == "__main__":
    main()
