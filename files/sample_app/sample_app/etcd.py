"""etcd's v3 interface as JSON over HTTP, which every etcd from 3.4 on serves: https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
from collections.abc import Sequence
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from sample_app.errors import UnavailableError

REQUEST_TIMEOUT = 1.0
"""Seconds until the next endpoint is asked."""

REFUSED = (400, 401, 403)
"""What etcd answers to the wrong password or no user, to a token that has ended, and to a user who may not do this."""


class EtcdError(Exception):
    """Etcd has refused a request."""

    def __init__(self, status: int) -> None:
        """Take the HTTP status, which etcd makes of gRPC's."""
        super().__init__(f"etcd answers with status {status}")
        self.status = status


def encode(text: str) -> str:
    """Return a key or a value as it is sent."""
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """Return a key or a value that was sent."""
    return base64.b64decode(text).decode()


class Etcd:
    """A client of one etcd, which may have several endpoints. Every method may raise UnavailableError."""

    def __init__(self, endpoints: Sequence[str], *, user: str = "", password: str = "", ca: str = "") -> None:
        """Take the URLs, the user if etcd asks for one, and the file of the authority if it is not one of the system's."""
        self.endpoints = list(endpoints)
        self.user, self.password, self.ca = user, password, ca
        self.token = ""

    @functools.cached_property
    def http(self) -> AsyncHTTPClient:
        """The HTTP client: one of its own, because requests that hang would keep others of the app waiting."""
        return AsyncHTTPClient(force_instance=True, max_clients=100)

    async def call(self, method: str, **body: Any) -> dict[str, Any]:
        """Call a method such as ``kv/range``; a token that has ended is replaced by another."""
        try:
            if not self.user:
                return await self.ask(method, body)
            if self.token:
                with contextlib.suppress(EtcdError):  # it may have ended
                    return await self.ask(method, body)
            self.token = ""
            self.token = (await self.ask("auth/authenticate", {"name": self.user, "password": self.password}))["token"]
            return await self.ask(method, body)
        except EtcdError as error:
            if error.status in REFUSED:
                raise UnavailableError("the lock server refuses the user of this app", error) from error
            raise UnavailableError("the lock server does not answer as it should", error) from error
        except (TypeError, ValueError) as error:
            raise UnavailableError("the lock server does not answer as it should", error) from error

    async def ask(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request to one endpoint after the other until one serves it; that one is asked first from then on."""
        failed: list[str] = []
        for endpoint in list(self.endpoints):
            head: list[str] = []
            try:
                answer = await self.http.fetch(
                    f"{endpoint}/v3/{method}",
                    method="POST",
                    body=json.dumps(body),
                    headers={"Authorization": self.token} if self.token else {},
                    connect_timeout=REQUEST_TIMEOUT,
                    request_timeout=REQUEST_TIMEOUT,
                    follow_redirects=False,
                    header_callback=head.append,
                    ca_certs=self.ca or None,
                )
            except (HTTPClientError, OSError) as error:
                # After an error etcd sends trailers, at which Tornado's client gives up: the status is all there is of it.
                status = int(head[0].split()[1]) if head else 599
                if 400 <= status < 500:
                    raise EtcdError(status) from error
                failed.append(f"{endpoint}: {f'status {status}' if head else error}")
            else:
                result = json.loads(answer.body)
                if not isinstance(result, dict):
                    raise TypeError("its answer is no object")
                return result
            if self.endpoints[0] == endpoint:
                self.endpoints.append(self.endpoints.pop(0))
        raise UnavailableError("the lock server does not answer", "; ".join(failed))

    async def grant(self, seconds: int) -> tuple[str, float]:
        """Make a lease; return its id, and the seconds it is good for, which may be more."""
        granted = await self.call("lease/grant", TTL=seconds)
        return granted["ID"], float(granted["TTL"])

    async def keep_alive(self, lease: str) -> float:
        """Begin a lease's time anew; return the seconds it is good for, 0 when it has ended."""
        return float((await self.call("lease/keepalive", ID=lease))["result"].get("TTL", 0))

    async def revoke(self, lease: str) -> None:
        """End a lease: what was put with it is gone."""
        await self.call("lease/revoke", ID=lease)

    async def get(self, key: str) -> str | None:
        """Return what was put, as of now and not as of some time ago; None if there is nothing."""
        found = (await self.call("kv/range", key=encode(key))).get("kvs")
        return decode(found[0].get("value", "")) if found else None

    async def create(self, key: str, value: str, lease: str) -> int:
        """Put a value unless there is one, for as long as the lease lasts.

        Return the revision of its creation, a number that only grows; 0 if the key is another's. A request that is sent
        again, because the answer to the first one was lost, finds its own key and says so.
        """
        done = await self.call(
            "kv/txn",
            compare=[{"key": encode(key), "target": "CREATE", "create_revision": "0"}],
            success=[{"request_put": {"key": encode(key), "value": encode(value), "lease": lease}}],
            failure=[{"request_range": {"key": encode(key)}}],
        )
        if done.get("succeeded"):
            return int(done["header"]["revision"])
        kept = done["responses"][0]["response_range"]["kvs"][0]
        return int(kept["create_revision"]) if kept.get("lease") == lease else 0

    async def put_while(self, guard: str, revision: int, key: str, value: str) -> bool:
        """Put a value if the key ``guard`` is still the one that was created in a revision; False if it is not."""
        done = await self.call(
            "kv/txn",
            compare=[{"key": encode(guard), "target": "CREATE", "create_revision": str(revision)}],
            success=[{"request_put": {"key": encode(key), "value": encode(value)}}],
        )
        return bool(done.get("succeeded"))
