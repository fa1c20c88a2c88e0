"""Remote logging to a syslog daemon over UDP (RFC 5424)."""

from __future__ import annotations

import collections
import contextlib
import logging
import logging.handlers
import os
import socket
import threading
import time
from typing import Any

from .errors import log, reason
from .values import SyslogAddress

RESOLVE_INTERVAL = 30.0
"""Seconds between DNS lookups of the syslog host: it may be unresolvable at first, or move."""

RESOLVE_TIMEOUT = 1.0
"""Maximum seconds that a pending DNS lookup delays the exit of the process, so that its last lines are sent."""

MAX_PENDING_LINES = 1000
"""Lines buffered until the first DNS lookup completes; older ones are dropped."""

MAX_DATAGRAM_BYTES = 8192
"""Maximum datagram size: the default limit of syslog daemons; UDP allows 64 KiB."""


class SyslogHandler(logging.Handler):
    """Sends each line to a syslog daemon as one datagram; never blocks or fails the process.

    The host is resolved in a thread, because an unresponsive resolver would block the event loop for seconds. Lines that
    cannot be sent immediately are dropped: full send buffer, network down, firewall.
    """

    def __init__(self, target: SyslogAddress) -> None:
        """Create the handler; the first line starts the DNS lookup."""
        super().__init__()
        self.target = target
        self.pid = os.getpid()
        self.header = f"{socket.gethostname()} {os.environ.get('TORNADO_APP') or 'tornado'} {self.pid} - -"
        self.pending: collections.deque[bytes] = collections.deque(maxlen=MAX_PENDING_LINES)
        self.destination: tuple[socket.socket, Any] | None = None
        self.failure_logged = False
        self.next_resolution = 0.0
        self.resolved = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line, or buffer it until the host is resolved."""
        try:
            severity = logging.handlers.SysLogHandler.priority_map.get(record.levelname, "warning")
            priority = logging.handlers.SysLogHandler.LOG_USER << 3 | logging.handlers.SysLogHandler.priority_names[severity]
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            line = f"<{priority}>1 {when}.{int(record.msecs):03d}Z {self.header} {self.format(record)}"
            self.pending.append(line.encode(errors="replace")[:MAX_DATAGRAM_BYTES])
            if time.monotonic() >= self.next_resolution:
                self.next_resolution = time.monotonic() + RESOLVE_INTERVAL
                self.resolved.clear()
                threading.Thread(target=self.resolve, daemon=True).start()
            self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Send the pending lines."""
        with self.lock or contextlib.nullcontext():
            while self.destination is not None and self.pending:
                sender, address = self.destination
                with contextlib.suppress(OSError):
                    sender.sendto(self.pending.popleft(), address)

    def resolve(self) -> None:
        """Resolve the syslog host; log the first failure, and keep the previous address on later ones."""
        problem = ""
        try:
            family, kind, protocol, _name, address = socket.getaddrinfo(*self.target, type=socket.SOCK_DGRAM)[0]
            sender = socket.socket(family, kind, protocol)
            sender.settimeout(0)
            self.destination = sender, address
        except OSError as error:
            problem = reason(error)
        self.resolved.set()  # without the lock, which close() holds while it waits
        self.flush()
        if problem and self.destination is None and not self.failure_logged:
            self.failure_logged = True
            log.warning("cannot log to udp://%s:%d yet: %s", *self.target, problem)

    def close(self) -> None:
        """Send the last lines of a short-lived process; a forked child does not repeat those of its parent."""
        if self.pid == os.getpid() and self.pending and self.resolved.wait(RESOLVE_TIMEOUT):
            self.flush()
        super().close()
