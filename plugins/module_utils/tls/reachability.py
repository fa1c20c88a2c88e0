"""A self-check before an order: whether an http-01 challenge for each domain would reach this host.

A failed validation counts against the rate limits of the ACME server, so mistakes such as a misspelled domain are found first.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll, retry
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import probe
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import CHALLENGE_URL
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CHALLENGE_PORT

#: Timeout of one request in seconds, and of waiting for the port while certbot uses it.
TIMEOUT, PORT_TIMEOUT = 5.0, 30.0

#: Seconds that a proxy may take to load its configuration, and keepalived to take the floating IP.
SETTLING = 10.0

#: The reason of a name that is misspelled or not yet in the DNS.
UNRESOLVED = "does not resolve"

#: Names that are checked at the same time.
_PARALLEL = 16

#: Errors that say something about this host's connections rather than the ACME server's.
_OWN_ERRORS = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def unreachable_domains(
    domains: Sequence[str], port: int = CHALLENGE_PORT, http_port: int = 80, settling: float = SETTLING
) -> list[str]:
    """Return the reason for each domain at which a challenge would not reach this host within ``settling`` seconds.

    While certbot uses the ``port``, nothing can be checked, so no domain has one.
    """
    token = secrets.token_urlsafe(16)
    try:
        server = retry(lambda: _server(port, token), OSError, lambda _: True, timeout=PORT_TIMEOUT, interval=1)
    except OSError:
        return []

    def reasons() -> list[str]:
        found = executor.map(lambda domain: _reason(domain, http_port, token), domains)
        return [f"{domain} {reason}" for domain, reason in zip(domains, found, strict=True) if reason]

    with _running(server), ThreadPoolExecutor(min(_PARALLEL, len(domains))) as executor:
        return poll(
            reasons, lambda found: not found or any(UNRESOLVED in reason for reason in found), timeout=settling, interval=1
        )


def _reason(domain: str, port: int, token: str) -> str:
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(domain, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return UNRESOLVED
    reasons = {address: reason for address in sorted(addresses) if (reason := _answer(address, port, domain, token))}
    return "; ".join(f"resolves to {address}, which {reason}" for address, reason in reasons.items())


def _answer(address: str, port: int, domain: str, token: str) -> str:
    """Return why the answer of an address is not that of this host, or an empty string."""
    try:
        answer = probe((address, port), f"{CHALLENGE_URL}{token}", domain, TIMEOUT)
    except OSError as error:
        return "" if error.errno in _OWN_ERRORS else f"does not answer on port {port}: {error.strerror or error}"
    if answer.status in (301, 302, 303, 307, 308):
        return ""  # the ACME server follows redirects, to wherever it can connect
    if answer.status == 200 and answer.body.strip() == token.encode():
        return ""
    return f"does not forward challenges to this host: it answers {answer.status}"


def _server(port: int, token: str) -> ThreadingHTTPServer:
    """Return a server on all interfaces that answers the path of ``token`` with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == f"{CHALLENGE_URL}{token}"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(token.encode() if known else b"")

        def log_message(self, *_arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        daemon_threads = True

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    return Server(("", port), Handler)


@contextlib.contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
