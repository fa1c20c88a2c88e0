"""CPU time of nginx for TLS handshakes and HTTP/2, compared to its defaults with the same certificate."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import sys
from collections import defaultdict

from tests.bench.hosts import PLAIN, Fleet, run
from tests.bench.static import ticks
from tests.bench.table import Table, median, ratio, say

NAME = "secure.test"
HANDSHAKES = 600
REQUESTS = 20_000
FILE = "app.js"
#: Timeout of a connection in seconds.
TIMEOUT = 10.0

NEW, RESUMED, HTTP2 = "TLS handshake", "resumed TLS session", "small file over HTTP/2"
#: Prints the certificate and the key of the site.
CERTIFICATE = "cat $(nginx -T 2>/dev/null | sed -n 's/^ *ssl_certificate{} \\(.*{}.*\\);/\\1/p' | head -n 1)"


def certificate(fleet: Fleet, host: str) -> tuple[str, str]:
    """Return the certificate and the key of the site."""
    return fleet.ssh(host, CERTIFICATE.format("", "secure")), fleet.ssh(host, CERTIFICATE.format("_key", "secure"))


def measure(fleet: Fleet, host: str, rounds: int) -> Table:
    """Measure handshakes and requests on both hosts in turn; a failure ends the benchmark."""
    addresses = fleet.addresses()
    version = hashlib.sha512((fleet.code / "static" / FILE).read_bytes()).hexdigest()
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for kind in (NEW, RESUMED, HTTP2):
            for stack in (PLAIN, host):
                before = ticks(fleet, stack)
                if kind == HTTP2:
                    count = load(addresses[stack], f"/static/{FILE}?v={version}")
                else:
                    count = handshakes(addresses[stack], resume=kind == RESUMED)
                found[kind, stack].append((ticks(fleet, stack) - before) * 10_000 / count)
            say(f"TLS, round {number} of {rounds}, {kind}: {found[kind, PLAIN][-1]:.0f}, {found[kind, host][-1]:.0f} us")
    table = Table(
        "TLS and HTTP/2",
        "Microseconds of nginx's workers per handshake with TLS 1.3, and per request of h2load over 20 connections. Both use\n"
        "the same certificate.",
        ["", "nginx's defaults", "collection's nginx", "collection / defaults"],
    )
    for kind in (NEW, RESUMED, HTTP2):
        ours, theirs = found[kind, host], found[kind, PLAIN]
        table.rows.append([kind, f"{median(theirs):.0f}", f"{median(ours):.0f}", f"{ratio(ours, theirs):.2f}x"])
    return table


def handshakes(address: str, *, resume: bool) -> int:
    """Open connections, each with a request, and resume the session of the first one; return their number."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    session = None
    for _ in range(HANDSHAKES):
        with (
            socket.create_connection((address, 443), TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=NAME, session=session if resume else None) as secure,
        ):
            if session is None:  # its ticket is received with the answer
                secure.sendall(f"HEAD /static/ HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
                secure.recv(1 << 16)
                session = secure.session
            elif resume and not secure.session_reused:
                sys.exit(f"{address} did not resume a TLS session")
    return HANDSHAKES


def load(address: str, path: str) -> int:
    """Request a file over HTTP/2; return the number of requests."""
    connect = f"--connect-to={address}:443"
    output = run(
        ["h2load", f"--requests={REQUESTS}", "--clients=20", "--max-concurrent-streams=10", connect, f"https://{NAME}{path}"]
    )
    if not re.search(rf"status codes: {REQUESTS} 2xx", output):
        sys.exit(f"h2load failed:\n{output}")
    return REQUESTS
