"""Other services over HTTP: a base class for their clients, and an example."""

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

PASSING = (429, 500, 502, 503, 504, 599)
"""Statuses that may be other ones in a moment; 599 is Tornado's word for no answer in time, or no answer at all."""

log = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Say whether it may help to ask again."""
    return isinstance(error, OSError) or (isinstance(error, HTTPClientError) and error.code in PASSING)


class Connector:
    """A service at a base URL. What it is asked is read only, so it may be asked again."""

    attempts: ClassVar[int] = 4
    timeout: ClassVar[float] = 3.0

    def __init__(self, url: str) -> None:
        """Take the base URL."""
        self.url = url.rstrip("/")

    async def get(self, *path: str, **arguments: str) -> Any:
        """Return the JSON that the service has at a path, whose parts are quoted: no part leads elsewhere.

        After an error that may pass it is asked again, after 0.1 s, 0.2 s, 0.4 s and so on with some chance in it, so that
        those who failed together do not come back together. Raises HTTPClientError or OSError when that does not help either.
        """
        url = url_concat("/".join([self.url, *(quote(part, safe="") for part in path)]), arguments)
        async for attempt in tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential_jitter(initial=0.1, max=2, jitter=0.1),
            retry=tenacity.retry_if_exception(is_passing),
            before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
            reraise=True,
        ):
            with attempt:
                response = await AsyncHTTPClient().fetch(
                    url, connect_timeout=self.timeout, request_timeout=self.timeout, follow_redirects=False
                )
        return json.loads(response.body)


class ItemsConnector(Connector):
    """The example: a service that has items."""

    async def item(self, name: str) -> Any:
        """Return an item."""
        return await self.get("items", name)


class FetchHandler(BaseHandler):
    """Answers with an item of the service that ``SAMPLE_UPSTREAM`` names."""

    async def get(self, name: str) -> None:
        """Fetch it. The client chooses the item and nothing of the address."""
        if not self.config.upstream:
            raise UnavailableError("there is no upstream: set SAMPLE_UPSTREAM")
        try:
            self.write({"item": await ItemsConnector(self.config.upstream).item(name)})
        except (HTTPClientError, OSError, ValueError) as error:
            if isinstance(error, HTTPClientError) and error.code == 404:
                raise HTTPError(404, reason="there is no such item") from error
            raise HTTPError(502, f"upstream: {error}", reason="the upstream does not answer as it should") from error
