"""Client of etcd's v3 API through its JSON gateway (etcd 3.4 or later): https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/."""

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
"""Seconds after which the next endpoint is tried."""

REJECTED = (400, 401, 403)
"""HTTP statuses for a wrong password or a missing user, an expired token, and a missing permission."""


class EtcdError(Exception):
    """Etcd rejected a request."""

    def __init__(self, status: int) -> None:
        """Store the HTTP status, to which etcd maps that of gRPC."""
        super().__init__(f"etcd returned status {status}")
        self.status = status


def encode(text: str) -> str:
    """Encode a key or a value for the API."""
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """Decode a key or a value of the API."""
    return base64.b64decode(text).decode()


class Etcd:
    """A client of an etcd cluster with one or more endpoints. Every method may raise UnavailableError."""

    def __init__(self, endpoints: Sequence[str], *, user: str = "", password: str = "", ca: str = "") -> None:
        """Set the URLs, the user if etcd requires authentication, and the CA file if the system does not trust the CA."""
        self.endpoints = list(endpoints)
        self.user, self.password, self.ca = user, password, ca
        self.token = ""

    @functools.cached_property
    def http(self) -> AsyncHTTPClient:
        """A separate HTTP client, because hanging requests would block others of the app."""
        return AsyncHTTPClient(force_instance=True, max_clients=100)

    async def call(self, method: str, **body: Any) -> dict[str, Any]:
        """Call a method such as ``kv/range``; an expired token is renewed."""
        try:
            if not self.user:
                return await self.request(method, body)
            if self.token:
                with contextlib.suppress(EtcdError):  # the token may have expired
                    return await self.request(method, body)
            self.token = ""
            self.token = (await self.request("auth/authenticate", {"name": self.user, "password": self.password}))["token"]
            return await self.request(method, body)
        except EtcdError as error:
            if error.status in REJECTED:
                raise UnavailableError("the lock server rejected the credentials of this app", error) from error
            raise UnavailableError("the response of the lock server is invalid", error) from error
        except (TypeError, ValueError) as error:
            raise UnavailableError("the response of the lock server is invalid", error) from error

    async def request(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request to each endpoint in turn until one responds, which is preferred from then on."""
        failed: list[str] = []
        for endpoint in list(self.endpoints):
            head: list[str] = []
            try:
                response = await self.http.fetch(
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
                # Tornado's client rejects the trailers of an error response of etcd, so only the status is available.
                status = int(head[0].split()[1]) if head else 599
                if 400 <= status < 500:
                    raise EtcdError(status) from error
                failed.append(f"{endpoint}: {f'status {status}' if head else error}")
            else:
                result = json.loads(response.body)
                if not isinstance(result, dict):
                    raise TypeError("the response is not a JSON object")
                return result
            if self.endpoints[0] == endpoint:
                self.endpoints.append(self.endpoints.pop(0))
        raise UnavailableError("the lock server is unavailable", "; ".join(failed))

    async def grant(self, seconds: int) -> tuple[str, float]:
        """Create a lease; return its id and its TTL in seconds, which may be longer than requested."""
        granted = await self.call("lease/grant", TTL=seconds)
        return granted["ID"], float(granted["TTL"])

    async def keep_alive(self, lease: str) -> float:
        """Renew a lease; return its TTL in seconds, or 0 if it has expired."""
        return float((await self.call("lease/keepalive", ID=lease))["result"].get("TTL", 0))

    async def revoke(self, lease: str) -> None:
        """Revoke a lease, which deletes its keys."""
        await self.call("lease/revoke", ID=lease)

    async def get(self, key: str) -> str | None:
        """Return the current value of a key (linearizable read), or None."""
        found = (await self.call("kv/range", key=encode(key))).get("kvs")
        return decode(found[0].get("value", "")) if found else None

    async def create(self, key: str, value: str, lease: str) -> int:
        """Create a key with a lease unless it exists; return its create revision, or 0 if the key belongs to another lease.

        Revisions only increase. A request that is repeated because the first response was lost finds its own key.
        """
        result = await self.call(
            "kv/txn",
            compare=[{"key": encode(key), "target": "CREATE", "create_revision": "0"}],
            success=[{"request_put": {"key": encode(key), "value": encode(value), "lease": lease}}],
            failure=[{"request_range": {"key": encode(key)}}],
        )
        if result.get("succeeded"):
            return int(result["header"]["revision"])
        existing = result["responses"][0]["response_range"]["kvs"][0]
        return int(existing["create_revision"]) if existing.get("lease") == lease else 0

    async def put_while(self, guard: str, revision: int, key: str, value: str) -> bool:
        """Put a value only if the key ``guard`` still has this create revision; return whether it has."""
        result = await self.call(
            "kv/txn",
            compare=[{"key": encode(guard), "target": "CREATE", "create_revision": str(revision)}],
            success=[{"request_put": {"key": encode(key), "value": encode(value)}}],
        )
        return bool(result.get("succeeded"))
