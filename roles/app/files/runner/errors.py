"""Errors that prevent an application from being served, and the logger of the runner."""

from __future__ import annotations

import logging

#: The runner's own logger, whose lines `BufferedHandler` writes immediately.
log = logging.getLogger("runner")


class RunnerError(Exception):
    """Why an application cannot be served, in one line; ``__cause__`` is the application's own exception."""


def reason(error: OSError) -> str:
    """Return the reason of an OS error without errno and file name."""
    return error.strerror or str(error)
