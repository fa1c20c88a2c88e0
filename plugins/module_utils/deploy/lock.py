"""The deploy lock, which serializes the deploys of an app on a host and reports its holder to those who wait for it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TextIO

from ansible_collections.funnel.tornado.plugins.module_utils.core import private
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline, poll
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

#: Seconds between two attempts.
INTERVAL = 0.1

#: Characters of the holder's description that are read.
MAX_HOLDER_SIZE = 10_000

#: Records the current step of the holder.
NoteStep = Callable[[str], None]


class LockedError(Exception):
    """Another deploy of the app is running on this host. The message names its operator, its start and its current step."""


@contextlib.contextmanager
def deploy_lock(layout: Layout, by: str, *, wait: float = 0) -> Iterator[NoteStep]:
    """Hold the deploy lock of an app, whose directory must exist; yield a function that records the current step.

    The kernel's flock(2) ends with the process that holds it, so a killed deploy leaves no lock, whatever the file contains.

    :arg by: the operator of the deploy.
    :arg wait: seconds to wait for another deploy.
    :raises LockedError: when the other deploy takes longer.
    :raises FileNotFoundError: when the app is not on this host, or has been removed meanwhile.
    """
    deadline = Deadline(wait)
    with contextlib.ExitStack() as opened:
        while True:
            file = opened.enter_context(os.fdopen(private.open_file(layout.lock), "r+", encoding="utf-8"))
            if not poll(partial(_try_lock, file), bool, timeout=deadline.remaining, interval=INTERVAL):
                raise LockedError(
                    f"{layout.app}: another deploy is running on this host{_holder(file)}; try again when it has finished"
                )
            # A removal of the app may have deleted the locked file.
            if layout.lock.exists() and os.path.samestat(os.fstat(file.fileno()), layout.lock.stat()):
                break
        os.fchmod(file.fileno(), 0o600)  # early versions of the collection created it readable to all users
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

        def note_step(step: str) -> None:
            with contextlib.suppress(OSError):  # a full disk must not prevent a rollback
                file.truncate(0)
                # Not buffered: closing the file would fail again, and hide the first error.
                os.pwrite(file.fileno(), json.dumps({"by": by, "since": since, "doing": step}).encode(), 0)

        try:
            note_step("starting")
            yield note_step
        finally:
            file.truncate(0)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: TextIO) -> str:
    """Return who holds the lock, since when and at which step; empty until the holder has written it."""
    file.seek(0)
    try:
        holder = json.loads(file.read(MAX_HOLDER_SIZE))
        text = f", started by {holder['by'] or 'an unknown operator'} at {holder['since']}, current step: {holder['doing']}"
    except (KeyError, TypeError, ValueError):
        return ""
    return printable(text, line=True)
