"""Files that a source has in common with the live release: the controller sends their digests, and the host copies them.

An archive with such files is incomplete. Each has a member of type :data:`KEPT` without content, whose link name is the digest.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

#: The type of a member that stands for a file of the live release; POSIX leaves A to Z to applications.
KEPT = b"F"

#: Size of a digest.
DIGEST_BYTES = 20

#: Minimum size of such a file in bytes: smaller ones take about as much as their digest when compressed.
MIN_SIZE = 4096

#: Maximum number of files that a host offers.
MAX_FILES = 100_000


class KeptFileError(Exception):
    """An incomplete archive cannot be completed: the live release lacks a file, or the disk is full."""


def digest_of(content: bytes) -> str:
    """Return the digest of a file by which the controller and the host recognize it."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of a file, which may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def held_files(source: Path) -> dict[str, Path]:
    """Return the files of a release's source by digest; none if it is a link, to a directory that the release does not own.

    :arg source: a directory of a sealed release. All files and directories in it belong to root; its links are not followed.
    """
    found: dict[str, Path] = {}
    if source.is_symlink():
        return found
    for top, _directories, names in os.walk(source):
        for path in (Path(top, name) for name in names):
            if len(found) < MAX_FILES and not path.is_symlink() and path.is_file() and path.stat().st_size >= MIN_SIZE:
                found[file_digest(path)] = path
    return found


def complete_archive(incomplete: Path, source: Path, whole: Path) -> None:
    """Write the archive ``whole``: the members of an incomplete one, with the content of the kept files.

    :arg source: the directory that :func:`held_files` has listed.
    :raises KeptFileError: if it no longer has one of these files, or the archive cannot be written.
    """
    try:
        _complete(incomplete, held_files(source), whole)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise KeptFileError(str(error)) from error


def _complete(incomplete: Path, held: dict[str, Path], whole: Path) -> None:
    with (
        tarfile.open(incomplete, "r:*", errors="surrogateescape") as archive,
        tarfile.open(whole, "x:gz", compresslevel=1, format=tarfile.GNU_FORMAT, errors="surrogateescape") as output,
    ):
        for member in archive:
            if member.type != KEPT:
                output.addfile(member, archive.extractfile(member) if member.isreg() else None)
                continue
            path = held.get(member.linkname)
            if path is None:
                raise KeptFileError(member.name)
            member.type, member.linkname, member.size = tarfile.REGTYPE, "", path.stat().st_size
            with path.open("rb") as content:
                output.addfile(member, content)
