"""Errors with a response of their own."""

from __future__ import annotations

from tornado.web import HTTPError

NO_DATABASE = "no database is configured: set MONGODB_URI or MONGODB_HOST"


class UnavailableError(HTTPError):
    """A service that this app depends on is unavailable or not configured: the client receives 503 and the reason."""

    def __init__(self, reason: str, details: object = "") -> None:
        """Store the reason for clients, and details for the log only."""
        super().__init__(503, f"{reason}: {details}" if details else reason, reason=reason)
