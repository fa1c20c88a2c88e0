"""Clients of other HTTP services, with retries: a base class and an example."""

from __future__ import annotations

import json
import logging
from typing import Any, ClassVar
from urllib.parse import quote

import tenacity
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httputil import url_concat
from tornado.web import HTTPError

from sample_app.errors import UnavailableError
from sample_app.handlers import BaseHandler

TRANSIENT_STATUSES = (429, 500, 502, 503, 504, 599)
"""HTTP statuses worth a retry; Tornado reports a timeout or a failed connection as 599."""

log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed."""
    return isinstance(error, OSError) or (isinstance(error, HTTPClientError) and error.code in TRANSIENT_STATUSES)


class Connector:
    """A client of the service at a base URL. All requests are read-only, so they can be retried."""

    attempts: ClassVar[int] = 4
    timeout: ClassVar[float] = 3.0

    def __init__(self, url: str) -> None:
        """Create a client for the service at ``url``."""
        self.url = url.rstrip("/")

    async def get(self, *path: str, **arguments: str) -> Any:
        """Fetch JSON from a path, whose parts are quoted, so that no part can change the address.

        Transient errors are retried after 0.1 s, 0.2 s, 0.4 s and so on, with jitter, so that clients that failed together do
        not retry together. Raises HTTPClientError or OSError if all attempts fail.
        """
        url = url_concat("/".join([self.url, *(quote(part, safe="") for part in path)]), arguments)
        async for attempt in tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential_jitter(initial=0.1, max=2, jitter=0.1),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
            reraise=True,
        ):
            with attempt:
                response = await AsyncHTTPClient().fetch(
                    url, connect_timeout=self.timeout, request_timeout=self.timeout, follow_redirects=False
                )
        return json.loads(response.body)


class ItemsConnector(Connector):
    """The example: a service with items."""

    async def item(self, name: str) -> Any:
        """Fetch an item."""
        return await self.get("items", name)


class FetchHandler(BaseHandler):
    """Returns an item of the service at ``SAMPLE_UPSTREAM``."""

    async def get(self, name: str) -> None:
        """Fetch the item. The client chooses the item, not the address."""
        if not self.config.upstream:
            raise UnavailableError("no upstream is configured: set SAMPLE_UPSTREAM")
        try:
            self.write({"item": await ItemsConnector(self.config.upstream).item(name)})
        except (HTTPClientError, OSError, ValueError) as error:
            if isinstance(error, HTTPClientError) and error.code == 404:
                raise HTTPError(404, reason="no such item") from error
            raise HTTPError(502, f"upstream: {error}", reason="the upstream is unavailable or its response is invalid") from error
