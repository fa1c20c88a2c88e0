"""Wheelhouse: a directory of Python packages that replaces the package index, copied from the controller to the hosts."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run

#: Its directory on a host; world-readable, as builds run as the users of the apps.
HOME = Path("/opt/wheelhouse")

#: File names of wheels and of source distributions.
PATTERNS = ("*.whl", "*.tar.gz", "*.zip")

#: Timeout in seconds of unpacking, for some gigabytes on a slow disk.
UNPACK_SECONDS = 1800


class WheelhouseError(Exception):
    """The packages were not installed; the previous ones remain."""


def package_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each package in a directory by file name; empty if the directory does not exist."""
    return {path.name: _digest(path) for pattern in PATTERNS for path in sorted(directory.glob(pattern))}


def pack(directory: Path, names: Iterable[str], archive: Path) -> None:
    """Write packages of a directory to an uncompressed tar archive."""
    with tarfile.open(archive, "w") as tar:
        for name in names:
            tar.add(directory / name, arcname=name)


def converge(desired: Mapping[str, str], archive: Path | None, home: Path = HOME) -> None:
    """Make ``home`` contain exactly the desired packages.

    :arg desired: their hashes, as :func:`package_hashes` returns them.
    :arg archive: contains the missing ones; None if none is missing.
    :raises WheelhouseError: if a package was damaged in transit; ``home`` was not changed.
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
        received = package_hashes(new)
        if damaged := [name for name, digest in received.items() if digest != desired.get(name)]:
            raise WheelhouseError(f"{', '.join(damaged)} did not arrive as sent")
        for name in received:
            (new / name).chmod(0o644)
            (new / name).replace(home / name)
    for name in package_hashes(home).keys() - desired.keys():
        (home / name).unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
