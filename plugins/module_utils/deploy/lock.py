"""The deploy lock: it serializes the deploys of an app on a host, names its holder, and lets a rollback preempt a deploy."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

from ansible_collections.funnel.tornado.plugins.module_utils.core import private, proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

#: Seconds between two attempts.
INTERVAL = 0.05

#: Seconds that a preempted deploy gets to clean up before it is killed, which every step of a deploy survives.
PREEMPTION_TIMEOUT = 5.0

#: Characters of the holder's description that are read.
MAX_HOLDER_SIZE = 10_000


class LockedError(Exception):
    """Another deploy of the app is running on this host. The message names its operator, its start and its current step."""


class PreemptedError(LockedError):
    """Another operation preempted this deploy. The message names it, its operator and the interrupted step."""


@dataclass(frozen=True)
class Holder:
    """The operation that holds a lock: its operator, start, current step, and the release that it is bringing live, if known.

    ``pid`` is its process if it can be preempted, otherwise 0.
    """

    by: str
    since: str
    doing: str
    release: str = ""
    pid: int = 0

    def __str__(self) -> str:
        """Return the description for messages."""
        by = self.by or "an unknown operator"
        return printable(f"started by {by} at {self.since}, current step: {self.doing}", line=True)


class NoteStep(Protocol):
    """Records the current step of the holder, and the release that it is bringing live."""

    def __call__(self, step: str, release: str = "") -> None:
        """Record the step."""


@contextlib.contextmanager
def deploy_lock(layout: Layout, by: str, *, wait: float = 0, preempt: str = "", preemptible: bool = True) -> Iterator[NoteStep]:
    """Hold the deploy lock of an app, whose directory must exist; yield a function that records the current step.

    The kernel's flock(2) ends with the process that holds it, so a killed deploy leaves no lock, whatever the file contains.

    :arg by: the operator of the deploy.
    :arg wait: seconds to wait for another deploy.
    :arg preempt: the name of this operation, such as ``rollback``, if it ends another deploy that can be preempted.
    :arg preemptible: whether another operation may preempt this one. Only the main thread of a process can be preempted.
    :raises LockedError: when the other deploy takes longer.
    :raises PreemptedError: when this deploy is preempted, in the body of the context.
    :raises FileNotFoundError: when the app is not on this host, or has been removed meanwhile.
    """
    deadline = Deadline(max(wait, 2 * PREEMPTION_TIMEOUT) if preempt else wait)
    with contextlib.ExitStack() as opened:
        while True:
            file = opened.enter_context(os.fdopen(private.open_file(layout.lock), "r+", encoding="utf-8"))
            _acquire(layout, file, deadline, {"by": by, "operation": preempt} if preempt else None)
            # A removal of the app may have deleted the locked file.
            if layout.lock.exists() and os.path.samestat(os.fstat(file.fileno()), layout.lock.stat()):
                break
        layout.preemption.unlink(missing_ok=True)  # the request of this process, or of a killed one
        os.fchmod(file.fileno(), 0o600)  # early versions of the collection created it readable to all users
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        can_handle_signals = threading.current_thread() is threading.main_thread()
        holder = Holder(by, since, "starting", pid=os.getpid() if preemptible and can_handle_signals else 0)

        def note_step(step: str, release: str = "") -> None:
            nonlocal holder
            holder = replace(holder, doing=step, release=release)
            with contextlib.suppress(OSError):  # a full disk must not prevent a rollback
                record = json.dumps(asdict(holder)).encode()
                # Not buffered: closing the file would fail again, and hide the first error. Nor truncated before, which would
                # free the space that the record needs.
                os.pwrite(file.fileno(), record, 0)
                file.truncate(len(record))

        def end_deploy(_number: int, _frame: object) -> None:
            request = _read(layout.preemption)
            if request is not None:
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)
                raise PreemptedError(_preemption_message(layout, request, holder))

        if holder.pid:
            signal.signal(signal.SIGUSR1, end_deploy)
        try:
            note_step("starting")
            yield note_step
        finally:
            if holder.pid:
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a late request must not kill the process
            file.truncate(0)


def _acquire(layout: Layout, file: TextIO, deadline: Deadline, request: dict[str, str] | None) -> None:
    """Lock the file; with a ``request``, preempt its holders.

    :raises LockedError: when the deadline passes.
    """
    kill = Deadline(PREEMPTION_TIMEOUT)
    while not _try_lock(file):
        if deadline.expired:
            holder = read_holder(layout)
            raise LockedError(
                f"{layout.app}: another deploy is running on this host{f', {holder}' if holder else ''}; try again when it has "
                f"finished{', or preempt it with -e preempt=true' if holder and holder.pid and not request else ''}"
            )
        if request is not None:
            with contextlib.suppress(OSError):  # without it, such as on a full disk, the deploy is killed below
                _write_request(layout, request)
            _signal_holder(layout, file, signal.SIGKILL if kill.expired else signal.SIGUSR1)
        time.sleep(INTERVAL)


def _write_request(layout: Layout, request: dict[str, str]) -> None:
    with os.fdopen(private.open_file(layout.preemption), "w", encoding="utf-8") as file:
        file.truncate()
        json.dump(request, file)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signal_holder(layout: Layout, file: TextIO, number: signal.Signals) -> None:
    """Send a signal to the holder if it can be preempted.

    The kernel confirms that the process holds the lock after its PID has been pinned, so a reused PID is never signaled.
    """
    holder = read_holder(layout)
    if holder is None or not holder.pid:
        return
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(holder.pid)
        try:
            if proc.holds_flock(holder.pid, file.fileno()):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def read_holder(layout: Layout) -> Holder | None:
    """Return who holds the lock, as far as the holder has written it; None also if the holder ended without removing it."""
    found = _read(layout.lock)
    try:
        return Holder(**found) if found else None
    except TypeError:
        return None


def preemptible_holder(layout: Layout) -> Holder | None:
    """Return the operation that holds the lock now, if it can be preempted."""
    holder = read_holder(layout)
    if holder is None or not holder.pid:
        return None
    with contextlib.suppress(FileNotFoundError), layout.lock.open(encoding="utf-8") as file:
        return holder if proc.holds_flock(holder.pid, file.fileno()) else None
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a small file of this module; None if it is missing or incomplete."""
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.read(MAX_HOLDER_SIZE))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _preemption_message(layout: Layout, request: dict[str, Any], holder: Holder) -> str:
    by = f"a {request.get('operation')} of {request.get('by') or 'an unknown operator'}"
    return printable(f"{layout.app}: this deploy was preempted by {by} during the step: {holder.doing}", line=True)
