"""The deploy lock: one deploy at a time for an app on a host, and whoever has to wait is told for whom."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from ansible_collections.funnel.tornado.plugins.module_utils.core import private
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

#: Seconds between two tries.
INTERVAL = 0.1

#: Characters that a holder says of itself.
HOLDER_SIZE = 10_000

#: Takes what the holder does at the moment, for those who wait.
Note = Callable[[str], None]


class LockedError(Exception):
    """Another deploy of the app runs on this host. The message says whose, since when, and what it is doing."""


@contextlib.contextmanager
def deploy_lock(layout: Layout, by: str, *, wait: float = 0) -> Iterator[Note]:
    """Hold the app's deploy lock; give a function that notes what is being done.

    It is the kernel's own lock (flock(2)), which ends with the process that holds it: one that was left behind is free,
    whatever the file says.

    The app's directory has to be there.

    :arg by: who asked for the deploy.
    :arg wait: seconds that another deploy is waited for.
    :raises LockedError: when it takes longer than that.
    :raises FileNotFoundError: when the app is not on this host, or has been removed meanwhile.
    """
    give_up = time.monotonic() + wait
    with contextlib.ExitStack() as opened:
        while True:
            file = opened.enter_context(os.fdopen(private.open_file(layout.lock), "r+"))
            while not _take(file):
                if time.monotonic() >= give_up:
                    raise LockedError(
                        f"{layout.app}: another deploy runs on this host{_holder(file)}; try again when it has ended"
                    )
                time.sleep(INTERVAL)
            if layout.lock.exists() and os.path.samestat(os.fstat(file.fileno()), layout.lock.stat()):
                break  # and not a file that was removed together with the app while we waited
        os.fchmod(file.fileno(), 0o600)  # those of the collection's first releases were readable to all for a moment
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

        def note(doing: str) -> None:
            with contextlib.suppress(OSError):  # a full disk may be why traffic has to go back
                file.truncate(0)
                file.seek(0)
                file.write(json.dumps({"by": by, "since": since, "doing": doing}))
                file.flush()

        try:
            note("begin")
            yield note
        finally:
            file.truncate(0)


def _take(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: TextIO) -> str:
    """Return what the holder says of itself; nothing in the moment in which it has not said it yet."""
    file.seek(0)
    try:
        holder = json.loads(file.read(HOLDER_SIZE))
        said = f": {holder['by'] or 'somebody'}'s, since {holder['since']}, now at {holder['doing']}"
    except (KeyError, TypeError, ValueError):
        return ""
    return printable(said, line=True)
