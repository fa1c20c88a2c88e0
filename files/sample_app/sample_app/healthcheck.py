"""Health check of a container: ``python -m sample_app.healthcheck`` fails if the app on the port ``PORT`` is unhealthy."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from http import HTTPStatus

TIMEOUT = 3.0


def check(port: int) -> str:
    """Return the reason why the app on a port of this machine is unhealthy; an empty string if it is healthy."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        try:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"no response: {error}"
        return "" if status == HTTPStatus.OK else f"/healthz returned {status}"


if __name__ == "__main__":
    sys.exit(check(int(os.environ["PORT"])) or 0)
