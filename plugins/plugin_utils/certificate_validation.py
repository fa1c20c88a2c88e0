"""Validation of certificate and key files on the controller, before they are copied to a host.

Requires ``cryptography``, a dependency of ansible-core on the controller; hosts do not use this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import is_covered

with contextlib.suppress(ImportError):  # hosts may import this module without the library
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

#: Minimum size of an RSA key for servers with Debian's OpenSSL (SSL_CTX_set_security_level(3), level 2).
MIN_RSA_BITS = 2048


def certificate_problems(chain: str, domains: Sequence[str], now: datetime) -> Iterator[str]:
    """Yield the reasons why a PEM chain cannot be the certificate of a site with these ``domains``.

    :arg now: the current time, timezone-aware.
    """
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError as error:
        yield f"contains no certificate in PEM format ({error})"
        return
    own = certificates[0]
    for number, certificate in enumerate(certificates, 1):
        label = f"certificate {number} in it ({certificate.subject.rfc4514_string()})"
        if certificate.not_valid_after_utc <= now:
            yield f"{label} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if certificate.not_valid_before_utc > now:
            yield f"{label} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    for number, (certificate, issuer) in enumerate(pairwise(certificates), 1):
        if not _is_issued_by(certificate, issuer):
            expected, found = certificate.issuer.rfc4514_string(), issuer.subject.rfc4514_string()
            yield (
                f"certificate {number} in it is issued by {expected}, but certificate {number + 1} is {found}; "
                "put the certificate of the site first, and the issuer of each certificate after it"
            )
    names = _names(own)
    missing = [domain for domain in domains if not is_covered(domain, names)]
    if missing:
        yield f"does not cover {', '.join(missing)}; it covers {', '.join(names) or 'no name'}"


def key_problems(key: str, chain: str) -> Iterator[str]:
    """Yield the reasons why a PEM key cannot be the private key of the first certificate in ``chain``."""
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except TypeError:
        yield "is encrypted with a passphrase, which servers cannot enter at startup; encrypt it with Ansible Vault instead"
        return
    except (ValueError, UnsupportedAlgorithm):
        yield "contains no private key in PEM format"
        return
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < MIN_RSA_BITS:
        yield f"has {private.key_size} bits, which prevents servers from starting; the minimum is {MIN_RSA_BITS}"
    try:
        own = x509.load_pem_x509_certificate(chain.encode())
    except ValueError:
        return  # reported by certificate_problems
    if _public_bytes(private.public_key()) != _public_bytes(own.public_key()):
        yield f"does not match the certificate ({own.subject.rfc4514_string()})"


def _names(certificate: x509.Certificate) -> list[str]:
    """Return the subject alternative names; clients ignore the name in the subject (RFC 9525)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _public_bytes(key: object) -> bytes:
    serialized: bytes = key.public_bytes(  # type: ignore[attr-defined]  # all key classes have it, but no common base class
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return serialized


def account_problems(arguments: Mapping[str, Any]) -> list[str]:
    """Return the problem of an incomplete external account binding."""
    names = ("certificates_acme_eab_key_id", "certificates_acme_eab_hmac_key")
    missing = [name for name in names if not arguments.get(name.removeprefix("certificates_"))]
    present = set(names) - {*missing}
    return [f"{present.pop()}: requires {missing[0]}, which is missing"] if len(missing) == 1 else []
