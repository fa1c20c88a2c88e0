"""What the handlers have in common."""

from __future__ import annotations

import json
from http import HTTPStatus
from traceback import format_exception
from typing import Any, ClassVar, NoReturn

from tornado.web import HTTPError, RequestHandler

from sample_app.services import Services
from sample_app.settings import Settings, identity

PREFLIGHT_SECONDS = 600
"""Seconds that a browser may remember what it was told before a page's request."""

LARGEST_BODY = 1 << 20
"""Bytes that are parsed at most: nothing else is served meanwhile."""


class BaseHandler(RequestHandler):
    """Answers and errors in JSON, bodies as dictionaries, and other sites' pages where a handler is open to them."""

    cors: ClassVar[bool] = False
    """Whether pages of the origins in ``SAMPLE_ORIGINS`` may use this handler from a browser."""

    @property
    def config(self) -> Settings:
        """The app's settings."""
        config: Settings = self.settings["config"]
        return config

    @property
    def services(self) -> Services:
        """The database and the lock server, those that there are."""
        services: Services = self.settings["services"]
        return services

    def set_default_headers(self) -> None:
        """Set what errors have as well: answers that tell of a process are not for caches."""
        self.set_header("Cache-Control", "no-store")
        if self.cors:
            self.add_header("Vary", "Origin")
            origin = self.request.headers.get("Origin", "")
            if origin in self.config.allowed_origins:
                self.set_header("Access-Control-Allow-Origin", origin)
                self.set_header("Access-Control-Expose-Headers", "Location, Retry-After")

    def check_xsrf_cookie(self) -> None:
        """Refuse what another site's page wants to change here: a form of any page may be sent to any site without a question.

        Tornado calls this for every verb but GET, HEAD and OPTIONS, before `prepare`. Instead of a cookie it is the ``Origin``
        that is looked at, which all browsers send with these: it needs nothing of the page, and nothing that is no browser
        sends it. Raises HTTPError 403.
        """
        origin = self.request.headers.get("Origin")
        own = origin is None or origin.partition("://")[2].lower() == self.request.headers.get("Host", "").lower()
        if not own and "Access-Control-Allow-Origin" not in self._headers:
            raise HTTPError(403, f"Origin: {origin}", reason="pages of that origin may change nothing here")

    @classmethod
    def methods(cls) -> list[str]:
        """Return the verbs that the handler has a method for."""
        return [verb for verb in cls.SUPPORTED_METHODS if getattr(cls, verb.lower()) is not getattr(RequestHandler, verb.lower())]

    def options(self, *_args: str, **_kwargs: str) -> None:
        """Tell the verbs; to a browser that asks before it lets a page do something, also what the page may do."""
        self.set_status(HTTPStatus.NO_CONTENT)
        self.set_header("Allow", ", ".join(self.methods()))
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", ", ".join(self.methods()))
            self.set_header("Access-Control-Allow-Headers", "Content-Type")
            self.set_header("Access-Control-Max-Age", PREFLIGHT_SECONDS)

    def body(self) -> dict[str, Any]:
        """Return the request's body, JSON or a form, as a dictionary. Raises HTTPError 400, 413 or 415."""
        if len(self.request.body) > LARGEST_BODY:
            raise HTTPError(413)
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
            return {name: self.get_body_argument(name) for name in self.request.body_arguments}
        if kind != "application/json":
            raise HTTPError(415, reason="the body must be application/json or a form")
        try:
            body = json.loads(self.request.body.decode(), parse_constant=refuse_constant)
            json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError):
            raise HTTPError(400, reason="the body is not JSON") from None
        if not isinstance(body, dict):
            raise HTTPError(400, reason="the body must be a JSON object")
        return body

    def whole_number(self, name: str, default: int, most: int) -> int:
        """Return an argument of the query that is a whole number from 1 to ``most``. Raises HTTPError 400."""
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= most):
            raise HTTPError(400, reason=f"{name} must be a whole number from 1 to {most}")
        return int(text)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with ``{"error": {"status", "reason"}}``; with the traceback, too, in debug."""
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self.methods()))
        if status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            self.set_header("Retry-After", "1")
        error: dict[str, Any] = {"status": status_code, "reason": self._reason}
        if self.settings.get("serve_traceback") and "exc_info" in kwargs:
            error["traceback"] = "".join(format_exception(*kwargs["exc_info"]))
        self.finish({"error": error})

    def whoami(self) -> dict[str, str | int]:
        """Return what is known of the process and of this request."""
        return identity() | {
            "remote_ip": self.request.remote_ip or "",
            "protocol": self.request.protocol,
            "host": self.request.host,
        }


class NotFoundHandler(BaseHandler):
    """Answers what no other handler is for."""

    def prepare(self) -> NoReturn:
        """Answer 404, whatever the verb."""
        raise HTTPError(404)


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(name)
