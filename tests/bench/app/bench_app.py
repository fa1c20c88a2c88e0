"""The app of the benchmark: small and large responses, a file and websockets.

``python bench_app.py --port=8000`` starts it as in Tornado's documentation; with ``--reuse`` several processes share a port.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.options import define, options, parse_command_line
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

#: Data that do not compress well, like an image.
LARGE = bytes((number * number >> 3) % 251 for number in range(100_000))


class SmallHandler(RequestHandler):
    """Responds with a few bytes."""

    def get(self) -> None:
        """Respond immediately."""
        self.write({"status": "ok"})


class LargeHandler(RequestHandler):
    """Responds with 100 kB."""

    def get(self) -> None:
        """Respond immediately."""
        self.set_header("Content-Type", "application/octet-stream")
        self.write(LARGE)


class EchoSocket(WebSocketHandler):
    """Echoes each message."""

    async def on_message(self, message: str | bytes) -> None:
        """Echo the message."""
        await self.write_message(message)


def make_app() -> Application:
    """Return the application."""
    handlers = [("/healthz", SmallHandler), ("/large", LargeHandler), ("/echo", EchoSocket)]
    return Application(handlers, static_path=str(Path(__file__).parent / "static"))


async def main() -> None:
    """Serve until the process is killed."""
    server = HTTPServer(make_app(), xheaders=True)
    server.add_sockets(bind_sockets(options.port, reuse_port=options.reuse))
    await asyncio.Event().wait()


if __name__ == "__main__":
    define("port", default=8000, type=int)
    define("reuse", default=False, type=bool)
    parse_command_line()
    asyncio.run(main())
