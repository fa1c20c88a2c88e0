"""Errors that have an answer of their own."""

from __future__ import annotations

from tornado.web import HTTPError

NO_DATABASE = "there is no database: set MONGODB_URI or MONGODB_HOST"


class UnavailableError(HTTPError):
    """Something that this app stands on does not answer, or is not there: the client gets 503 and the reason."""

    def __init__(self, reason: str, details: object = "") -> None:
        """Take the reason that clients may read, and details for the log only."""
        super().__init__(503, f"{reason}: {details}" if details else reason, reason=reason)
