"""Unpacking of untrusted archives: a program that :mod:`archive` runs as the user that builds an app.

``unpacking.py DIRECTORY SUBDIRECTORY [flatten [MAX_FILES MAX_BYTES]]`` unpacks standard input into SUBDIRECTORY of DIRECTORY;
``flatten`` strips the top directory of the archive if it is the only one. Links are created last, so that nothing is written
through one. The number and the size of members are limited while they are read.

``unpacking.py DIRECTORY SUBDIRECTORY keep`` replaces the contents of DIRECTORY with those of SUBDIRECTORY.
"""

from __future__ import annotations

import calendar
import os
import shutil
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

#: First bytes of zip files. Their end is not checked, because any file may end with a zip file.
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")

#: Programs for compression formats that Python's tarfile does not support, by their first bytes; GNU tar uses the same.
PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"LZIP": "lzip", b"\x89LZO": "lzop", b"\x1f\x9d": "uncompress"}

#: Maximum number of members of an archive, and maximum of their total size.
MAX_FILES = 200_000
MAX_BYTES = 4 << 30

#: The first line of a Git LFS pointer file, and its maximum size (the specification of Git LFS).
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
LFS_POINTER_SIZE = 1024

_CHUNK = 1 << 20

#: Exceptions of reading an archive: RuntimeError if it is encrypted, EOFError if it is truncated, OSError if members conflict.
ERRORS = (OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError)


class UnpackError(Exception):
    """An archive is refused. The message contains the name of the member."""


@dataclass
class Unpacking:
    """Unpacks an archive into ``top``, which only this user can access; with ``empty``, without the content of its files."""

    top: Path
    max_files: int = MAX_FILES
    max_bytes: int = MAX_BYTES
    empty: bool = False
    files: int = 0
    size: int = 0
    links: dict[Path, str] = field(default_factory=dict)

    def unpack(self, file: IO[bytes]) -> None:
        """Unpack a tar or zip file; a tar file may be read from a pipe.

        :raises UnpackError: if a member is outside the directory, not a file, directory or link, or exceeds a limit.
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
        while not seekable and (rest := file.read(_CHUNK)):  # read the padding, so that the writer does not fail
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
                    raise UnpackError(f"{member.name} is not a file, directory or link")

    def _unzip(self, file: IO[bytes]) -> None:
        """Unpack a zip file with its timestamps, execute permissions and links.

        Timestamps, which have no time zone, are interpreted as UTC: the cache validators (``ETag``, ``Last-Modified``) that are
        derived from them must be equal on all hosts.
        """
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                target = self._target(member.filename)
                mode = member.external_attr >> 16  # Unix mode; 0 from other systems
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
        """Return the path of a member."""
        self.files += 1
        if self.files > self.max_files:
            raise UnpackError(f"it has more than {self.max_files} members")
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
        if self.size > self.max_bytes:
            raise UnpackError(f"it has more than {self.max_bytes >> 20} MiB")

    def _write(self, target: Path, chunks: Iterator[bytes], mode: int, modified: float) -> None:
        target.unlink(missing_ok=True)  # the last member of a name wins; do not write through a hard link
        with target.open("xb") as output:
            for number, chunk in enumerate(chunks):
                if number == 0 and len(chunk) < LFS_POINTER_SIZE and chunk.startswith(LFS_POINTER):
                    raise UnpackError(
                        f"{target.relative_to(self.top)} is a Git LFS pointer instead of the file; hosts fetch nothing from Git "
                        "LFS. Run `git lfs pull` and deploy the directory with source.path"
                    )
                self._count(len(chunk))
                if not self.empty:
                    output.write(chunk)
            output.flush()
            os.fchmod(output.fileno(), 0o755 if mode & 0o100 else 0o644)
            os.utime(output.fileno(), (modified, modified))


def make_subdirectory(top: Path, subdirectory: str) -> Path:
    """Create ``subdirectory`` below ``top``, if missing, and return its path; no link is followed.

    :raises UnpackError: if its path contains a link.
    """
    path = top
    for part in PurePosixPath(subdirectory).parts:
        path /= part
        path.mkdir(exist_ok=True)
        if part == ".." or path.is_symlink():
            raise UnpackError(f"{part} is not a directory of the source")
    return path


def flatten_directory(top: Path) -> None:
    """Move up the contents of the top directory of an archive, if it is the only one."""
    paths = list(top.iterdir())
    if len(paths) != 1 or not paths[0].is_dir() or paths[0].is_symlink():
        return
    _move_up(paths[0], top)


def _move_up(directory: Path, top: Path) -> None:
    """Replace a directory in ``top`` with its contents, one of which may have its name."""
    moved = directory.rename(top / f".{os.urandom(8).hex()}")
    for path in list(moved.iterdir()):
        path.rename(top / path.name)
    moved.rmdir()


def keep_subdirectory(top: Path, subdirectory: str) -> None:
    """Replace the contents of ``top`` with those of a subdirectory.

    :raises UnpackError: if it is not a directory, or its path contains a link.
    """
    if subdirectory.startswith("/"):  # a path below ``top`` with such a part is outside of it
        raise UnpackError(f"{subdirectory} is not a directory of the source")
    kept = top
    for part in PurePosixPath(subdirectory).parts:
        kept /= part
        if part == ".." or kept.is_symlink() or not kept.is_dir():
            raise UnpackError(f"{kept.relative_to(top)} is not a directory of the source")
    if kept == top:
        return
    kept = kept.rename(top / f".{os.urandom(8).hex()}")
    for path in set(top.iterdir()) - {kept}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _move_up(kept, top)


def main(directory: str, subdirectory: str, mode: str = "", max_files: str = "", max_bytes: str = "") -> None:
    """Unpack standard input, or keep a subdirectory; exit with a message on failure."""
    try:
        if mode == "keep":
            keep_subdirectory(Path(directory), subdirectory)
            return
        top = make_subdirectory(Path(directory), subdirectory)
        Unpacking(top, int(max_files or MAX_FILES), int(max_bytes or MAX_BYTES)).unpack(sys.stdin.buffer)
        if mode == "flatten":
            flatten_directory(top)
    except (UnpackError, *ERRORS) as error:
        inside = str(PurePosixPath(subdirectory))
        raise SystemExit(str(error) if inside == "." or mode == "keep" else f"{inside}: {error}") from None


if __name__ == "__main__":
    main(*sys.argv[1:])
