"""A minimal app."""

from __future__ import annotations

import tornado.web


class Main(tornado.web.RequestHandler):
    """The page."""

    def get(self) -> None:
        """Send a greeting."""
        self.write("Hello")


def make_app() -> tornado.web.Application:
    """Return the app."""
    return tornado.web.Application([("/", Main)])
