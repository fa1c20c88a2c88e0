"""Graceful shutdown of the standalone server: in-flight requests finish, and several processes stop together."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.process import fork_processes

#: Maximum seconds that in-flight requests get to finish.
DRAIN_TIMEOUT = 30.0
#: Seconds between two checks for in-flight requests.
POLL_INTERVAL = 0.02


class Server(HTTPServer):
    """An HTTPServer that tracks the last exchange, a request and its response, of each connection."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as an HTTPServer does."""
        super().initialize(*args, **kwargs)
        self.exchanges: dict[object, HTTP1Connection] = {}

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Track a connection that waits for its first or next request."""
        self.exchanges[server_conn] = cast(HTTP1Connection, request_conn)
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        """Stop tracking a connection that was closed or has become a websocket."""
        self.exchanges.pop(server_conn, None)
        super().on_close(server_conn)

    @property
    def in_flight_requests(self) -> int:
        """Number of requests whose headers were received and whose response is not complete.

        The attribute is undocumented: Tornado sets it when it has received the headers.
        """
        return sum(exchange._request_start_line is not None for exchange in self.exchanges.values())

    async def drain(self) -> None:
        """Stop accepting connections, let in-flight requests finish, and close all connections."""
        self.stop()
        self.conn_params.no_keep_alive = True
        end = time.monotonic() + DRAIN_TIMEOUT
        while self.in_flight_requests and time.monotonic() < end:
            await asyncio.sleep(POLL_INTERVAL)
        await self.close_all_connections()


def fork(count: int) -> socket.socket:
    """Fork processes, one per CPU if ``count`` is 0; return, in each of them, a socket that is readable once they must stop.

    Only the parent has the other end, and closes it at SIGTERM or when it is killed. The parent restarts processes that fail, and
    exits in here when all have stopped.
    """
    parent_end, child_end = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: parent_end.close())
    fork_processes(count)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent_end.close()
    return child_end
