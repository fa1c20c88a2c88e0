"""The application and its handlers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tornado.ioloop import PeriodicCallback
from tornado.iostream import StreamClosedError
from tornado.log import app_log
from tornado.web import Application, HTTPError, stream_request_body
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from sample_app.connector import FetchHandler
from sample_app.documents import ID_PATTERN, DocumentHandler, DocumentsHandler
from sample_app.errors import UnavailableError
from sample_app.handlers import BaseHandler, NotFoundHandler
from sample_app.jobs import JobsHandler, start_jobs
from sample_app.services import connect
from sample_app.settings import Settings, identity, read

HERE = Path(__file__).parent
MAX_SLEEP = 60.0
EVENT_INTERVAL = 0.5
MAX_NOTE_BYTES = 200


class PageHandler(BaseHandler):
    """The home page."""

    def get(self) -> None:
        """Render the page."""
        self.render("index.html", who=self.whoami(), theme=self.config.theme, visits=self.count_visit())

    def count_visit(self) -> int | None:
        """Count the visits of this browser in a signed cookie; return None without a cookie secret."""
        if not self.settings.get("cookie_secret"):
            return None
        visits = int(self.get_signed_cookie("visits") or 0) + 1
        self.set_signed_cookie("visits", str(visits), httponly=True, samesite="Lax")
        return visits


class HealthHandler(BaseHandler):
    """Liveness: reports that the process serves, and its release."""

    def get(self) -> None:
        """Respond immediately."""
        self.write({"status": "ok", "release": identity()["release"]})


class ReadyHandler(BaseHandler):
    """Readiness: reports whether the database and the lock server respond, which a restart of this process would not fix."""

    async def get(self) -> None:
        """Check the configured services."""
        checks = self.services.checks
        states = dict(zip(checks, await asyncio.gather(*itertools.starmap(self.state, checks.items())), strict=True))
        ready = all(state == "ok" for state in states.values())
        self.set_status(200 if ready else 503)
        self.write({"status": "ok" if ready else "unavailable", "env": self.config.env, **states})

    async def state(self, name: str, check: Callable[[], Awaitable[None]]) -> str:
        """Return ``ok`` or the reason of a failure, and log its details."""
        try:
            await check()
        except UnavailableError as error:
            app_log.warning("%s: %s", name, error.log_message)
            return str(error.reason)
        return "ok"


class WhoAmIHandler(BaseHandler):
    """Describes the process and the client."""

    def get(self) -> None:
        """Respond immediately."""
        self.write(self.whoami())


class SleepHandler(BaseHandler):
    """A slow request."""

    async def get(self) -> None:
        """Respond after ``seconds``."""
        try:
            seconds = float(self.get_argument("seconds", "1"))
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= MAX_SLEEP:
            raise HTTPError(400, reason=f"seconds must be a number from 0 to {MAX_SLEEP:g}")
        await asyncio.sleep(seconds)
        self.write(self.whoami())


class HeadersHandler(BaseHandler):
    """Returns the headers of the request as received."""

    def get(self) -> None:
        """Respond immediately."""
        self.write(dict(self.request.headers))


class EventsHandler(BaseHandler):
    """Server-sent events: one every half second until the client disconnects."""

    async def get(self) -> None:
        """Send the first event immediately."""
        self.set_header("Content-Type", "text/event-stream")
        with contextlib.suppress(StreamClosedError):
            for number in itertools.count(1):
                self.write(f"data: {number}\n\n")
                await self.flush()
                await asyncio.sleep(EVENT_INTERVAL)


class EchoHandler(BaseHandler):
    """Returns the request body with its content type."""

    def post(self) -> None:
        """Return the body."""
        self.set_header("Content-Type", self.request.headers.get("Content-Type", "application/octet-stream"))
        self.set_header("X-Content-Type-Options", "nosniff")
        self.write(self.request.body)


class NotesHandler(BaseHandler):
    """Stores notes, one line each, in HOME, which all processes and releases share."""

    @property
    def file(self) -> Path:
        """The file with the notes."""
        return Path.home() / "notes"

    def get(self) -> None:
        """Return all notes."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.write(self.file.read_bytes() if self.file.exists() else b"")

    def post(self) -> None:
        """Append the body as a note."""
        note = self.request.body.rstrip()
        if not 0 < len(note) <= MAX_NOTE_BYTES or len(note.splitlines()) > 1:
            raise HTTPError(400, reason=f"a note is one line of at most {MAX_NOTE_BYTES} bytes")
        # Unbuffered, so that a single write appends the line: concurrent writers do not interleave.
        with self.file.open("ab", buffering=0) as file:
            file.write(note + b"\n")
        self.set_status(201)


@stream_request_body
class UploadHandler(BaseHandler):
    """Counts and hashes a streamed body, with constant memory."""

    def prepare(self) -> None:
        """Initialize when the headers are received."""
        self.size = 0
        self.digest = hashlib.sha256()

    def data_received(self, chunk: bytes) -> None:
        """Process a part of the body."""
        self.size += len(chunk)
        self.digest.update(chunk)

    def post(self) -> None:
        """Respond when the body is complete."""
        self.write({"bytes": self.size, "sha256": self.digest.hexdigest()})


class EchoSocket(WebSocketHandler):
    """Echoes each message."""

    async def on_message(self, message: str | bytes) -> None:
        """Return text as text, and bytes as bytes."""
        await self.write_message(message, binary=isinstance(message, bytes))


class TickSocket(WebSocketHandler):
    """Sends a message each second."""

    def open(self) -> None:
        """Send the first message immediately."""
        self.number = 0
        self.timer = PeriodicCallback(self.tick, datetime.timedelta(seconds=1))
        self.timer.start()
        self.tick()

    def tick(self) -> None:
        """Send one message."""
        self.number += 1
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(WebSocketClosedError):
            client = {"remote_ip": self.request.remote_ip, "protocol": self.request.protocol}
            self.write_message({"tick": self.number, "time": now} | client | identity())

    def on_message(self, message: str | bytes) -> None:
        """Ignore messages of the client."""

    def on_close(self) -> None:
        """Stop the timer."""
        self.timer.stop()


def make_app(**settings: Any) -> Application:
    """Create the application. ``settings`` override Tornado's; ``config`` replaces the settings of the environment."""
    if "config" not in settings:
        settings["config"] = read()
    config: Settings = settings["config"]
    services = connect(config)
    if config.jobs:
        start_jobs(config, services)
    return Application(
        [
            (r"/", PageHandler),
            (r"/healthz", HealthHandler),
            (r"/readyz", ReadyHandler),
            (r"/whoami", WhoAmIHandler),
            (r"/sleep", SleepHandler),
            (r"/headers", HeadersHandler),
            (r"/events", EventsHandler),
            (r"/echo", EchoHandler),
            (r"/notes", NotesHandler),
            (r"/upload", UploadHandler),
            (r"/documents", DocumentsHandler),
            (rf"/documents/(?P<key>{ID_PATTERN})", DocumentHandler),
            (r"/jobs", JobsHandler),
            (r"/fetch/(?P<name>[\w-]{1,100})", FetchHandler),
            (r"/ws", EchoSocket),
            (r"/ticks", TickSocket),
        ],
        **{
            "template_path": str(HERE / "templates"),
            "static_path": str(HERE / "static"),
            "cookie_secret": config.cookie_secret or None,
            "compress_response": True,
            "xsrf_cookies": True,  # calls BaseHandler.check_xsrf_cookie(), which uses no cookie
            "default_handler_class": NotFoundHandler,
            "websocket_ping_interval": 20,
            "services": services,
            **settings,
        },
    )
