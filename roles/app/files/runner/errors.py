"""Errors that prevent an application from being served."""

from __future__ import annotations


class RunnerError(Exception):
    """Why an application cannot be served, in one line; ``__cause__`` is the application's own exception."""


def reason(error: OSError) -> str:
    """Return the reason of an OS error without errno and file name."""
    return error.strerror or str(error)
