"""Replacement of a running process (``--replace``) without refused connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from .errors import RunnerError, log, reason
from .options import Options
from .pid_file import PidFile
from .sockets import Endpoint

KILL_GRACE = 5.0
"""Seconds beyond ``--drain`` after which a process that was stopped is killed."""

RETRY_INTERVAL = 0.02
"""Seconds between two attempts to bind a port that a replaced process still uses."""


class Predecessor:
    """A process that this one replaces."""

    def __init__(self, pid: int) -> None:
        """Open a descriptor of the process, if it is alive; raise RunnerError if that fails.

        The descriptor (pidfd_open(2)) refers to this process even if its id is reused before it is stopped.
        """
        self.pid = pid
        self.fd: int | None = None
        try:
            self.fd = os.pidfd_open(pid)
            signal.pidfd_send_signal(self.fd, 0)
        except ProcessLookupError:
            self.close()
        except OSError as error:
            raise RunnerError(f"cannot replace process {pid}: {reason(error)}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process is alive."""
        if self.fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.fd, number)

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def kill(self) -> None:
        """Kill the process, if it is alive."""
        self.send(signal.SIGKILL)
        self.close()


class Replacement:
    """The processes named by ``--replace`` that are alive, and the takeover of their pid file and socket or port."""

    def __init__(self, options: Options) -> None:
        """Open the processes; raise RunnerError if that fails."""
        self.options = options
        self.predecessors = [found for found in map(Predecessor, options.replace) if found.fd is not None]

    def take_pid_file(self) -> PidFile | None:
        """Take over the pid file, if there is one; raise RunnerError if another process holds it."""
        if self.options.pid_file is None:
            return None
        return PidFile(self.options.pid_file, replaced=[predecessor.pid for predecessor in self.predecessors])

    async def take_endpoint(self) -> Endpoint:
        """Take over the socket or port; raise RunnerError if that fails."""
        options = self.options
        if options.socket is not None or options.reuse_port:
            return Endpoint(options, replace=True)
        loop = asyncio.get_running_loop()
        end = loop.time() + options.drain + 2 * KILL_GRACE
        self.stop()
        while True:
            try:
                return Endpoint(options)
            except RunnerError:
                if loop.time() > end:
                    raise
            await asyncio.sleep(RETRY_INTERVAL)

    def stop(self) -> None:
        """Start the graceful shutdown of the replaced processes, and kill those that exceed the timeout."""
        for predecessor in self.predecessors:
            log.info("replacing pid %d", predecessor.pid)
            predecessor.send(signal.SIGTERM)
            asyncio.get_running_loop().call_later(self.options.drain + KILL_GRACE, predecessor.kill)
        self.predecessors = []
