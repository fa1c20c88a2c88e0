"""Standalone server for development and for containers: ``python -m sample_app --port=8888 --debug``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading

from tornado.netutil import bind_sockets

from sample_app import logs
from sample_app.server import Server, fork
from sample_app.settings import Settings, SettingsError, read
from sample_app.web import make_app

#: Maximum seconds from an interrupt to the exit of the process.
EXIT_TIMEOUT = 5.0


async def serve(settings: Settings, sockets: list[socket.socket], parent: socket.socket | None) -> None:
    """Serve until interrupted, or until SIGTERM or the end of the parent process; then drain."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent, stopping.set)
    tls = {"certfile": settings.certificate, "keyfile": settings.key} if settings.ssl else None
    app = make_app(config=settings, debug=settings.debug)
    async with app.settings["services"].cleanup:
        server = Server(app, ssl_options=tls)
        server.add_sockets(sockets)
        scheme = "https" if settings.ssl else "http"
        logging.info("serving %s://%s:%d/", scheme, settings.address or "localhost", sockets[0].getsockname()[1])
        try:
            await stopping.wait()
            logging.info("stopping: %d in-flight requests", server.in_flight_requests)
            await server.drain()
        finally:
            # asyncio waits for all cancelled tasks, and a database driver's may miss the cancellation: python/cpython#86296.
            timer = threading.Timer(EXIT_TIMEOUT, os._exit, [0])
            timer.daemon = True
            timer.start()


def main() -> None:
    """Parse the command line, bind the port, and serve from ``--proc`` processes."""
    try:
        settings = read(sys.argv[1:])
        sockets = bind_sockets(settings.port, settings.address)
    except (SettingsError, OSError) as error:
        sys.exit(f"sample_app: {error}")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            parent = fork(settings.proc) if settings.proc != 1 else None
            logs.configure(settings)
            asyncio.run(serve(settings, sockets, parent))
    except SettingsError as error:  # of settings that are validated only when they are used
        sys.exit(f"sample_app: {error}")


if __name__ == "__main__":
    main()
