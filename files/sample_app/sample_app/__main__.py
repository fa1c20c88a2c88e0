"""Serve the application for development: ``python -m sample_app --port=8888 --debug``."""

from __future__ import annotations

import asyncio
import logging

from tornado.options import define, options, parse_command_line

from sample_app.web import make_app

define("address", default="127.0.0.1", help="address to listen on, '' for all")
define("port", default=8888, help="port to listen on")
define("debug", default=False, help="reload on changed code, show tracebacks")


async def main() -> None:
    """Serve until interrupted."""
    parse_command_line()
    make_app(debug=options.debug).listen(options.port, options.address)
    logging.info("open http://%s:%d/", options.address or "localhost", options.port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
