"""Logging: access log and other lines in one format, the handlers of ``--log-to``, and the request id of each line."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import logging.handlers
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tornado import process

from .errors import RunnerError, log, reason
from .options import Options
from .syslog_handler import SyslogHandler
from .values import SyslogAddress

FLUSH_INTERVAL = 0.1
"""Maximum seconds that a log line is buffered."""

REQUEST_ID = contextvars.ContextVar("REQUEST_ID", default="")
"""Id that the reverse proxy assigned to the current request; tasks and threads of the request inherit it."""


VALID_REQUEST_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


def set_request_id(given: str) -> None:
    """Set the id of the current request, if it is one."""
    REQUEST_ID.set(given if VALID_REQUEST_ID.fullmatch(given) else "")


class LineFormatter(logging.Formatter):
    """Formats every record as time, level, logger, process, message.

    ``2026-11-21T03:14:15.926Z INFO  tornado.access [shop a/0 1f2e3d4c pid 812] 200 GET / (10.0.0.1) 1.23ms``
    The id of the request, if any, is appended, as in ``request=9c41f3a7``. Continuation lines, such as those of a traceback,
    are indented, so that a message cannot forge a log line.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Identify the process by TORNADO_APP, TORNADO_SLOT, TORNADO_PROCESS and TORNADO_RELEASE, if set."""
        super().__init__()
        place = "/".join(filter(None, map(environment.get, ("TORNADO_SLOT", "TORNADO_PROCESS"))))
        words = (environment.get("TORNADO_APP"), place, environment.get("TORNADO_RELEASE"), "pid")
        self.context = " ".join(filter(None, words))
        self.second = 0
        self.time = ""

    def line(self, created: float, level: str, logger: str, process: int | None, message: str) -> str:
        """Return a line, and its continuation lines.

        The time is formatted once per second, as that was half of the cost of a line.
        """
        second = int(created)
        if second != self.second:
            self.second, self.time = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        line = f"{self.time}.{int(created % 1 * 1000):03d}Z {level:<5} {logger} [{self.context} {process}] {message}"
        first, *others = line.splitlines()
        if request := REQUEST_ID.get():
            first = f"{first} request={request}"
        return "\n    ".join([first, *others]) if others else first

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        return self.line(record.created, record.levelname, record.name, record.process, super().format(record))


class BufferedHandler(logging.StreamHandler[TextIO]):
    """Writes lines below WARNING in batches, ten times a second; warnings, errors and the runner's own lines immediately.

    The reader of a pipe, such as supervisord, wakes up for each write: one write per request cost it a sixth of a CPU at 3,000
    requests a second. Buffered lines are lost only if the process is killed by a signal that it cannot handle.
    """

    def __init__(self) -> None:
        """Write to stderr."""
        super().__init__()
        self.lines: list[str] = []
        self.scheduled_until = 0.0  # when the flush that an event loop was asked for is due; 0 without one

    def emit(self, record: logging.LogRecord) -> None:
        """Format and write a record, immediately if it is a warning, an error or of the runner itself."""
        try:
            self.write(self.format(record), urgent=record.levelno >= logging.WARNING or record.name == log.name)
        except Exception:
            self.handleError(record)

    def write(self, line: str, *, urgent: bool = False) -> None:
        """Buffer a formatted line; write it immediately if it is ``urgent``, or not from the event loop of the main thread.

        The loops of other threads may end before they would write the line.
        """
        with self.lock or contextlib.nullcontext():
            self.lines.append(f"{line}\n")
        try:
            loop = None if urgent or threading.get_ident() != threading.main_thread().ident else asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        now = time.monotonic()
        if loop is None:
            self.flush()
        elif now >= self.scheduled_until:  # the loop may have ended without the flush
            self.scheduled_until = now + FLUSH_INTERVAL
            loop.call_later(FLUSH_INTERVAL, self.flush)

    def flush(self) -> None:
        """Write the buffered lines; a full disk or a closed pipe does not fail requests."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError):
            lines, self.lines, self.scheduled_until = self.lines, [], 0.0
            self.stream.write("".join(lines))
            super().flush()


def make_handler(target: Path | SyslogAddress | None, options: Options) -> logging.Handler:
    """Open a target of ``--log-to``; raise RunnerError if that fails."""
    if target is None:
        return BufferedHandler()
    if isinstance(target, SyslogAddress):
        return SyslogHandler(target)
    try:
        return logging.handlers.RotatingFileHandler(
            per_process_path(target), maxBytes=options.log_max_bytes, backupCount=options.log_backups, encoding="utf-8"
        )
    except OSError as error:
        raise RunnerError(f"cannot log to {per_process_path(target)}: {reason(error)}") from None


def per_process_path(path: Path) -> Path:
    """Return the path for this process: forked children cannot share a rotated file or a metrics socket."""
    number = process.task_id()
    return path if number is None else path.with_suffix(f".{number}{path.suffix}")


def configure_logging(options: Options) -> None:
    """Send all loggers to ``--log-to``.

    Must run before the import of the application: with handlers on the root logger, ``logging.basicConfig`` and
    ``tornado.options.parse_command_line`` add none.
    """
    handlers = [make_handler(target, options) for target in options.log_to]
    for handler in handlers:
        handler.setFormatter(LineFormatter(os.environ))
    logging.basicConfig(handlers=handlers, level=options.log_level.upper(), force=True)
