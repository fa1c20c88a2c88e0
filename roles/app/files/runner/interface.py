"""What starting, metrics and graceful shutdown require of a server, whatever kind of application it serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .sockets import Listener

if TYPE_CHECKING:
    from .metrics import Traffic

SERVICE_RESTART = (1012, "service restart")
"""The code and the reason with which websockets are closed, https://www.iana.org/assignments/websocket/."""


class Closing(Protocol):
    """A websocket whose closing handshake has started."""

    def closed(self) -> bool:
        """Return whether the connection is closed."""


class AppServer(Protocol):
    """Serves an application: Tornado's HTTP server for Tornado and WSGI applications, uvicorn for ASGI applications."""

    traffic: Traffic

    @property
    def name(self) -> str:
        """Name and version of the software."""

    @property
    def in_flight_requests(self) -> int:
        """Number of requests whose headers were received and whose response is not complete."""

    @property
    def open_websockets(self) -> int:
        """Number of open websockets."""

    @property
    def busy(self) -> bool:
        """Whether a connection is open, or the application still works on a request."""

    async def startup(self) -> None:
        """Prepare the application; raise RunnerError if that fails."""

    async def serve_on(self, listeners: Sequence[Listener]) -> None:
        """Accept connections."""

    def stop(self) -> None:
        """Stop accepting connections, and close the listening sockets."""

    def disable_keep_alive(self) -> None:
        """Close each connection after its current response, or after the next one if it is idle."""

    def close_websockets(self) -> Sequence[Closing]:
        """Start the closing handshake of every websocket; return those that close when the clients have responded."""

    def close_idle_connections(self) -> None:
        """Close the connections on which no byte of a request has arrived."""

    async def shutdown(self) -> None:
        """Notify the application, which has no requests any more, of the end of the process."""
