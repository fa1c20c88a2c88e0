"""Deploy history: the releases of an app that went live on a host, from which a rollback chooses its target."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, replace

from ansible_collections.funnel.tornado.plugins.module_utils.core import private
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

#: Entries in the history: years of weekly releases, in a file of some kilobytes.
MAX_ENTRIES = 200


@dataclass(frozen=True)
class HistoryEntry:
    """A release that went live: its id, the revision of its source, the time (ISO 8601, UTC) and the operator.

    ``undone`` is the reason why the deploy was rolled back, if it was.
    """

    release: str
    revision: str
    at: str
    by: str = ""
    undone: str = ""


def read(layout: Layout) -> list[HistoryEntry]:
    """Return the history, oldest entry first."""
    if not layout.history.exists():
        return []
    return [HistoryEntry(**entry) for entry in json.loads(layout.history.read_text(encoding="utf-8"))]


def record(layout: Layout, release: str, revision: str, by: str) -> None:
    """Add a release that has just gone live."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _write(layout, [*read(layout), HistoryEntry(release, revision, now, by)])


def mark_undone(layout: Layout, release: str, reason: str) -> None:
    """Record in the latest entry, if it is of ``release``, why the deploy was rolled back."""
    entries = read(layout)
    if entries and entries[-1].release == release:
        _write(layout, [*entries[:-1], replace(entries[-1], undone=reason)])


def latest(layout: Layout) -> str | None:
    """Return the latest release that went live and was not rolled back."""
    return next((entry.release for entry in reversed(read(layout)) if not entry.undone), None)


def previous(layout: Layout) -> str | None:
    """Return the rollback target: the latest release before the live one that was not rolled back; None without any."""
    live = layout.live_release()
    return next((entry.release for entry in reversed(read(layout)) if entry.release != live and not entry.undone), None)


def is_private(layout: Layout) -> bool:
    """Return whether only root can read the history. Early versions of the collection left it readable to all users."""
    return not layout.history.exists() or not layout.history.stat().st_mode & 0o077


def make_private(layout: Layout) -> None:
    """Restrict the history to root."""
    _write(layout, read(layout))


def _write(layout: Layout, entries: list[HistoryEntry]) -> None:
    new = layout.history.with_name(".history.json")
    new.unlink(missing_ok=True)  # from an interrupted run
    private.write(new, json.dumps([asdict(entry) for entry in entries[-MAX_ENTRIES:]], indent=1))
    new.rename(layout.history)
