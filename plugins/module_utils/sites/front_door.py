"""The front door of an app: the address at which clients reach its site through the reverse proxy of the host."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import ProbeResult, exchange

#: The loopback address of a listener on all addresses.
_LOOPBACK = {"": "127.0.0.1", "*": "127.0.0.1", str(ipaddress.IPv4Address(0)): "127.0.0.1", "::": "::1"}

#: A PROXY header (version 1) without addresses: the connection's own apply.
_PROXY_HEADER = b"PROXY UNKNOWN\r\n"


@dataclass(frozen=True)
class FrontDoor:
    """The listen address of a site, over TLS or not, and the domain that selects the site there.

    The roles write it beside the configuration of the site, from which it is derived.
    """

    address: str
    port: int
    domain: str
    tls: bool = False
    proxy_protocol: bool = False

    @classmethod
    def of(cls, listen: str, domain: str, *, tls: bool, proxy_protocol: bool = False) -> FrontDoor:
        """Return the front door at a listen address of nginx or HAProxy: ``80``, ``192.0.2.1:80`` or ``[::]:80``."""
        host, _colon, port = listen.rpartition(":")
        address = host.strip("[]")
        return cls(_LOOPBACK.get(address, address), int(port), domain, tls, proxy_protocol)

    @property
    def url(self) -> str:
        """The URL of the site, for messages."""
        return f"{'https' if self.tls else 'http'}://{self.domain}"

    def to_json(self) -> str:
        """Return the content of its file."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FrontDoor:
        """Parse the content of its file.

        :raises ValueError: if the text is not JSON.
        :raises TypeError: if keys are missing or unknown.
        """
        return cls(**json.loads(text))

    def ask(self, path: str, headers: Mapping[str, str], timeout: float) -> ProbeResult:
        """Send ``GET path`` from the loopback address, as a client of the site, and return the response.

        The certificate is not verified: whether clients accept it is not a property of the release.

        :raises OSError: if there is no response within ``timeout`` seconds.
        """
        deadline = Deadline(timeout)
        source = "::1" if ":" in self.address else "127.0.0.1"
        with socket.create_connection((self.address, self.port), timeout, (source, 0)) as plain:
            if self.proxy_protocol:
                plain.sendall(_PROXY_HEADER)
            with self._encrypted(plain) as connection:
                return exchange(connection, path, dict(headers) | {"Host": self.domain}, deadline)

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        if not self.tls:
            return plain
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(plain, server_hostname=self.domain)
