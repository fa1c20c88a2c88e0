"""Base class of the handlers: JSON errors, request bodies, CORS, cross-origin requests."""

from __future__ import annotations

import json
from http import HTTPStatus
from traceback import format_exception
from typing import Any, ClassVar, NoReturn

from tornado.web import HTTPError, RequestHandler

from sample_app.services import Services
from sample_app.settings import Settings, identity

PREFLIGHT_SECONDS = 600
"""Seconds that a browser may cache a preflight response."""

MAX_BODY_BYTES = 1 << 20
"""Maximum size of a parsed body: parsing blocks the event loop."""


class BaseHandler(RequestHandler):
    """JSON responses and errors, parsed request bodies, and CORS where a handler enables it."""

    cors: ClassVar[bool] = False
    """Whether pages of the origins in ``SAMPLE_ORIGINS`` may use this handler."""

    @property
    def config(self) -> Settings:
        """The app's settings."""
        config: Settings = self.settings["config"]
        return config

    @property
    def services(self) -> Services:
        """The configured services: database and lock server."""
        services: Services = self.settings["services"]
        return services

    def set_default_headers(self) -> None:
        """Set headers of all responses, including errors: responses describe a process and must not be cached."""
        self.set_header("Cache-Control", "no-store")
        if self.cors:
            self.add_header("Vary", "Origin")
            origin = self.request.headers.get("Origin", "")
            if origin in self.config.allowed_origins:
                self.set_header("Access-Control-Allow-Origin", origin)
                self.set_header("Access-Control-Expose-Headers", "Location, Retry-After")

    def check_xsrf_cookie(self) -> None:
        """Reject cross-origin requests that change something: browsers send forms to other sites without a preflight request.

        Tornado calls this before `prepare` for every method except GET, HEAD and OPTIONS. This implementation checks the header
        ``Origin``, which all browsers send with these methods, instead of a cookie: pages need no token, and clients other than
        browsers do not send it. Raises HTTPError 403.
        """
        origin = self.request.headers.get("Origin")
        own = origin is None or origin.partition("://")[2].lower() == self.request.headers.get("Host", "").lower()
        if not own and "Access-Control-Allow-Origin" not in self._headers:
            raise HTTPError(403, f"Origin: {origin}", reason="this origin is not allowed to change anything here")

    @classmethod
    def methods(cls) -> list[str]:
        """Return the HTTP methods that the handler implements."""
        return [
            method
            for method in cls.SUPPORTED_METHODS
            if getattr(cls, method.lower()) is not getattr(RequestHandler, method.lower())
        ]

    def options(self, *_args: str, **_kwargs: str) -> None:
        """Return the allowed methods, and the CORS headers of a preflight response."""
        self.set_status(HTTPStatus.NO_CONTENT)
        self.set_header("Allow", ", ".join(self.methods()))
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", ", ".join(self.methods()))
            self.set_header("Access-Control-Allow-Headers", "Content-Type")
            self.set_header("Access-Control-Max-Age", PREFLIGHT_SECONDS)

    def body(self) -> dict[str, Any]:
        """Parse the request body, JSON or a form. Raises HTTPError 400, 413 or 415."""
        if len(self.request.body) > MAX_BODY_BYTES:
            raise HTTPError(413)
        content_type = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type in ("application/x-www-form-urlencoded", "multipart/form-data"):
            return {name: self.get_body_argument(name) for name in self.request.body_arguments}
        if content_type != "application/json":
            raise HTTPError(415, reason="the body must be application/json or a form")
        try:
            body = json.loads(self.request.body.decode(), parse_constant=refuse_constant)
            json.dumps(body, ensure_ascii=False).encode()  # rejects lone surrogates
        except (ValueError, RecursionError):
            raise HTTPError(400, reason="the body is not JSON") from None
        if not isinstance(body, dict):
            raise HTTPError(400, reason="the body must be a JSON object")
        return body

    def int_argument(self, name: str, default: int, maximum: int) -> int:
        """Return a query argument, an integer from 1 to ``maximum``. Raises HTTPError 400."""
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= maximum):
            raise HTTPError(400, reason=f"{name} must be a whole number from 1 to {maximum}")
        return int(text)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Return ``{"error": {"status", "reason"}}``, with the traceback in debug mode."""
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self.methods()))
        if status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            self.set_header("Retry-After", "1")
        error: dict[str, Any] = {"status": status_code, "reason": self._reason}
        if self.settings.get("serve_traceback") and "exc_info" in kwargs:
            error["traceback"] = "".join(format_exception(*kwargs["exc_info"]))
        self.finish({"error": error})

    def whoami(self) -> dict[str, str | int]:
        """Describe the process and this request."""
        return identity() | {
            "remote_ip": self.request.remote_ip or "",
            "protocol": self.request.protocol,
            "host": self.request.host,
        }


class NotFoundHandler(BaseHandler):
    """Handles paths without another handler."""

    def prepare(self) -> NoReturn:
        """Raise HTTPError 404 for any method."""
        raise HTTPError(404)


def refuse_constant(name: str) -> NoReturn:
    """Reject NaN and Infinity, which Python parses but JSON does not define."""
    raise ValueError(name)
