"""Tornado's HTTP server, which tracks in-flight requests and idle connections for metrics and graceful shutdown."""

from __future__ import annotations

import gc
import ssl
import sys
import time
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any, cast

import tornado
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream
from tornado.web import Application, OutputTransform

from .access_log import log_request
from .interface import SERVICE_RESTART
from .logs import set_request_id
from .metrics import Traffic
from .options import DEFAULT_THREADS, Options
from .sockets import Listener, is_readable


class UnbufferedEvents(OutputTransform):
    """Disables nginx's buffering for server-sent events, which it would delay over TLS."""

    def transform_first_chunk(self, *args: Any, **kwargs: Any) -> tuple[int, HTTPHeaders, bytes]:
        """Add the header ``X-Accel-Buffering``, which nginx does not pass on."""
        status, headers, chunk = super().transform_first_chunk(*args, **kwargs)
        if headers.get("Content-Type", "").startswith("text/event-stream"):
            headers.setdefault("X-Accel-Buffering", "no")
        return status, headers, chunk


class RequestObserver(HTTPMessageDelegate):
    """Records id and start time of a request, and keeps the connection of a websocket handshake open.

    A draining server closes each connection with its response: a websocket would be cut before its close code is sent.
    """

    def __init__(self, delegate: HTTPMessageDelegate, exchange: HTTP1Connection, *, xheaders: bool) -> None:
        """Forward to ``delegate``; with ``xheaders``, accept the request id from the reverse proxy."""
        self.delegate = delegate
        self.exchange = exchange
        self.xheaders = xheaders
        self.start_time: float | None = None

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> Awaitable[None] | None:
        """Inspect the headers before the application does, in the context that the application inherits."""
        set_request_id(headers.get("X-Request-ID", "") if self.xheaders else "")
        self.start_time = time.monotonic()
        if is_handshake(headers):
            self.exchange._disconnect_on_finish = False
        return self.delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Forward a part of the body."""
        return self.delegate.data_received(chunk)

    def finish(self) -> None:
        """Forward the end of the request."""
        self.delegate.finish()

    def on_connection_close(self) -> None:
        """Forward the close of the connection."""
        self.delegate.on_connection_close()


def is_handshake(headers: HTTPHeaders | None) -> bool:
    """Return whether a request is a websocket handshake."""
    # get_list() is cheaper than get(), which raises and catches an exception for most requests.
    return headers is not None and [value.lower() for value in headers.get_list("Upgrade")] == ["websocket"]


class Server(HTTPServer):
    """An HTTPServer that supports connection draining.

    ``HTTPServer.stop`` leaves open connections alone, which are then served for as long as their clients keep them, and
    ``close_all_connections`` aborts in-flight requests. This server tracks the exchange (a request and its response) of each
    connection, through the two methods that notify a server of them. So it distinguishes in-flight requests from idle
    connections, and counts completed requests: an exchange is complete when its connection waits for the next one or is closed.

    Undocumented attributes of Tornado, verified by tests: ``conn_params.no_keep_alive`` is read at the start of each request;
    an exchange's ``_request_start_line`` and ``_request_headers`` are None until then, its ``_response_start_line`` until the
    application responds, and its ``stream`` is None once it has become a websocket; its ``_disconnect_on_finish`` sends
    ``Connection: close`` and closes the connection; a stream's ``_read_buffer_size`` is the number of bytes read and not yet
    consumed.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as an HTTPServer does."""
        super().initialize(*args, **kwargs)
        self.observers: dict[HTTP1ServerConnection, RequestObserver] = {}
        self.websockets: weakref.WeakSet[IOStream] = weakref.WeakSet()
        self.traffic = Traffic()

    @property
    def name(self) -> str:
        """Name and version of the software."""
        return f"Tornado {tornado.version}"

    async def startup(self) -> None:
        """Do nothing: the application exists."""

    async def shutdown(self) -> None:
        """Do nothing: these applications are not notified."""

    async def serve_on(self, listeners: Sequence[Listener]) -> None:
        """Accept connections."""
        self.add_sockets(listeners)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Track a connection that waits for its first or next request."""
        connection, exchange = cast(HTTP1ServerConnection, server_conn), cast(HTTP1Connection, request_conn)
        self.record(self.observers.get(connection))
        observer = RequestObserver(super().start_request(server_conn, request_conn), exchange, xheaders=self.xheaders)
        self.observers[connection] = observer
        return observer

    def on_close(self, server_conn: object) -> None:
        """Stop tracking a connection that was closed or has become a websocket."""
        connection = cast(HTTP1ServerConnection, server_conn)
        observer = self.observers.pop(connection, None)
        self.record(observer)
        if observer is not None and observer.exchange.stream is None:
            self.websockets.add(connection.stream)
        super().on_close(server_conn)

    def record(self, observer: RequestObserver | None) -> None:
        """Record status and duration of a completed request, if there was one."""
        if observer is not None and observer.start_time is not None:
            response = observer.exchange._response_start_line
            self.traffic.record(0 if response is None else response.code, time.monotonic() - observer.start_time)

    @property
    def in_flight(self) -> list[HTTP1Connection]:
        """The exchanges whose request headers were received."""
        exchanges = [observer.exchange for observer in self.observers.values()]
        return [exchange for exchange in exchanges if exchange._request_start_line is not None]

    @property
    def in_flight_requests(self) -> int:
        """Number of requests whose headers were received and whose response is not complete."""
        return len(self.in_flight)

    @property
    def open_websockets(self) -> int:
        """Number of open websockets."""
        return sum(not stream.closed() for stream in self.websockets)

    @property
    def busy(self) -> bool:
        """Whether a connection is open that is not a websocket."""
        return bool(self.observers)

    def close_websockets(self) -> Sequence[IOStream]:
        """Start the closing handshake of every websocket; return the streams, which close when the clients have responded.

        Tornado keeps no list of its websockets, and they are no longer connections of the server. The garbage collector finds
        them, once, at shutdown, without a hook in the application or a cost while it serves.
        """
        module = sys.modules.get("tornado.websocket")
        if module is None:  # the application has no websockets
            return []
        streams = []
        for candidate in gc.get_objects():
            # Not isinstance(), which reads an attribute of the object: that would evaluate a lazy proxy.
            is_handler = issubclass(type(candidate), module.WebSocketHandler)
            connection = getattr(candidate, "ws_connection", None) if is_handler else None
            if connection is not None and connection.stream is not None:
                connection.close(*SERVICE_RESTART)
                streams.append(connection.stream)
        return streams

    def disable_keep_alive(self) -> None:
        """Close each connection after its current response, or after the next one if it is idle."""
        self.conn_params.no_keep_alive = True
        for exchange in self.in_flight:
            exchange._disconnect_on_finish = not is_handshake(exchange._request_headers)

    def close_idle_connections(self) -> None:
        """Close the connections on which no byte of a request has arrived."""
        for connection, observer in list(self.observers.items()):
            stream, exchange = connection.stream, observer.exchange
            # A stream that is not reading has just read a request, which the event loop processes in its next iteration.
            idle = exchange._request_start_line is None and stream.reading() and not stream._read_buffer_size
            if idle and not stream.closed() and not is_readable(stream.socket):
                stream.close()


def make_tornado_server(application: Any, options: Options, tls: ssl.SSLContext | None) -> Server:
    """Return a server for a Tornado or WSGI application, which does not listen yet."""
    if options.wsgi:
        from .wsgi import ContextExecutor, WsgiApplication

        application = WsgiApplication(application, ContextExecutor(options.threads or DEFAULT_THREADS))
    else:
        application = cast(Application, application)
        application.add_transform(UnbufferedEvents)
        application.settings.setdefault("log_function", log_request)
    return Server(
        application,
        xheaders=options.xheaders,
        trusted_downstream=options.trusted_downstream,
        max_body_size=options.max_body_size,
        idle_connection_timeout=options.idle_timeout,
        ssl_options=tls,
    )
