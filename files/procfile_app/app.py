"""The example of a platform's tutorial, brought to today's Tornado: a Procfile names its command, the platform its port."""

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
define("address", default="127.0.0.1", help="address to listen on; empty: all, for a platform whose proxy is on another host")


class MainHandler(tornado.web.RequestHandler):
    """Greets whoever asks."""

    async def get(self) -> None:
        """Answer as the tutorial says."""
        self.write("Hello, world!")


def make_app() -> tornado.web.Application:
    """Return the application."""
    return tornado.web.Application([(r"/", MainHandler)])


async def serve(sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM. What is in progress then is cut: whoever stops it has to send nothing here for a moment before."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    server = HTTPServer(make_app())
    server.add_sockets(sockets)
    await stopping.wait()
    server.stop()
    await server.close_all_connections()


def main() -> None:
    """Share the port among a process per CPU: what ``server.start(0)`` did before event loops belonged to asyncio.

    The fork comes first, because a loop cannot be forked.
    """
    parse_command_line()
    sockets = bind_sockets(options.port, options.address)
    fork_processes(0)
    asyncio.run(serve(sockets))


if __name__ == "__main__":
    main()
