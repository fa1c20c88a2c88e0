"""The app that is served in every way that is compared: small answers, large ones, a file and websockets.

``python bench_app.py --port=8000`` starts it as Tornado's documentation does; with ``--reuse`` several take one port.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.options import define, options, parse_command_line
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

#: Bytes no compression makes much smaller, as those of an image.
LARGE = bytes((number * number >> 3) % 251 for number in range(100_000))


class SmallHandler(RequestHandler):
    """Answers with a few bytes."""

    def get(self) -> None:
        """Answer at once."""
        self.write({"status": "ok"})


class LargeHandler(RequestHandler):
    """Answers with 100 kB."""

    def get(self) -> None:
        """Answer at once."""
        self.set_header("Content-Type", "application/octet-stream")
        self.write(LARGE)


class EchoSocket(WebSocketHandler):
    """Sends each message back."""

    async def on_message(self, message: str | bytes) -> None:
        """Send it back."""
        await self.write_message(message)


def make_app() -> Application:
    """Make the application."""
    handlers = [("/healthz", SmallHandler), ("/large", LargeHandler), ("/echo", EchoSocket)]
    return Application(handlers, static_path=str(Path(__file__).parent / "static"))


async def main() -> None:
    """Serve until the process is ended."""
    server = HTTPServer(make_app(), xheaders=True)
    server.add_sockets(bind_sockets(options.port, reuse_port=options.reuse))
    await asyncio.Event().wait()


if __name__ == "__main__":
    define("port", default=8000, type=int)
    define("reuse", default=False, type=bool)
    parse_command_line()
    asyncio.run(main())
