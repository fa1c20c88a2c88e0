"""ASGI applications, such as those of FastAPI, Starlette and Django, served by uvicorn within the runner.

uvicorn parses HTTP and websockets and calls the application. Sockets, signals, logs, metrics and the graceful shutdown are those
of the runner, whatever it serves; `Observer` stands between both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Any, cast

import uvicorn

from .asgi_observer import Application, Observer, Websocket
from .errors import RunnerError
from .metrics import Traffic
from .options import Options
from .sockets import Listener, is_readable

FAILURE_SECONDS = 1.0
"""Maximum seconds between the message of a failed startup and the exception that caused it."""


class Connection(asyncio.Protocol):
    """Mixed into uvicorn's protocol: distinguishes idle connections from those with a part of a request.

    Undocumented attributes of uvicorn, verified by tests: ``cycle`` is the current exchange, and ``timeout_keep_alive_task`` is
    the timer that runs from the end of a response to the first byte of the next request.
    """

    cycle: Any
    timeout_keep_alive_task: Any
    transport: asyncio.Transport
    used = False

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        self.used = True
        super().data_received(data)

    def is_idle(self) -> bool:
        """Return whether no byte of a request has arrived."""
        idle = self.timeout_keep_alive_task is not None if self.used else self.cycle is None
        return idle and not is_readable(self.transport.get_extra_info("socket"))


class AsgiServer:
    """Runs uvicorn's protocols on the sockets of the runner."""

    def __init__(self, application: Application, options: Options, tls: ssl.SSLContext | None) -> None:
        """Serve an application, not yet started."""
        self.options = options
        self.tls = tls
        self.traffic = Traffic()
        self.observer = Observer(application, options, self.traffic)
        if options.log_level != "debug":
            logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its lines about each websocket lack the client's address
        self.config = uvicorn.Config(
            self.observer,
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=cast(int, options.idle_timeout),  # any number is accepted
        )
        self.config.load()
        self.lifespan: Any = self.config.lifespan_class(self.config)
        self.server = uvicorn.Server(self.config)
        self.protocol = type("HttpConnection", (Connection, self.config.http_protocol_class), {})
        self.clock: asyncio.Task[None] | None = None
        self.listeners: Sequence[Listener] = ()
        self.servers: list[asyncio.Server] = []

    @property
    def name(self) -> str:
        """Name and version of the software."""
        return f"uvicorn {uvicorn.__version__}"

    @property
    def in_flight_requests(self) -> int:
        """Number of requests whose headers were received and whose response is not complete."""
        return self.observer.in_flight

    @property
    def open_websockets(self) -> int:
        """Number of open websockets."""
        return len(self.observer.websockets)

    @property
    def busy(self) -> bool:
        """Whether a connection is open, or the application still works on a request, such as on its background tasks."""
        state = self.server.server_state
        return bool(state.connections or state.tasks)

    async def startup(self) -> None:
        """Send the lifespan event ``startup``, if the application supports it; raise RunnerError if it fails."""
        await self.lifespan.startup()
        if not self.lifespan.should_exit:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.observer.lifespan_ended.wait(), FAILURE_SECONDS)
        error, target = self.observer.startup_error, ":".join(self.options.target)
        reason = f"{type(error).__name__}: {error}" if error else self.observer.startup_message
        raise RunnerError(f"the lifespan startup of {target} failed: {reason}") from error

    async def serve_on(self, listeners: Sequence[Listener]) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        self.listeners = listeners
        self.clock = asyncio.create_task(self.server.main_loop())  # updates the header Date
        for listener in listeners:
            # A plain socket: the event loop itself pauses when the process runs out of file descriptors.
            shared = socket.fromfd(listener.fileno(), listener.family, listener.type)
            create = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
            self.servers.append(await create(self.connect, sock=shared, ssl=self.tls, backlog=self.options.backlog))

    def connect(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        protocol: asyncio.Protocol = self.protocol(
            config=self.config, server_state=self.server.server_state, app_state=self.lifespan.state
        )
        return protocol

    def stop(self) -> None:
        """Stop accepting connections, and close the listening sockets."""
        for server in self.servers:
            server.close()
        for listener in self.listeners:
            listener.close()

    def disable_keep_alive(self) -> None:
        """Close each connection after its current response, or after the next one if it is idle."""
        self.observer.draining = True

    def close_websockets(self) -> Sequence[Websocket]:
        """Start the closing handshake of every websocket; return those that close when the clients have responded."""
        return self.observer.close_websockets()

    def close_idle_connections(self) -> None:
        """Close the connections on which no byte of a request has arrived."""
        for connection in list(self.server.server_state.connections):
            if isinstance(connection, Connection) and connection.is_idle():
                connection.transport.close()

    async def shutdown(self) -> None:
        """Send the lifespan event ``shutdown``."""
        self.server.should_exit = True
        await self.lifespan.shutdown()
