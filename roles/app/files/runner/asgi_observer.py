"""ASGI middleware that gives an application what the runner gives to all: client address, request id, limits, metrics, logs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from tornado.log import app_log
from tornado.netutil import is_valid_ip

from .access_log import log_response
from .interface import SERVICE_RESTART
from .logs import set_request_id
from .metrics import Traffic
from .options import Options

Scope = MutableMapping[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL_CLIENT = ("127.0.0.1", 0)
"""The client of a Unix socket without headers of a reverse proxy, such as a health check: frameworks expect an address."""

TOO_LARGE = b"Content Too Large"


class Observer:
    """Calls an application, and keeps what the server needs for metrics and graceful shutdown."""

    def __init__(self, application: Application, options: Options, traffic: Traffic) -> None:
        """Call an application."""
        self.application = application
        self.options = options
        self.traffic = traffic
        self.in_flight = 0
        self.websockets: set[Websocket] = set()
        self.draining = False
        self.startup_message = ""
        self.startup_error: Exception | None = None
        self.lifespan_ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application for a connection, or for the life of the process."""
        if scope["type"] == "lifespan":
            await self.run_lifespan(scope, receive, send)
            return
        headers = dict(scope["headers"])
        set_request_id(decode(headers.get(b"x-request-id", b"")) if self.options.xheaders else "")
        scope["client"] = scope["client"] or LOCAL_CLIENT
        if self.options.xheaders:
            apply_proxy_headers(scope, headers, self.options.trusted_downstream)
        if scope["type"] == "websocket":
            await Websocket(self, scope, receive, send).run()
        else:
            await Exchange(self, scope, receive, send).run(int(headers.get(b"content-length", 0)))

    async def run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan protocol.

        An application that raises an exception at once does not support it; one that does so after it has received ``startup``
        has failed, even if it does not say so.
        """
        received = decided = failed = False

        async def observed_receive() -> Message:
            nonlocal received
            received = True
            return await receive()

        async def observed_send(message: Message) -> None:
            nonlocal decided, failed
            decided = True
            if message["type"] == "lifespan.startup.failed":
                failed = True
                self.startup_message = message.get("message", "")
                message = {"type": message["type"]}  # the runner reports it
            await send(message)

        try:
            await self.application(scope, observed_receive, observed_send)
        except Exception as error:
            if not received or (decided and not failed):
                raise
            self.startup_error = error
            if not decided:
                await send({"type": "lifespan.startup.failed"})
        finally:
            self.lifespan_ended.set()

    def close_websockets(self) -> list[Websocket]:
        """Start the closing handshake of every websocket that is open; return those."""
        closing = [websocket for websocket in self.websockets if websocket.closing is None]
        for websocket in closing:
            websocket.close()
        return closing


class Connection:
    """One call of an application."""

    def __init__(self, observer: Observer, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin now."""
        self.observer = observer
        self.scope = scope
        self.forward_receive = receive
        self.forward_send = send
        self.start_time = time.monotonic()
        self.recorded = False

    @property
    def summary(self) -> str:
        """Method, target and client of the request."""
        scope = self.scope
        query = f"?{decode(scope['query_string'])}" if scope["query_string"] else ""
        return f"{scope.get('method', 'GET')} {decode(scope.get('raw_path') or b'')}{query} ({scope['client'][0]})"

    def record(self, status: int) -> None:
        """Count and log the request, once; the status is 0 if the client closed the connection before the response."""
        if self.recorded:
            return
        self.recorded = True
        seconds = time.monotonic() - self.start_time
        self.observer.traffic.record(status, seconds)
        if status == 0:
            app_log.info("Client closed the connection during %s", self.summary)
            return
        log_response(status, self.summary, seconds)


