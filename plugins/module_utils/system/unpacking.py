"""Unpack an archive that nobody vouches for, as the user that builds an app: a program of its own, run by :mod:`archive`.

``unpacking.py DIRECTORY PLACE`` unpacks what standard input gives into PLACE below DIRECTORY; with a third word, a single
directory that all of it is in is left out. Only directories and regular files are made while members are read, and links last,
so nothing is ever written through one. Their number and size are limited while they are read.
"""

from __future__ import annotations

import calendar
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

#: How each zip file begins, an empty one included. Its beginning is examined instead of its end, because any file may end with
#: a zip file.
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")

#: Compressions that Python's tarfile does not know: their beginnings, and the programs that GNU tar uses for them.
PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"LZIP": "lzip", b"\x89LZO": "lzop", b"\x1f\x9d": "uncompress"}

#: Most members of an archive, and bytes of them all.
MAX_FILES = 200_000
MAX_BYTES = 4 << 30

_CHUNK = 1 << 20

#: What reading an archive can raise: RuntimeError if it is encrypted, EOFError if it was cut off, the file errors if a member is
#: in the way of another.
ERRORS = (OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError)


class UnpackError(Exception):
    """An archive is refused. The message names the member."""


@dataclass
class Unpacking:
    """One archive on its way into ``top``; nobody but this user reaches that directory."""

    top: Path
    files: int = 0
    size: int = 0
    links: dict[Path, str] = field(default_factory=dict)

    def unpack(self, file: IO[bytes]) -> None:
        """Unpack a tar or zip file; a tar file may come through a pipe.

        :raises UnpackError: when a member would be unpacked elsewhere, is no file, directory or link, or exceeds a limit.
        """
        seekable = file.seekable()
        beginning = os.pread(file.fileno(), 4, 0) if seekable else b""
        if beginning in ZIP_SIGNATURES:
            self._unzip(file)
        elif program := PROGRAMS.get(beginning):
            with subprocess.Popen([program, "-d", "-c"], stdin=file, stdout=subprocess.PIPE) as process:
                self._untar(process.stdout, "r|")
            if process.returncode != 0:
                raise UnpackError(f"{program} failed with exit status {process.returncode}")
        else:
            self._untar(file, "r|*")
        for link, destination in self.links.items():
            link.symlink_to(destination)
        while not seekable and (rest := file.read(_CHUNK)):  # who fills the pipe need not fail for the padding at the end
            self._count(len(rest))

    def _untar(self, file: IO[bytes] | None, mode: Literal["r|", "r|*"]) -> None:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for member in archive:
                target = self._target(member.name)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                if member.issym():
                    self.links[target] = member.linkname
                elif member.islnk():
                    self._link(self._target(member.linkname), target)
                elif member.isreg() and (content := archive.extractfile(member)):
                    self._write(target, iter(lambda: content.read(_CHUNK), b""), member.mode, member.mtime)
                else:
                    raise UnpackError(f"{member.name} is neither a file nor a directory nor a link")

    def _unzip(self, file: IO[bytes]) -> None:
        """Unpack a zip file with its times, execute bits and links.

        Times count as UTC: the format names no zone, and validators for caches (``ETag``, ``Last-Modified``) that are made of
        them have to be the same on all hosts.
        """
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                target = self._target(member.filename)
                mode = member.external_attr >> 16  # as Unix has it; 0 from elsewhere
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as content:
                    if stat.S_ISLNK(mode):
                        self.links[target] = os.fsdecode(content.read(os.pathconf("/", "PC_PATH_MAX")))
                    else:
                        self._write(target, iter(lambda: content.read(_CHUNK), b""), mode, calendar.timegm(member.date_time))

    def _target(self, name: str) -> Path:
        """Return where a member belongs."""
        self.files += 1
        if self.files > MAX_FILES:
            raise UnpackError(f"it has more than {MAX_FILES} members")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UnpackError(f"{name} would be unpacked outside of the source's directory")
        return self.top / path

    def _link(self, first: Path, target: Path) -> None:
        if first in self.links:
            self.links[target] = self.links[first]
        else:
            os.link(first, target, follow_symlinks=False)

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > MAX_BYTES:
            raise UnpackError(f"it has more than {MAX_BYTES >> 20} MiB")

    def _write(self, target: Path, chunks: Iterator[bytes], mode: int, modified: float) -> None:
        target.unlink(missing_ok=True)  # the last one of a name counts, and is no hard link to another
        with target.open("xb") as output:
            for chunk in chunks:
                self._count(len(chunk))
                output.write(chunk)
            output.flush()
            os.fchmod(output.fileno(), 0o755 if mode & 0o100 else 0o644)
            os.utime(output.fileno(), (modified, modified))


def enter(top: Path, place: str) -> Path:
    """Make ``place`` below ``top``, unless it is there, and return it; no link is followed on the way.

    :raises UnpackError: when a link or a file is in the way.
    """
    here = top
    for part in PurePosixPath(place).parts:
        here /= part
        here.mkdir(exist_ok=True)
        if part == ".." or here.is_symlink():
            raise UnpackError(f"{place} is reached through {part}, which is no directory of the source")
    return here


def flatten_directory(top: Path) -> None:
    """Move up what the directory contains that all of an archive is in; nothing happens if there is no such directory."""
    found = list(top.iterdir())
    if len(found) != 1 or not found[0].is_dir() or found[0].is_symlink():
        return
    single = found[0].rename(top / f".{os.urandom(8).hex()}")
    for path in list(single.iterdir()):
        path.rename(top / path.name)
    single.rmdir()


def main(directory: str, place: str, flatten: str = "") -> None:
    """Unpack standard input, or end with a message."""
    try:
        top = enter(Path(directory), place)
        Unpacking(top).unpack(sys.stdin.buffer)
        if flatten:
            flatten_directory(top)
    except (UnpackError, *ERRORS) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
