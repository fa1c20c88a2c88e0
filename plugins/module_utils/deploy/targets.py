"""What an app of a host can be rolled back to: the live release, the releases that served before, and a deploy in progress."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import applied, undamaged
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import content_hash, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import preemptible_holder

#: Releases that are reported of each app.
MAX_RELEASES = 20


def deployed_apps(base: Path = Path("/")) -> list[Layout]:
    """Return the apps that have been deployed to this host."""
    return [Layout(path.parent.name, base) for path in sorted(base.glob("srv/*/history.json"))]


def rollback_state(layout: Layout) -> dict[str, Any]:
    """Return the ``live`` release of an app, its ``releases``, newest first, and the release that is ``starting``.

    ``site_options`` are those with which nginx serves the app.

    ``starting`` is empty without a deploy that builds or starts another release than the live one. A release has the keys of the
    history's newest entry, ``built`` and ``content``, which is the same on all hosts with the same desired state.
    """
    live, holder = layout.live_release() or "", preemptible_holder(layout)
    starting = holder.release if holder and holder.release != live else ""
    entries = list(history.newest_entries(layout).values())[:MAX_RELEASES]
    releases = [_release(layout, entry) for entry in entries]
    return {"live": live, "starting": starting, "site_options": applied(layout), "releases": releases}


def _release(layout: Layout, entry: history.HistoryEntry) -> dict[str, Any]:
    try:
        content = content_hash(layout, read_manifest(layout, entry.release)) if layout.is_built(entry.release) else ""
    except (OSError, ValueError):  # a damaged release must not prevent a rollback to another one
        content = ""
    options = undamaged(entry.site_options)
    return {**dataclasses.asdict(entry), "site_options": options, "built": bool(content), "content": content}
