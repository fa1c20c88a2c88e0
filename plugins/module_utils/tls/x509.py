"""Certificates in PEM files, as openssl shows them."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import run
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import is_covered

_DAY = 86_400

#: Maximum number of seconds before its expiry at which a certificate is overdue for renewal.
MAX_WARNING = 14 * _DAY


@dataclass(frozen=True)
class Certificate:
    """The first certificate of a PEM file; it is valid from ``begins`` until ``expires``, Unix timestamps."""

    names: frozenset[str]
    issuer: str
    begins: float
    expires: float
    self_signed: bool
    public_key: str

    def days_left(self, now: float) -> int:
        """Return the whole days until the certificate expires; negative if it has expired."""
        return int((self.expires - now) // _DAY)

    @property
    def lifetime(self) -> float:
        """The validity in seconds."""
        return self.expires - self.begins

    def is_overdue(self, now: float) -> bool:
        """Return whether the certificate should have been renewed: a sixth of its lifetime is left, and at most 14 days."""
        return self.expires - now < min(self.lifetime / 6, MAX_WARNING)

    def missing(self, domains: Iterable[str]) -> list[str]:
        """Return the ``domains`` that the certificate does not cover."""
        return [domain for domain in domains if not is_covered(domain, self.names)]

    def describe(self) -> str:
        """Return a summary of one line."""
        issuer = "self-signed" if self.self_signed else f"issued by {self.issuer}"
        return f"{', '.join(sorted(self.names))}, {issuer}, until {format_date(self.expires)}"


def format_date(timestamp: float) -> str:
    """Return the date of a Unix timestamp in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(timestamp))


def read(path: Path) -> Certificate | None:
    """Return the first certificate of a PEM file; None if there is none.

    :raises CommandError: if openssl is not installed.
    """
    if not path.exists():
        return None
    show = ["-noout", "-startdate", "-enddate", "-subject", "-issuer", "-nameopt", "RFC2253", "-ext", "subjectAltName", "-pubkey"]
    shown = run(["openssl", "x509", "-in", str(path), *show], check=False)
    if shown.status != 0:
        return None
    value = dict(
        line.split("=", 1) for line in shown.output.splitlines() if re.match("(notBefore|notAfter|subject|issuer)=", line)
    )
    names = re.search(r"Subject Alternative Name:.*\n(.*)", shown.output)
    public = re.search(r"-----BEGIN PUBLIC KEY-----.*-----END PUBLIC KEY-----", shown.output, re.DOTALL)
    return Certificate(
        names=frozenset(re.findall(r"dns:([^,\s]+)", names[1].lower() if names else "")),
        issuer=value["issuer"],
        begins=ssl.cert_time_to_seconds(value["notBefore"]),
        expires=ssl.cert_time_to_seconds(value["notAfter"]),
        self_signed=value["issuer"] == value["subject"],
        public_key=public[0] if public else "",
    )


def read_pair(chain: Path, key: Path) -> Certificate | None:
    """Return the first certificate of a chain; None if it, or the key that matches it, is missing."""
    certificate = read(chain)
    if certificate is None or not key.exists():
        return None
    public = run(["openssl", "pkey", "-in", str(key), "-passin", "pass:", "-pubout"], check=False).output
    return certificate if public.strip() == certificate.public_key else None
