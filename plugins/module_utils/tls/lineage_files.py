"""The files of certbot for one certificate: whether they are complete, and what is left of damaged ones.

/etc/letsencrypt/renewal/<name>.conf      how to renew the certificate
/etc/letsencrypt/archive/<name>/          cert1.pem, chain1.pem, fullchain1.pem and privkey1.pem, and those of each renewal
/etc/letsencrypt/live/<name>/             links to the newest of them
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ansible_collections.funnel.tornado.plugins.module_utils.tls.certbot import Lineage
from ansible_collections.funnel.tornado.plugins.module_utils.tls.issuance import DIRECTORY
from ansible_collections.funnel.tornado.plugins.module_utils.tls.x509 import read_pair

#: What a renewal needs of its configuration.
_KEYS = ("archive_dir", "cert", "privkey", "chain", "fullchain", "account", "server", "authenticator")

_PEM = re.compile(r"\s*-----BEGIN .*-----END [A-Z ]+-----\s*", re.DOTALL)


class Pem(NamedTuple):
    """A certificate chain and its private key in PEM."""

    chain: str
    key: str


def damage(lineage: Lineage) -> str:
    """Return what is wrong with the files of a certificate, such as after a full disk; an empty string if it can be renewed."""
    settings = _read(lineage.configuration)
    if not settings:
        return f"{lineage.configuration} is missing or empty"
    if lacking := [key for key in _KEYS if not re.search(rf"^{key} = \S", settings, re.MULTILINE)]:
        return f"{lineage.configuration} is damaged: it lacks {', '.join(lacking)}"
    texts = {}
    for kind in ("cert", "chain", "fullchain", "privkey"):
        link = lineage.chain.with_name(f"{kind}.pem")
        texts[kind] = _read(link)
        if not link.is_symlink() or not _PEM.fullmatch(texts[kind]):
            return f"{link} is damaged"
    if texts["fullchain"].split() != (texts["cert"] + texts["chain"]).split():
        return f"{lineage.chain} is damaged: its chain is incomplete"
    return ""


def recover(lineage: Lineage, domains: Sequence[str]) -> Pem | None:
    """Return the newest valid certificate for ``domains`` among the files of certbot; None if there is none."""
    directory = lineage.base / "etc/letsencrypt/archive" / lineage.name
    numbers = [int(path.stem.removeprefix("cert")) for path in directory.glob("cert*.pem") if path.stem[4:].isdecimal()]
    for number in sorted(numbers, reverse=True):
        cert, chain, fullchain, key = (directory / f"{kind}{number}.pem" for kind in ("cert", "chain", "fullchain", "privkey"))
        found = read_pair(cert, key)
        if found is None or found.missing(domains) or found.expires < time.time():
            continue
        if _PEM.fullmatch(_read(chain)):
            return Pem(_read(cert) + _read(chain), _read(key))
        if _PEM.fullmatch(_read(fullchain)) and len(_read(fullchain)) > len(_read(cert)):
            return Pem(_read(fullchain), _read(key))
    return None


def set_aside(lineage: Lineage) -> None:
    """Move the files of a damaged certificate away, because certbot neither uses nor replaces them."""
    if not damage(lineage):
        return
    for path in _paths(lineage):
        if path.exists() or path.is_symlink():
            target = _aside(lineage) / path.parent.name
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove(target / path.name)
            path.replace(target / path.name)


def discard(lineage: Lineage) -> None:
    """Remove the files that were set aside."""
    _remove(_aside(lineage))


def delete(lineage: Lineage) -> None:
    """Delete a certificate, which also ends its renewal.

    :raises CommandError: if certbot fails.
    """
    if not damage(lineage):
        lineage.delete()
    for path in (*_paths(lineage), _aside(lineage)):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _aside(lineage: Lineage) -> Path:
    return lineage.base / DIRECTORY.relative_to("/") / f"{lineage.name}.damaged"


def _paths(lineage: Lineage) -> Iterator[Path]:
    directory = lineage.base / "etc/letsencrypt"
    yield lineage.configuration
    yield from (directory / kind / lineage.name for kind in ("archive", "live"))


def _read(path: Path) -> str:
    """Return the text of a file; an empty one if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
