"""WSGI applications (PEP 3333), such as those of Flask and Django, served from a thread pool with streamed responses."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast

import tornado
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.iostream import StreamClosedError
from tornado.log import app_log
from tornado.wsgi import WSGIContainer

from .access_log import log_response

P = ParamSpec("P")
T = TypeVar("T")


class WsgiApplication(WSGIContainer):
    """Runs a WSGI application, one thread per request, and streams its response.

    Tornado's own container buffers the whole response, calls ``close`` in the event loop, and rejects header values that begin
    with a space, such as those of Django's cookies.
    """

    async def handle_request(self, request: HTTPServerRequest) -> None:
        """Respond to a request; an exception results in status 500, or closes the connection after the response has begun."""
        connection = cast(HTTP1Connection, request.connection)
        response = WsgiResponse(request, connection)
        try:
            await asyncio.get_running_loop().run_in_executor(self.executor, self.run, self.environ(request), response)
            await response.finish()
        except StreamClosedError:
            app_log.info("Client closed the connection during %s %s (%s)", request.method, request.uri, request.remote_ip)
        except (Exception, SystemExit):
            app_log.exception("Uncaught exception %s %s (%s)", request.method, request.uri, request.remote_ip)
            response.fail()
        log_response(response.status, f"{request.method} {request.uri} ({request.remote_ip})", request.request_time())

    def run(self, environ: dict[str, Any], response: WsgiResponse) -> None:
        """Run the application from its call to the end of its response, all in the same thread."""
        chunks = self.wsgi_application(environ, response.start)
        try:
            if isinstance(chunks, list | tuple):
                response.buffered = b"".join(chunks)
            else:
                for chunk in chunks:
                    response.write(chunk)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()


class WsgiResponse:
    """The response to one request, written by the thread of a WSGI application.

    Each chunk is sent at once, and the thread waits until the client can receive the next one. A response without
    ``Content-Length`` is chunked; for HTTP/1.0, which does not support chunks, it is buffered.
    """

    def __init__(self, request: HTTPServerRequest, connection: HTTP1Connection) -> None:
        """Respond to ``request`` on ``connection``; called in the event loop."""
        self.loop = asyncio.get_running_loop()
        self.connection = connection
        self.body_expected = request.method != "HEAD"
        self.can_be_chunked = request.version != "HTTP/1.0"
        self.status = 0
        self.reason = ""
        self.headers = HTTPHeaders()
        self.started = False
        self.buffered = b""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        """Set status and headers: the ``start_response`` of PEP 3333."""
        if exc_info is not None and self.started:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self.status:
            raise RuntimeError("the application called start_response twice")
        code, _space, self.reason = status.partition(" ")
        self.headers = HTTPHeaders()
        for name, value in headers:
            self.headers.add(name, value.strip(" \t"))
        self.status = int(code)
        return self.write

    def write(self, chunk: bytes) -> None:
        """Send a chunk; called in the application's thread.

        :raises StreamClosedError: if the client has closed the connection.
        """
        self._require_start()
        if chunk and (self.can_be_chunked or "Content-Length" in self.headers):
            asyncio.run_coroutine_threadsafe(self._send(chunk), self.loop).result()
        else:
            self.buffered += chunk

    async def finish(self) -> None:
        """Send what is buffered, which is the whole body of an application that returned a list; called in the event loop."""
        self._require_start()
        if not self.started and self.status >= 200 and self.status not in (204, 304):
            self.headers.setdefault("Content-Length", str(len(self.buffered)))
        if self.buffered or not self.started:
            await self._send(self.buffered)
        self.connection.finish()

    def fail(self) -> None:
        """Respond with status 500, or abort a response that has begun, so that the client does not consider it complete."""
        if self.started:
            self.connection.stream.close()
        elif not self.connection.stream.closed():
            self.connection.write_headers(
                ResponseStartLine("", 500, "Internal Server Error"), HTTPHeaders({"Content-Length": "0"})
            )
            self.connection.finish()
        self.status = 500

    def _require_start(self) -> None:
        if not self.status:
            raise RuntimeError("the application did not call start_response")

    async def _send(self, chunk: bytes) -> None:
        body = chunk if self.body_expected else b""
        if self.started:
            await self.connection.write(body)
            return
        if self.status != 304:
            self.headers.setdefault("Content-Type", "text/html; charset=UTF-8")
        self.headers.setdefault("Server", f"TornadoServer/{tornado.version}")
        if self.headers.get("Content-Type", "").startswith("text/event-stream"):
            self.headers.setdefault("X-Accel-Buffering", "no")
        await self.connection.write_headers(ResponseStartLine("", self.status, self.reason), self.headers, body)
        self.started = True


class ContextExecutor(ThreadPoolExecutor):
    """A thread pool whose threads inherit the context variables of the request, as tasks do."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in a thread, in the context of the caller."""
        return super().submit(functools.partial(contextvars.copy_context().run, fn, *args, **kwargs))
