"""Whether a certificate and key of the controller's can be used: checked before any host gets them.

Needs ``cryptography``, which ansible-core brings to the controller; hosts have no use for this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import is_covered

with contextlib.suppress(ImportError):  # a host can load this, and has to do without
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

#: Bits of the weakest RSA key that Debian's OpenSSL lets a server use (SSL_CTX_set_security_level(3), level 2).
RSA_BITS = 2048


def certificate_problems(chain: str, domains: Sequence[str], now: datetime) -> Iterator[str]:
    """Yield what keeps a PEM text from being the certificate of a site with these ``domains``.

    :arg now: with its time zone.
    """
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError as error:
        yield f"has no certificate in PEM form ({error})"
        return
    own = certificates[0]
    for number, one in enumerate(certificates, 1):
        whose = f"certificate {number} in it ({one.subject.rfc4514_string()})"
        if one.not_valid_after_utc <= now:
            yield f"{whose} has expired at {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if one.not_valid_before_utc > now:
            yield f"{whose} is not valid before {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    for number, (one, issuer) in enumerate(pairwise(certificates), 1):
        if not _is_issued_by(one, issuer):
            signer, found = one.issuer.rfc4514_string(), issuer.subject.rfc4514_string()
            yield (
                f"certificate {number} in it is signed by {signer}, and certificate {number + 1} is {found}; "
                "the site's own comes first, then each the one that has signed the last"
            )
    names = _names(own)
    missing = [domain for domain in domains if not is_covered(domain, names)]
    if missing:
        yield f"is not for {', '.join(missing)}; it is for {', '.join(names) or 'no name at all'}"


def key_problems(key: str, chain: str) -> Iterator[str]:
    """Yield what keeps a PEM text from being the private key of the first certificate in ``chain``."""
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except TypeError:
        yield "is encrypted with a passphrase, which no server can type when it starts; encrypt it with Ansible Vault"
        return
    except (ValueError, UnsupportedAlgorithm):
        yield "has no private key in PEM form"
        return
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < RSA_BITS:
        yield f"has {private.key_size} bits, with which no server starts; {RSA_BITS} are the least"
    try:
        own = x509.load_pem_x509_certificate(chain.encode())
    except ValueError:
        return  # that is the certificate's mistake
    if _public_bytes(private.public_key()) != _public_bytes(own.public_key()):
        yield f"does not belong to the certificate ({own.subject.rfc4514_string()})"


def _names(certificate: x509.Certificate) -> list[str]:
    """Return the names of the extension; that of the subject has not counted for long (RFC 9525)."""
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
    serialized: bytes = key.public_bytes(  # type: ignore[attr-defined]  # all kinds of keys have it, and no common type says so
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return serialized
