"""Which releases of an app were served on a host, and when: what a rollback may go back to."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, replace

from ansible_collections.funnel.tornado.plugins.module_utils.core import private
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

#: Entries that are kept: years of weekly releases, and a file of some kilobytes.
LENGTH = 200


@dataclass(frozen=True)
class Served:
    """A release that went live: its id, the revision of its source, when (ISO 8601, UTC), and who asked for it.

    ``undone`` says why traffic went back, if it did.
    """

    release: str
    revision: str
    at: str
    by: str = ""
    undone: str = ""


def read(layout: Layout) -> list[Served]:
    """Return what was served, oldest first."""
    if not layout.history.exists():
        return []
    return [Served(**entry) for entry in json.loads(layout.history.read_text())]


def record(layout: Layout, release: str, revision: str, by: str) -> None:
    """Add a release that has just gone live."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _write(layout, [*read(layout), Served(release, revision, now, by)])


def undo(layout: Layout, release: str, reason: str) -> None:
    """Note of the latest entry, if it is of ``release``, why traffic has gone back from it."""
    entries = read(layout)
    if entries and entries[-1].release == release:
        _write(layout, [*entries[:-1], replace(entries[-1], undone=reason)])


def latest(layout: Layout) -> str | None:
    """Return the release that went live last and was not undone."""
    return next((entry.release for entry in reversed(read(layout)) if not entry.undone), None)


def _write(layout: Layout, entries: list[Served]) -> None:
    new = layout.history.with_name(".history.json")
    new.unlink(missing_ok=True)  # of a run that was broken off
    private.write(new, json.dumps([asdict(entry) for entry in entries[-LENGTH:]], indent=1))
    new.rename(layout.history)


def is_private(layout: Layout) -> bool:
    """Say whether nobody but root may read the history; those that the collection's first releases wrote are readable to all."""
    return not layout.history.exists() or not layout.history.stat().st_mode & 0o077


def make_private(layout: Layout) -> None:
    """Close the history to other users."""
    _write(layout, read(layout))


def previous(layout: Layout) -> str | None:
    """Return the release that was served before the one that is, and was not undone; None when there was none."""
    now = layout.live_release()
    return next((entry.release for entry in reversed(read(layout)) if entry.release != now and not entry.undone), None)
