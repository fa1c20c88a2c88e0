"""The tutorial app of a platform, ported to current Tornado: a Procfile defines the command, the platform sets the port."""

from __future__ import annotations

import asyncio
import signal
import socket

import tornado.web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.options import define, options, parse_command_line
from tornado.process import fork_processes

define("port", type=int, default=5555, help="port to listen on")
define("address", default="127.0.0.1", help="address to listen on; empty: all, if the reverse proxy is on another host")


class MainHandler(tornado.web.RequestHandler):
    """Returns a greeting."""

    async def get(self) -> None:
        """Respond as in the tutorial."""
        self.write("Hello, world!")


def make_app() -> tornado.web.Application:
    """Create the application."""
    return tornado.web.Application([(r"/", MainHandler)])


async def serve(sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM, which aborts in-flight requests: traffic must be drained before."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    server = HTTPServer(make_app())
    server.add_sockets(sockets)
    await stopping.wait()
    server.stop()
    await server.close_all_connections()


def main() -> None:
    """Serve from one process per CPU on a shared port, as ``server.start(0)`` did before Tornado used asyncio.

    Fork before the event loop starts, because it cannot be forked.
    """
    parse_command_line()
    sockets = bind_sockets(options.port, options.address)
    fork_processes(0)
    asyncio.run(serve(sockets))


if __name__ == "__main__":
    main()
