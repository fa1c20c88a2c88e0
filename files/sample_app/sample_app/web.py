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
from sample_app.documents import KEY, DocumentHandler, DocumentsHandler
from sample_app.errors import UnavailableError
from sample_app.handlers import BaseHandler, NotFoundHandler
from sample_app.jobs import JobsHandler, start_jobs
from sample_app.services import connect
from sample_app.settings import Settings, identity, read

HERE = Path(__file__).parent
LONGEST_SLEEP = 60.0
EVENT_INTERVAL = 0.5
LONGEST_NOTE = 200


class PageHandler(BaseHandler):
    """The page."""

    def get(self) -> None:
        """Render it."""
        self.render("index.html", who=self.whoami(), theme=self.config.theme, visits=self.count_visit())

    def count_visit(self) -> int | None:
        """Return how often this browser was here, as a signed cookie says; None without a secret to sign with."""
        if not self.settings.get("cookie_secret"):
            return None
        visits = int(self.get_signed_cookie("visits") or 0) + 1
        self.set_signed_cookie("visits", str(visits), httponly=True, samesite="Lax")
        return visits


class HealthHandler(BaseHandler):
    """Tells that the process serves, and which release."""

    def get(self) -> None:
        """Answer at once."""
        self.write({"status": "ok", "release": identity()["release"]})


class ReadyHandler(BaseHandler):
    """Tells whether what the app stands on is there: unlike ``/healthz``, which a restart of this process would help."""

    async def get(self) -> None:
        """Ask the database and the lock server, those that there are."""
        checks = self.services.checks
        states = dict(zip(checks, await asyncio.gather(*itertools.starmap(self.state, checks.items())), strict=True))
        ready = all(state == "ok" for state in states.values())
        self.set_status(200 if ready else 503)
        self.write({"status": "ok" if ready else "unavailable", "env": self.config.env, **states})

    async def state(self, name: str, check: Callable[[], Awaitable[None]]) -> str:
        """Return ``ok``, or why not; the log has the details."""
        try:
            await check()
        except UnavailableError as error:
            app_log.warning("%s: %s", name, error.log_message)
            return str(error.reason)
        return "ok"


class WhoAmIHandler(BaseHandler):
    """Tells which process serves, and what it knows of the client."""

    def get(self) -> None:
        """Answer at once."""
        self.write(self.whoami())


class SleepHandler(BaseHandler):
    """Takes its time, as a slow request does."""

    async def get(self) -> None:
        """Answer after ``seconds``."""
        try:
            seconds = float(self.get_argument("seconds", "1"))
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= LONGEST_SLEEP:
            raise HTTPError(400, reason=f"seconds must be a number from 0 to {LONGEST_SLEEP:g}")
        await asyncio.sleep(seconds)
        self.write(self.whoami())


class HeadersHandler(BaseHandler):
    """Tells the headers of the request, as they got here."""

    def get(self) -> None:
        """Answer at once."""
        self.write(dict(self.request.headers))


class EventsHandler(BaseHandler):
    """Sends an event each half second until the client leaves: server-sent events."""

    async def get(self) -> None:
        """Send the first event at once."""
        self.set_header("Content-Type", "text/event-stream")
        with contextlib.suppress(StreamClosedError):
            for number in itertools.count(1):
                self.write(f"data: {number}\n\n")
                await self.flush()
                await asyncio.sleep(EVENT_INTERVAL)


class EchoHandler(BaseHandler):
    """Sends a body back, with its type."""

    def post(self) -> None:
        """Answer with what came."""
        self.set_header("Content-Type", self.request.headers.get("Content-Type", "application/octet-stream"))
        self.set_header("X-Content-Type-Options", "nosniff")
        self.write(self.request.body)


class NotesHandler(BaseHandler):
    """Keeps what it is told, a line each, for every process and release: in HOME, which outlives them."""

    @property
    def file(self) -> Path:
        """Where the notes are."""
        return Path.home() / "notes"

    def get(self) -> None:
        """Answer with all notes."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.write(self.file.read_bytes() if self.file.exists() else b"")

    def post(self) -> None:
        """Add the body."""
        note = self.request.body.rstrip()
        if not 0 < len(note) <= LONGEST_NOTE or len(note.splitlines()) > 1:
            raise HTTPError(400, reason=f"a note is one line of at most {LONGEST_NOTE} bytes")
        # Unbuffered, so that it is one write: lines of processes that append at the same time do not mix.
        with self.file.open("ab", buffering=0) as file:
            file.write(note + b"\n")
        self.set_status(201)


@stream_request_body
class UploadHandler(BaseHandler):
    """Counts a body while it arrives: memory does not grow with it."""

    def prepare(self) -> None:
        """Start, when the headers have come."""
        self.size = 0
        self.digest = hashlib.sha256()

    def data_received(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.size += len(chunk)
        self.digest.update(chunk)

    def post(self) -> None:
        """Answer, when all of it has come."""
        self.write({"bytes": self.size, "sha256": self.digest.hexdigest()})


class EchoSocket(WebSocketHandler):
    """Sends each message back."""

    async def on_message(self, message: str | bytes) -> None:
        """Send text back as text, bytes as bytes."""
        await self.write_message(message, binary=isinstance(message, bytes))


class TickSocket(WebSocketHandler):
    """Sends a message each second."""

    def open(self) -> None:
        """Send the first message at once."""
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
        """Nothing is asked of the client."""

    def on_close(self) -> None:
        """Stop."""
        self.timer.stop()


def make_app(**settings: Any) -> Application:
    """Make the application; the settings are Tornado's own and come first. ``config``: this app's, if not the environment's."""
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
            (rf"/documents/(?P<key>{KEY})", DocumentHandler),
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
            "xsrf_cookies": True,  # is BaseHandler.check_xsrf_cookie(), which does without a cookie
            "default_handler_class": NotFoundHandler,
            "websocket_ping_interval": 20,
            "services": services,
            **settings,
        },
    )
