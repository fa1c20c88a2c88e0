"""Generates certificate authorities and certificates for tests."""

from __future__ import annotations

from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def key_pem(key: PrivateKey, passphrase: bytes | None = None) -> str:
    """Return a private key in PEM format."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


class Leaf:
    """A certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        """Store a certificate with its key."""
        self.certificate, self.key = certificate, key

    @property
    def pem(self) -> str:
        """The certificate in PEM format."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        """The key in PEM format."""
        return key_pem(self.key)

    def write(self, directory: Path, chain: str = "") -> dict[str, str]:
        """Write the certificate with ``chain``, and the key; return the matching ``tls`` of an app's entry."""
        certificate, key = directory / "chain.pem", directory / "key.pem"
        certificate.write_text(self.pem + chain)
        key.touch(mode=0o600)
        key.write_text(self.key_pem)
        return {"provider": "files", "certificate": str(certificate), "key": str(key)}


class Authority(Leaf):
    """A certificate authority; the validity of its certificates is relative to ``now``."""

    def __init__(self, name: str, now: datetime, issuer: Authority | None = None) -> None:
        """Create an authority that is signed by ``issuer``, or self-signed."""
        self.now = now
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(self.name, key, now, (-1, 365)).issuer_name(issuer.name if issuer else self.name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        super().__init__(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)

    def authority(self, name: str) -> Authority:
        """Create an intermediate authority."""
        return Authority(name, self.now, self)

    def leaf(self, *names: str, days: tuple[int, int] = (-1, 90), rsa_bits: int = 0) -> Leaf:
        """Create a certificate for domains and addresses, valid between these days; ``rsa_bits`` selects an RSA key."""
        key = rsa.generate_private_key(65_537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else "leaf")])
        builder = _builder(subject, key, self.now, days).issuer_name(self.name)
        # Linters expect a revocation list, although nothing serves or queries this one.
        point = x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.test/")], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
        return Leaf(builder.sign(self.key, hashes.SHA256()), key)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: x509.Name, key: PrivateKey, now: datetime, days: tuple[int, int]) -> x509.CertificateBuilder:
    first, last = (now + timedelta(days=number) for number in days)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    return builder.serial_number(x509.random_serial_number()).not_valid_before(first).not_valid_after(last)
