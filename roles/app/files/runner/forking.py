"""Child processes that share the socket or port (``--fork``)."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tornado import process

from .errors import RunnerError, log
from .sockets import Endpoint, is_readable


class Children:
    """Forks children, restarts those that exit, and stops them with their parent.

    `tornado.process.fork_processes` restarts a child that exits, but does not stop the children when the parent receives a
    signal or is killed. So they watch a socket whose other end only the parent holds: when it closes, they drain.
    """

    def __init__(self, endpoint: Endpoint | None, serving: mmap.mmap, exit_now: Callable[[int], NoReturn]) -> None:
        """Prepare to fork.

        :arg serving: shared memory, not 0 once a child serves.
        :arg exit_now: ends the parent with an exit status.
        """
        self.endpoint = endpoint
        self.serving = serving
        self.exit_now = exit_now
        self.parent = os.getpid()
        self.parent_end, self.child_end = socket.socketpair()

    def fork(self, count: int) -> socket.socket:
        """Return in each child, with the socket to watch; the parent exits in here, by SystemExit or RunnerError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        try:
            process.fork_processes(count)
        except RuntimeError:
            raise RunnerError("giving up: child processes exit repeatedly") from None
        except SystemExit:
            if not self.serving[0] and self.parent_end.fileno() != -1:
                raise RunnerError("giving up: no child process could serve") from None
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.parent_end.close()
        if is_readable(self.child_end):  # the parent stopped before this child started
            sys.exit(0)
        return self.child_end

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Drain the children at the first signal, and kill them at the second one; the parent's signal handler."""
        if os.getpid() != self.parent:  # a child that has not installed its own handler yet
            os._exit(0)
        name = signal.Signals(number).name
        if self.parent_end.fileno() == -1:
            log.warning("received %s again: exiting immediately", name)
            for child in Path("/proc/thread-self/children").read_text(encoding="utf-8").split():
                os.kill(int(child), signal.SIGKILL)
            self.exit_now(1)
        log.info("received %s: stopping", name)
        self.parent_end.close()
        if self.endpoint is not None:
            self.endpoint.close()
