"""The application and its handlers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import itertools
import os
import socket
from pathlib import Path
from typing import Any

from tornado.ioloop import PeriodicCallback
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body
from tornado.websocket import WebSocketClosedError, WebSocketHandler

HERE = Path(__file__).parent
LONGEST_SLEEP = 60.0
EVENT_INTERVAL = 0.5
LONGEST_NOTE = 200


def identity() -> dict[str, str | int]:
    """Return what this process knows of itself."""
    return {
        "app": os.environ.get("TORNADO_APP", ""),
        "release": os.environ.get("TORNADO_RELEASE", ""),
        "slot": os.environ.get("TORNADO_SLOT", ""),
        "process": os.environ.get("TORNADO_PROCESS", ""),
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
    }


class BaseHandler(RequestHandler):
    """What the handlers have in common: answers that tell of a process are not for caches."""

    def set_default_headers(self) -> None:
        """Say so in every answer."""
        self.set_header("Cache-Control", "no-store")

    def whoami(self) -> dict[str, str | int]:
        """Return what is known of the process and of this request."""
        return identity() | {
            "remote_ip": self.request.remote_ip or "",
            "protocol": self.request.protocol,
            "host": self.request.host,
        }


class PageHandler(BaseHandler):
    """The page."""

    def get(self) -> None:
        """Render it."""
        theme = os.environ.get("SAMPLE_THEME", "auto")
        self.render("index.html", who=self.whoami(), theme=theme, visits=self.count_visit())

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
    """Make the application; the settings are Tornado's own and come first."""
    return Application(
        [
            (r"/", PageHandler),
            (r"/healthz", HealthHandler),
            (r"/whoami", WhoAmIHandler),
            (r"/sleep", SleepHandler),
            (r"/headers", HeadersHandler),
            (r"/events", EventsHandler),
            (r"/echo", EchoHandler),
            (r"/notes", NotesHandler),
            (r"/upload", UploadHandler),
            (r"/ws", EchoSocket),
            (r"/ticks", TickSocket),
        ],
        **{
            "template_path": str(HERE / "templates"),
            "static_path": str(HERE / "static"),
            "cookie_secret": os.environ.get("COOKIE_SECRET") or None,
            "websocket_ping_interval": 20,
            **settings,
        },
    )
