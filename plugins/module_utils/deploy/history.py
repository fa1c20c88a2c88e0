"""Deploy history: the releases of an app that went live on a host, from which a rollback chooses its target."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from ansible_collections.funnel.tornado.plugins.module_utils.core import private
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import FULL
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

#: Entries in the history: years of weekly releases, in a file of some kilobytes.
MAX_ENTRIES = 200


@dataclass(frozen=True)
class HistoryEntry:
    """A release that went live: its id, the revision of its source, the time (ISO 8601, UTC) and the operator.

    ``site_options`` are those with which the release last served, from when it was replaced.
    ``undone`` is the reason why the release is no rollback target, if any, and ``undone_at`` the time; ``undone_by`` is the
    operator who rolled back from it.
    """

    release: str
    revision: str
    at: str
    by: str = ""
    undone: str = ""
    undone_by: str = ""
    undone_at: str = ""
    site_options: str = ""

    @property
    def reason(self) -> str:
        """Why, when and by whom the release was undone."""
        at = f" at {self.undone_at}" if self.undone_at else ""
        return f"{self.undone}{at}{f' by {self.undone_by}' if self.undone_by else ''}"

    @property
    def rollback(self) -> str:
        """When and by whom this release was rolled back from; empty if it was not."""
        return f"at {self.undone_at} by {self.undone_by}" if self.undone_by else ""


class DeferrableWrites:
    """Writes that a switch repeats at its end if the disk was full: by then, the processes that filled it may have stopped."""

    def __init__(self) -> None:
        """Defer nothing yet."""
        self._deferred: list[Callable[[], None]] = []

    def write(self, write: Callable[[], None]) -> None:
        """Write now if possible."""
        try:
            write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._deferred.append(write)

    def finish(self) -> None:
        """Repeat the writes that have failed.

        :raises OSError: when the disk is still full.
        """
        while self._deferred:
            self._deferred[0]()
            del self._deferred[0]


def read(layout: Layout) -> list[HistoryEntry]:
    """Return the history, oldest entry first; an empty one if the file is missing or damaged."""
    if not layout.history.exists():
        return []
    try:
        return [HistoryEntry(**entry) for entry in json.loads(layout.history.read_text(encoding="utf-8"))]
    except (TypeError, ValueError):
        return []


def record(layout: Layout, release: str, revision: str, by: str) -> None:
    """Add a release that has just gone live; it keeps its site options until a site with others is applied."""
    earlier = newest_entries(layout).get(release)
    options = earlier.site_options if earlier else ""
    _write(layout, [*read(layout), HistoryEntry(release, revision, _now(), by, site_options=options)])


def mark_undone(layout: Layout, release: str, reason: str, by: str = "") -> None:
    """Record in the newest entry of a release why it was undone and, after a rollback, the operator."""
    _change(layout, release, undone=reason, undone_by=by, undone_at=_now())


def record_site_options(layout: Layout, release: str, options: str) -> None:
    """Record in the newest entry of a release the site options with which it served."""
    _change(layout, release, site_options=options)


def latest(layout: Layout) -> str | None:
    """Return the latest release that went live and was not undone."""
    return next((entry.release for entry in reversed(read(layout)) if not entry.undone), None)


def newest_entries(layout: Layout) -> dict[str, HistoryEntry]:
    """Return the newest entry of each release, newest release first: it decides whether the release served well."""
    newest: dict[str, HistoryEntry] = {}
    for entry in reversed(read(layout)):
        newest.setdefault(entry.release, entry)
    return newest


def previous(layout: Layout) -> str | None:
    """Return the rollback target: the newest release that served well, other than the live one; None without any."""
    live = layout.live_release()
    entries = newest_entries(layout).values()
    return next((entry.release for entry in entries if entry.release != live and not entry.undone), None)


def recently_undone(layout: Layout) -> list[HistoryEntry]:
    """Return the releases that were undone since another one than the live one served well, newest first."""
    live, undone = layout.live_release(), []
    for entry in reversed(read(layout)):
        if entry.undone:
            undone.append(entry)
        elif entry.release != live:
            break
    return undone


def is_private(layout: Layout) -> bool:
    """Return whether only root can read the history. Early versions of the collection left it readable to all users."""
    return not layout.history.exists() or not layout.history.stat().st_mode & 0o077


def make_private(layout: Layout) -> None:
    """Restrict the history to root."""
    _write(layout, read(layout))


def _change(layout: Layout, release: str, **fields: str) -> None:
    """Change the newest entry of a release, if there is one."""
    entries = read(layout)
    for index in reversed(range(len(entries))):
        if entries[index].release == release:
            entries[index] = replace(entries[index], **fields)
            _write(layout, entries)
            return


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(layout: Layout, entries: list[HistoryEntry]) -> None:
    private.write(layout.history, json.dumps([asdict(entry) for entry in entries[-MAX_ENTRIES:]], indent=1))
