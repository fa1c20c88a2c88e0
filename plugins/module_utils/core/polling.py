"""Polling and retries with deadlines on the monotonic clock, and a limit on the time of a block."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class Deadline:
    """A point in time, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        """Start the clock."""
        self._end = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(self._end - time.monotonic(), 0.0)

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._end


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise `TimeoutError` with ``message`` in a block that takes longer, such as in a parser of untrusted text.

    The block must run in the main thread, and must not use this function itself.
    """

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(message)

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def poll(query: Callable[[], T], until: Callable[[T], object], *, timeout: float, interval: float) -> T:
    """Call ``query`` until its result satisfies ``until`` or ``timeout`` seconds have passed; return its last result.

    It is called at least once, with pauses of ``interval`` seconds.
    """
    deadline = Deadline(timeout)
    while not until(result := query()) and not deadline.expired:
        time.sleep(interval)
    return result


def retry(call: Callable[[], T], error: type[E], is_temporary: Callable[[E], object], *, timeout: float, interval: float) -> T:
    """Return the result of ``call``; repeat it for up to ``timeout`` seconds while it raises a temporary ``error``.

    :raises E: the error that is not temporary, or the last one.
    """
    deadline = Deadline(timeout)
    while True:
        try:
            return call()
        except error as raised:
            if not is_temporary(raised) or deadline.expired:
                raise
        time.sleep(interval)
