"""Graceful shutdown: connection draining within the ``--drain`` timeout."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import NoReturn

from .errors import log
from .interface import AppServer
from .options import Options
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

SHUTDOWN_SECONDS = 1
"""Minimum time for the application's own shutdown, also after the drain timeout."""


async def drain(server: AppServer, endpoint: Endpoint, options: Options, exit_now: Callable[[int], NoReturn]) -> None:
    """Shut the server down gracefully; call ``exit_now`` with status 0 when the timeout expires."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    end = start + options.drain
    server.disable_keep_alive()
    endpoint.unlink()
    websockets = server.close_websockets()
    log.info(
        "draining for up to %g s: %d in-flight requests, %d websockets",
        options.drain,
        server.in_flight_requests,
        len(websockets),
    )
    # Clients that have connected may wait to be accepted; closing the listening socket would reset them.
    await asyncio.sleep(POLL_INTERVAL)
    accept_until = end if options.socket else start + MAX_ACCEPT_SECONDS
    while any(map(is_readable, endpoint.listeners)) and loop.time() < accept_until:
        await asyncio.sleep(0)
    server.stop()
    # An in-flight request, or a later one on an open connection, may have become a websocket.
    while server.busy or not all(websocket.closed() for websocket in websockets) or (websockets := server.close_websockets()):
        if loop.time() >= end:
            log.warning("drain timeout reached: aborting %d in-flight requests", server.in_flight_requests)
            server.close_websockets()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.shutdown(), SHUTDOWN_SECONDS)
            exit_now(0)
        if loop.time() >= start + IDLE_GRACE:
            server.close_idle_connections()
        await asyncio.sleep(POLL_INTERVAL)
    log.info("drained after %.1f s", loop.time() - start)
    # The event loop now cancels its tasks, and Python waits for its threads; a thread that never ends must not block the exit.
    timer = threading.Timer(max(end - loop.time(), SHUTDOWN_SECONDS), exit_now, [0])
    timer.daemon = True
    timer.start()
    await server.shutdown()
