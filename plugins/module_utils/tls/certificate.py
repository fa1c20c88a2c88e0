"""Certificate requests: the entries of ``certificates_wanted``, their validation, and the paths of certificates on a host.

/etc/ssl/funnel/                        owned by root; certificates are world-readable, keys are readable by root only
    <set>.<name>.pem                    the chain, beginning with the server's own certificate
    <set>.<name>.key                    its private key
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import DOMAIN, Doc, InvalidDataError, Pattern, parse_each
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import url_host

#: Directory of all certificates, regardless of their provider.
DIRECTORY = Path("/etc/ssl/funnel")

#: The port on which certbot answers http-01 challenges while it runs. nginx and HAProxy forward challenges to it, on their host
#: and on each other host that obtains certificates for the same names, because the ACME server may ask any of them. Only root
#: can listen there: an app that answers challenges could get certificates for the domains of others.
CHALLENGE_PORT = 402

#: The set of the role app, whose certificates have the names of their apps.
APP_SET = "app"

#: The role variable that holds the requests; messages about them begin with it.
VARIABLE = "certificates_wanted"

#: The name of a set or a certificate. It has no dot, so that ``<set>.<name>`` is unambiguous.
NAME = Pattern(r"[a-z0-9][a-z0-9_-]*", "a name of lower-case letters, digits, _ and -")


def chain_path(set_name: str, name: str) -> Path:
    """Return the path of a certificate chain, which begins with the server's own certificate."""
    return DIRECTORY / f"{set_name}.{name}.pem"


def key_path(set_name: str, name: str) -> Path:
    """Return the path of the private key of a certificate."""
    return DIRECTORY / f"{set_name}.{name}.key"


def acme_clients(peers: Sequence[str] = ()) -> list[str]:
    """Return the addresses at which this host and its ``peers``, IP addresses, answer http-01 challenges."""
    return [f"{url_host(address)}:{CHALLENGE_PORT}" for address in ("127.0.0.1", *peers)]


def installed_names(set_name: str, base: Path = Path("/")) -> list[str]:
    """Return the names of the certificates of a set that are installed on the host."""
    pattern = chain_path(set_name, "*")
    return sorted(path.stem.partition(".")[2] for path in (base / pattern.parent.relative_to("/")).glob(pattern.name))


def used_names(set_name: str, base: Path = Path("/"), *, except_site: str = "") -> set[str]:
    """Return the names of the certificates of a set that the configuration of nginx or HAProxy refers to.

    :arg except_site: name of a site of the set that does not count.
    """
    nginx = [path for pattern in ("*", "*/*") for path in (base / "etc/nginx").glob(pattern) if path.is_file()]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in nginx if path.stem != f"{set_name}.{except_site}"]
    texts += [str(path.readlink()) for path in (base / "etc/haproxy/certificates").glob("*") if path.is_symlink()]
    return set(re.findall(rf"{DIRECTORY}/{set_name}\.([a-z0-9_-]+)\.pem\b", "\n".join(texts)))


@dataclass(frozen=True, kw_only=True)
class CertificateRequest:
    """An entry of ``certificates_wanted``."""

    provider: Annotated[Literal["self_signed", "files", "acme"], Doc("Source of the certificate.")]
    domains: Annotated[list[str], Doc("Domains that the certificate covers."), DOMAIN]
    challenge: Annotated[Literal["http", "dns"], Doc("With C(acme): how the server validates the domains.")] = "http"
    certificate: Annotated[str | None, Doc("With C(files): PEM file of the chain on the controller.")] = None
    key: Annotated[str | None, Doc("With C(files): PEM file of the private key on the controller.")] = None
    origin: Annotated[str, Doc("Variable that the request was derived from, for messages.")] = ""


def parse_requests(entries: Mapping[str, object]) -> dict[str, CertificateRequest]:
    """Validate the entries of ``certificates_wanted`` and return them by name, each with its ``origin``.

    :raises InvalidDataError: with the problems of all entries.
    """
    problems: list[str] = []
    parsed = parse_each(CertificateRequest, entries, VARIABLE, problems, NAME)
    for name, request in parsed.items():
        problems.extend(request_problems(request, f"{VARIABLE}.{name}"))
    if problems:
        raise InvalidDataError(problems)
    return {name: replace(request, origin=request.origin or f"{VARIABLE}.{name}") for name, request in parsed.items()}


def is_covered(domain: str, names: Collection[str]) -> bool:
    """Return whether a certificate for ``names`` covers ``domain``; a wildcard matches one label (RFC 6125, 6.4.3)."""
    wildcard = f"*.{domain.partition('.')[2]}"
    return domain in names or (not domain.startswith("*.") and wildcard in names)


def request_problems(request: CertificateRequest, path: str) -> Iterator[str]:
    """Yield the missing keys and those that the provider does not accept, each with its path below ``path``."""
    for name, value in (("certificate", request.certificate), ("key", request.key)):
        if value is not None and request.provider != "files":
            yield f"{path}.{name}: requires provider: files; found {request.provider}"
        if value is None and request.provider == "files":
            yield f"{path}.{name}: is missing; provider: files requires certificate and key, PEM files on the controller"
    if request.challenge == "dns" and request.provider != "acme":
        yield f"{path}.challenge: requires provider: acme; found {request.provider}"
    if not request.domains:
        yield f"{path}: requires domains for the certificate to cover"
    if request.provider == "acme" and request.challenge == "http":
        for domain in request.domains:
            if domain.startswith("*."):
                yield (
                    f"{path}.provider: acme validates each name over HTTP, which {domain} does not support; set challenge: dns "
                    "and certificates_acme_dns"
                )
