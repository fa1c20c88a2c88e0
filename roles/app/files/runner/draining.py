"""Graceful shutdown: connection draining within the ``--drain`` timeout."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import NoReturn

from tornado.iostream import IOStream
from tornado.websocket import WebSocketHandler

from .errors import log
from .options import Options
from .server import Server
from .sockets import Endpoint, is_readable

MAX_ACCEPT_SECONDS = 1.0
"""Maximum seconds that a draining process keeps accepting connections on a port, where new ones may never cease to arrive.

The path of a Unix socket is removed first.
"""

IDLE_GRACE = 1.0
"""Seconds between the start of the drain and the closing of idle connections.

A request that is sent while its connection is being closed is lost, and HTTP/1.1 cannot notify an idle client in advance.
Clients about to send a request get this time; the response has ``Connection: close``.
"""

POLL_INTERVAL = 0.02
"""Seconds between two checks for remaining connections."""

SERVICE_RESTART = 1012
"""The websocket close code for "service restart", https://www.iana.org/assignments/websocket/."""


async def drain(server: Server, endpoint: Endpoint, options: Options, exit_now: Callable[[int], NoReturn]) -> None:
    """Shut the server down gracefully; call ``exit_now`` with status 0 when the timeout expires."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    end = start + options.drain
    server.disable_keep_alive()
    endpoint.unlink()
    websockets = close_websockets()
    log.info(
        "draining for up to %g s: %d in-flight requests, %d websockets",
        options.drain,
        len(server.in_flight),
        len(websockets),
    )
    # Clients that have connected may wait to be accepted; closing the listening socket would reset them.
    await asyncio.sleep(POLL_INTERVAL)
    accept_until = end if options.socket else start + MAX_ACCEPT_SECONDS
    while any(map(is_readable, endpoint.listeners)) and loop.time() < accept_until:
        await asyncio.sleep(0)
    server.stop()
    # An in-flight request, or a later one on an open connection, may have become a websocket.
    while server.observers or not all(stream.closed() for stream in websockets) or (websockets := close_websockets()):
        if loop.time() >= end:
            log.warning("drain timeout reached: aborting %d in-flight requests", len(server.in_flight))
            close_websockets()
            exit_now(0)
        if loop.time() >= start + IDLE_GRACE:
            server.close_idle_connections()
        await asyncio.sleep(POLL_INTERVAL)
    log.info("drained after %.1f s", loop.time() - start)
    # The event loop now cancels its tasks, and Python waits for its threads; a thread that never ends must not block the exit.
    timer = threading.Timer(max(end - loop.time(), 1), exit_now, [0])
    timer.daemon = True
    timer.start()


def close_websockets() -> list[IOStream]:
    """Start the closing handshake of every websocket; return the streams, which close when the clients have responded.

    Tornado keeps no list of its websockets, and they are no longer connections of the server. The garbage collector finds
    them, once, at shutdown, without a hook in the application or a cost while it serves.
    """
    streams = []
    for candidate in gc.get_objects():
        # Not isinstance(), which reads an attribute of the object: that would evaluate a lazy proxy.
        connection = getattr(candidate, "ws_connection", None) if issubclass(type(candidate), WebSocketHandler) else None
        if connection is not None and connection.stream is not None:
            connection.close(SERVICE_RESTART, "service restart")
            streams.append(connection.stream)
    return streams
