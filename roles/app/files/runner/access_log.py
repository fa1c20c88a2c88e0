"""The access log: one line for each response, in the format of Tornado, for all kinds of applications."""

from __future__ import annotations

import logging
import os
import time

from tornado.log import access_log
from tornado.web import RequestHandler

from .logs import BufferedHandler, LineFormatter

CALL_HANDLERS = logging.Logger.callHandlers
"""The original method, which tools for error tracking and tracing replace in order to see all records."""


def log_response(status: int, summary: str, seconds: float) -> None:
    """Log a response: its status, the request's method, target and client, and the duration.

    A successful response is formatted without a ``LogRecord``, which takes two thirds of the time of a line, unless anything
    else handles the records of the access log, such as a handler or filter of the application.
    """
    if status < 400 and (output := find_output()) is not None:
        handler, formatter = output
        message = f"{status} {summary} {1000 * seconds:.2f}ms"
        handler.write(formatter.line(time.time(), "INFO", access_log.name, os.getpid(), message))
    else:
        level = logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
        access_log.log(level, "%d %s %.2fms", status, summary, 1000 * seconds)


def find_output() -> tuple[BufferedHandler, LineFormatter] | None:
    """Return the runner's handler and formatter if lines of level INFO are written by them alone, as configured at the start."""
    root = logging.root
    if (
        len(root.handlers) != 1
        or access_log.handlers
        or access_log.filters
        or access_log.disabled
        or access_log.parent is not root  # the logger "tornado" exists, which may have handlers
        or not access_log.propagate
        or not access_log.isEnabledFor(logging.INFO)
        or logging.getLogRecordFactory() is not logging.LogRecord
        or logging.Logger.callHandlers is not CALL_HANDLERS
    ):
        return None
    handler = root.handlers[0]
    formatter = handler.formatter
    if not (isinstance(handler, BufferedHandler) and isinstance(formatter, LineFormatter)):
        return None
    return None if handler.filters or handler.level > logging.INFO else (handler, formatter)


def log_request(handler: RequestHandler) -> None:
    """Log the response of a handler: the setting ``log_function`` of a Tornado application."""
    log_response(handler.get_status(), handler._request_summary(), handler.request.request_time())
