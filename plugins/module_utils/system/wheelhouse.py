"""A wheelhouse: a directory of Python packages that takes the place of an index, the same on the controller and on hosts."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run

#: Where it is on a host: everybody may read it, as builds run as the apps' users.
HOME = Path("/opt/wheelhouse")

#: What a wheelhouse holds: wheels, and sources of what comes without one.
PATTERNS = ("*.whl", "*.tar.gz", "*.zip")

#: Seconds that unpacking may take: some gigabytes on a slow disk.
UNPACK_SECONDS = 1800


class WheelhouseError(Exception):
    """The packages are not on the host; those that were there still are."""


def package_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each package in a directory, by its file's name; nothing if there is no directory."""
    return {path.name: _digest(path) for pattern in PATTERNS for path in sorted(directory.glob(pattern))}


def pack(directory: Path, names: Iterable[str], archive: Path) -> None:
    """Write some packages of a directory to a tar archive, uncompressed: packages are."""
    with tarfile.open(archive, "w") as tar:
        for name in names:
            tar.add(directory / name, arcname=name)


def converge(wanted: Mapping[str, str], archive: Path | None, home: Path = HOME) -> None:
    """Let ``home`` hold the packages that are wanted, and no others.

    :arg wanted: the hash of each, as :func:`package_hashes` returns it.
    :arg archive: has those that are missing; None when none is.
    :raises WheelhouseError: when a package does not arrive as it was sent; ``home`` is as before then.
    """
    home.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{home.name}.", dir=home.parent) as directory:
        new = Path(directory)
        if archive:
            try:
                run(
                    ["tar", "--extract", "--no-same-owner", "--file", str(archive), "--directory", str(new)],
                    timeout=UNPACK_SECONDS,
                )
            except CommandError as error:
                raise WheelhouseError(str(error)) from error
        arrived = package_hashes(new)
        if damaged := [name for name, digest in arrived.items() if digest != wanted.get(name)]:
            raise WheelhouseError(f"{', '.join(damaged)} did not arrive as sent")
        for name in arrived:
            (new / name).chmod(0o644)
            (new / name).replace(home / name)
    for name in package_hashes(home).keys() - wanted.keys():
        (home / name).unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
