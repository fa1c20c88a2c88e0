"""Releases with which nothing is left to do: they are live with all their processes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building import git
from ansible_collections.funnel.tornado.plugins.module_utils.building.environment import directory_revision
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import content_hash, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import (
    Programs,
    choose_undamaged,
    live_pushed_source,
    plan_release,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import read_holder
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import is_live
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import has_leftovers
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError, connect
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError, is_complete


def is_settled(layout: Layout, release: str) -> bool:
    """Return whether a switch to the release would have nothing to do."""
    try:
        return layout.is_built(release) and is_live(layout, release, connect()) and not has_leftovers(layout)
    except SupervisorError:
        return False  # the switch reports it


def fixed_revision(app: App, local: str) -> str | None:
    """Return the revision of a source that can be determined without fetching anything; None for a git repository.

    :arg local: the hash of a source on the controller.
    :raises BuildError: when a directory on this host does not exist, or cannot be read.
    """
    source = app.source
    if source.git is not None:
        return None
    if source.directory is not None:
        return directory_revision(app, Path(source.directory))
    if source.package is not None:
        return f"{source.package}=={source.version}"
    if source.archive_is_url:
        return str(source.checksum).removeprefix("sha256:")
    return local


def settled_releases(entries: Mapping[str, Any], revisions: Mapping[str, str], programs: Programs) -> dict[str, dict[str, str]]:
    """Return the settled releases by app, with their ids, revisions and contents.

    Apps that something else deploys at the moment are omitted.

    :arg entries: the complete entries of the apps.
    :arg revisions: the hashes of the sources on the controller, by app.
    """
    found = {}
    for name, entry in entries.items():
        # An app of which anything is missing or malformed is not settled.
        with contextlib.suppress(BuildError, InvalidDataError, LookupError, OSError, TypeError, ValueError):
            app = load({name: entry}, complete=False)[name]
            if release := _settled_release(app, revisions.get(name, ""), programs):
                found[name] = release
    return found


def _settled_release(app: App, local: str, programs: Programs) -> dict[str, str] | None:
    layout = Layout(app.name)
    if not is_complete(layout) or read_holder(layout) is not None:
        return None
    if app.source.push is not None:
        pushed = live_pushed_source(layout)
        revision = pushed.revision if pushed else None
    elif app.source.git is not None:
        revision = git.query_commit(layout, app)
    else:
        revision = fixed_revision(app, local)
    if revision is None:
        return None
    release = choose_undamaged(layout, plan_release(app, revision, programs)).id
    if not is_settled(layout, release):
        return None
    return {"id": release, "revision": revision, "content": content_hash(layout, read_manifest(layout, release))}
