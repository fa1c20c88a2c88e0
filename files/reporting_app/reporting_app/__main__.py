"""Serve the application for development: ``python -m reporting_app --port=8000 --debug``."""

from __future__ import annotations

import argparse

from reporting_app.web import CONFIG, app


def main() -> None:
    """Serve until interrupted; with ``--debug``, hot reload on changes of code and configuration."""
    parser = argparse.ArgumentParser(prog="python -m reporting_app", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="hot reload on changes, show tracebacks")
    options = parser.parse_args()
    app.run(port=options.port, debug=options.debug, extra_files=[CONFIG])


if __name__ == "__main__":
    main()
