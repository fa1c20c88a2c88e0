"""Serve the application for development: ``python -m rest_api --port=8001 --debug``."""

from __future__ import annotations

import argparse

from rest_api.web import CONFIG, app


def main() -> None:
    """Serve until interrupted; with ``--debug``, hot reload on changes of code and configuration."""
    parser = argparse.ArgumentParser(prog="python -m rest_api", description=__doc__)
    parser.add_argument("--port", type=int, default=8001, help="port on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="hot reload on changes, show tracebacks")
    options = parser.parse_args()
    app.run(port=options.port, debug=options.debug, extra_files=[CONFIG])


if __name__ == "__main__":
    main()
