"""What a certificate is to a user, and where it lies on a host, whoever it is from.

/etc/ssl/funnel/                        root's; everybody may read certificates, root alone the keys
    <set>.<name>.pem                    the chain, the server's own certificate first
    <set>.<name>.key                    its private key
/var/lib/acme-challenges/               answers to ACME's http-01 challenges, which nginx serves
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import DOMAIN, Doc, InvalidDataError, Pattern, parse_each

#: Where servers find every certificate, whoever it is from.
DIRECTORY = Path("/etc/ssl/funnel")

#: The root that nginx serves ``/.well-known/acme-challenge/`` from, and certbot's webroot.
CHALLENGES = Path("/var/lib/acme-challenges")

#: The set that the role app keeps, each certificate under its app's name.
APP_SET = "app"

#: The role's variable with the certificates: paths in messages begin with it.
VARIABLE = "certificates_wanted"

#: A set's and a certificate's name; without a dot, so that together they name one certificate only.
NAME = Pattern(r"[a-z0-9][a-z0-9_-]*", "a name of lower-case letters, digits, _ and -")


def chain_path(certificates_set: str, name: str) -> Path:
    """Return the path of a certificate and its chain, the server's own certificate first."""
    return DIRECTORY / f"{certificates_set}.{name}.pem"


def key_path(certificates_set: str, name: str) -> Path:
    """Return the path of a certificate's private key."""
    return DIRECTORY / f"{certificates_set}.{name}.key"


def installed_names(certificates_set: str, base: Path = Path("/")) -> list[str]:
    """Return the names of the certificates of a set that the host has."""
    pattern = chain_path(certificates_set, "*")
    return sorted(path.stem.partition(".")[2] for path in (base / pattern.parent.relative_to("/")).glob(pattern.name))


@dataclass(frozen=True, kw_only=True)
class CertificateRequest:
    """One certificate as a user describes it."""

    provider: Annotated[Literal["self_signed", "files", "acme"], Doc("Who it is from.")]
    domains: Annotated[list[str], Doc("Names that it is for."), DOMAIN]
    certificate: Annotated[str | None, Doc("With C(files): PEM file of the chain on the controller.")] = None
    key: Annotated[str | None, Doc("With C(files): PEM file of the private key on the controller.")] = None
    origin: Annotated[str, Doc("Variable that it was made from, named in messages about it.")] = ""


def parse_requests(entries: Mapping[str, object]) -> dict[str, CertificateRequest]:
    """Return the certificates that a user describes, each with its ``origin``.

    :raises InvalidDataError: with every mistake of all entries.
    """
    problems: list[str] = []
    parsed = parse_each(CertificateRequest, entries, VARIABLE, problems, NAME)
    for name, request in parsed.items():
        problems.extend(
            request_problems(request.provider, request.domains, request.certificate, request.key, f"{VARIABLE}.{name}")
        )
    if problems:
        raise InvalidDataError(problems)
    return {name: replace(request, origin=request.origin or f"{VARIABLE}.{name}") for name, request in parsed.items()}


def is_covered(domain: str, names: Collection[str]) -> bool:
    """Tell whether a certificate for ``names`` is one for ``domain``: ``*`` stands for one label (RFC 6125, 6.4.3)."""
    wildcard = f"*.{domain.partition('.')[2]}"
    return domain in names or (not domain.startswith("*.") and wildcard in names)


def request_problems(provider: str, domains: Sequence[str], certificate: str | None, key: str | None, path: str) -> Iterator[str]:
    """Yield what a certificate lacks, or has and its provider does not take, each with its path below ``path``."""
    for name, value in (("certificate", certificate), ("key", key)):
        if value is not None and provider != "files":
            yield f"{path}.{name}: goes with provider: files; this is {provider}"
        if value is None and provider == "files":
            yield f"{path}.{name}: is missing; provider: files takes certificate and key, PEM files on the controller"
    if provider != "off" and not domains:
        yield f"{path}: needs domains, which the certificate is for"
    if provider == "acme":
        for domain in domains:
            if domain.startswith("*."):
                yield f"{path}.provider: acme proves each name over HTTP, which {domain} cannot be; use files for it"