class Exchange(Connection):
    """A request and its response."""

    status = 0
    received = 0
    rejected = False

    async def run(self, content_length: int) -> None:
        """Call the application, unless the body is too large."""
        self.observer.in_flight += 1
        try:
            if content_length > self.observer.options.max_body_size:
                await self.reject()
            else:
                await self.observer.application(self.scope, self.receive, self.send)
        except BaseException:
            self.status = self.status or 500  # uvicorn logs the exception and sends the response
            raise
        finally:
            self.end()

    def end(self) -> None:
        """Complete the response."""
        if not self.recorded:
            self.observer.in_flight -= 1
        self.record(self.status)

    async def receive(self) -> Message:
        """Return a part of the body, or the disconnect of the client."""
        message = await self.forward_receive()
        self.received += len(message.get("body", b""))
        if self.received > self.observer.options.max_body_size:
            await self.reject()
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if self.rejected:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self.further_headers(message)]}
        await self.forward_send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.end()

    def further_headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        """Return the headers to add: events are not buffered by nginx, and a draining process closes its connections."""
        added = [(b"connection", b"close")] if self.observer.draining else []
        for name, value in message.get("headers", ()):
            if name.lower() == b"content-type" and value.startswith(b"text/event-stream"):
                added.append((b"x-accel-buffering", b"no"))
        return added

    async def reject(self) -> None:
        """Respond that the body is too large, unless the response has begun, which uvicorn then aborts."""
        if not self.rejected and not self.status:
            self.status = 413
            length = str(len(TOO_LARGE)).encode()
            headers = [(b"content-type", b"text/plain"), (b"content-length", length), (b"connection", b"close")]
            await self.forward_send({"type": "http.response.start", "status": self.status, "headers": headers})
            await self.forward_send({"type": "http.response.body", "body": TOO_LARGE})
            self.end()
        self.rejected = True


class Websocket(Connection):
    """A websocket, from its handshake to its end."""

    accepted = False
    ended = False
    closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Call the application."""
        status = 0
        try:
            await self.observer.application(self.scope, self.forward_receive, self.send)
        except Exception:
            status = 500
            if self.closing is None:  # otherwise it could not send any more
                raise
        finally:
            self.ended = True
            self.observer.websockets.discard(self)
            self.record(status)

    async def send(self, message: Message) -> None:
        """Send a message; raise an OSError, as for a client that has disconnected, if the websocket is being closed."""
        if self.closing is not None:
            raise ConnectionResetError("the process is shutting down")
        await self.forward_send(message)
        if message["type"] == "websocket.accept":
            self.record(101)
            self.observer.websockets.add(self)
            if self.observer.draining:
                self.close()
        elif message["type"] == "websocket.close":
            self.record(403)  # unless it was accepted
        elif message["type"] == "websocket.http.response.start":
            self.record(message["status"])

    def close(self) -> None:
        """Start the closing handshake."""
        code, reason = SERVICE_RESTART
        self.closing = asyncio.ensure_future(self.forward_send({"type": "websocket.close", "code": code, "reason": reason}))

    def closed(self) -> bool:
        """Return whether the application has ended it."""
        return self.ended


def apply_proxy_headers(scope: Scope, headers: Mapping[bytes, bytes], trusted: list[str]) -> None:
    """Set client and scheme from the headers of the reverse proxy, by the same rules as Tornado."""
    forwarded = decode(headers.get(b"x-forwarded-for", b"")).split(",")
    nearest = next((address for text in reversed(forwarded) if (address := text.strip()) not in trusted), forwarded[0].strip())
    client = decode(headers.get(b"x-real-ip", b"")) or nearest
    if client and is_valid_ip(client):
        scope["client"] = (client, 0)
    scheme = decode(headers.get(b"x-scheme") or headers.get(b"x-forwarded-proto", b"")).rpartition(",")[2].strip()
    if scheme in ("http", "https"):
        scope["scheme"] = scheme if scope["type"] == "http" else scheme.replace("http", "ws")


def decode(header: bytes) -> str:
    """Return a header as text."""
    return header.decode("latin-1")
