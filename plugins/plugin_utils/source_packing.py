"""Packing of app sources on the controller: the files of a directory, their revision hash, and their archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from ansible_collections.funnel.tornado.plugins.module_utils.building.kept_files import KEPT, MIN_SIZE, digest_of, file_digest
from ansible_collections.funnel.tornado.plugins.module_utils.system.unpacking import LFS_POINTER, LFS_POINTER_SIZE

#: Names excluded from a directory that is not a git work tree.
EXCLUDED = frozenset({".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".pytest_cache"})

#: Run no program that the source configures: git takes tracked files that look like a bare repository for one, with their
#: configuration. Versions before 2.38 ignore the first option.
_GIT_OPTIONS = ["-c", "safe.bareRepository=explicit", "-c", "core.fsmonitor=false"]
#: Level of compression: higher ones take much longer, and save little.
COMPRESSION = 6

#: Mode of a submodule in the index of git.
_SUBMODULE = "160000 "


class Digest(Protocol):
    """An object of :mod:`hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Add data."""


class SourceError(Exception):
    """The source is missing or cannot be packed. The message has the file and the reason."""


def locate(name: str, playbook: str, *, directory: bool) -> Path:
    """Return the path of a directory or a file, relative to the working directory or to the playbook.

    :raises SourceError: when it does not exist, or this user cannot find out.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise SourceError(f"there is no user whose home directory is meant by {name}") from error
    candidates = [Path.cwd() / path, Path(playbook) / path]
    for candidate in candidates:
        try:
            if candidate.is_dir() if directory else candidate.is_file():
                return candidate
        except OSError as error:
            raise SourceError(f"{candidate} cannot be read: {error.strerror}") from error
    places = " or ".join(dict.fromkeys(map(str, candidates)))
    raise SourceError(f"there is no {'directory' if directory else 'file'} {places}")


def files(directory: Path) -> list[Path]:
    """Return the files and links of a source, relative to ``directory``, sorted by the bytes of their names.

    In a git work tree they are the tracked files and the untracked ones that git does not ignore, including submodules; git
    ignores untracked pipes, sockets and devices. Elsewhere they are all files except :data:`EXCLUDED`, and the files that git
    lists in repositories below.

    :raises SourceError: for a file that cannot be packed, such as a pipe, a submodule that is not checked out or a Git LFS
        pointer, and when git cannot list a work tree, since ignored files would be packed without it.
    """
    found = [path for path in _list(directory) if os.path.lexists(directory / path)]
    for path in found:
        _require_sendable(directory / path)
    return sorted(found, key=os.fsencode)


def revision(directory: Path) -> str:
    """Return the hash of everything that :func:`pack` packs: names, contents, execute bits, targets of links.

    :raises SourceError: as :func:`files`, and for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in files(directory):
        _read(directory, path, digest)
    return digest.hexdigest()


def _read(directory: Path, path: Path, digest: Digest) -> bytes:
    """Return the content of a file or the target of a link, and add it to the revision.

    :raises SourceError: as :func:`revision`.
    """
    full = directory / path
    try:
        if full.is_symlink():
            kind, content = "link", os.fsencode(_target(directory, path))
        else:
            kind, content = _kind(full), full.read_bytes()
    except OSError as error:
        raise SourceError(f"{printable(full)} cannot be read: {error.strerror}") from error
    digest.update(f"{kind} {len(content)} ".encode() + os.fsencode(path) + b"\0")
    digest.update(content)
    return content


def archive_revision(file: Path, checksum: str | None) -> str:
    """Return the hash of an archive.

    :arg checksum: the expected hash (``sha256:...``), if any.
    :raises SourceError: when the hash differs.
    """
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if checksum is not None and checksum != f"sha256:{found}":
        raise SourceError(f"{file} hashes to sha256:{found}; expected {checksum}")
    return found


def pack(directory: Path, file: Path, expected: str, held: Collection[str] = ()) -> None:
    """Write the files of ``directory`` to a gzipped tar archive, owned by root and with their modification times.

    nginx and Tornado derive ``ETag`` and ``Last-Modified`` from the times. The GNU format keeps names of any bytes.

    :arg file: the archive, which does not exist.
    :arg expected: the result of :func:`revision`.
    :arg held: digests of files that the host has (see :mod:`kept_files`).
    :raises SourceError: as :func:`revision`, for a link to the outside, and when the files have changed since.
    """
    digest = hashlib.sha256()
    with (
        file.open("xb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=COMPRESSION, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive,
    ):
        for path in files(directory):
            full = directory / path
            member = _as_root(archive.gettarinfo(full, arcname=str(path)))
            content = _read(directory, path, digest)
            if member.issym():
                archive.addfile(member)
                continue
            member.type, member.linkname, member.size = tarfile.REGTYPE, "", len(content)
            if held and len(content) >= MIN_SIZE and (kept := digest_of(content)) in held:
                member.type, member.linkname, member.size, content = KEPT, kept, 0, b""
            archive.addfile(member, io.BytesIO(content))
    if digest.hexdigest() != expected:
        raise SourceError(f"files of {printable(directory)} have changed during the run; run the same command again")


def copy_archive(archive: Path, file: Path, expected: str) -> None:
    """Copy an archive of a source.

    :arg file: the copy, which does not exist.
    :arg expected: the result of :func:`archive_revision`.
    :raises SourceError: when the archive has changed since.
    """
    shutil.copyfile(archive, file)
    if archive_revision(file, None) != expected:
        raise SourceError(f"{printable(archive)} has changed during the run; run the same command again")


def digests(directory: Path) -> list[str]:
    """Return the digests of the files that a host may hold already (see :mod:`kept_files`)."""
    paths = [directory / path for path in files(directory)]
    return [file_digest(path) for path in paths if not path.is_symlink() and path.stat().st_size >= MIN_SIZE]


def size(directory: Path) -> int:
    """Return the total size in bytes of what :func:`pack` packs."""
    return sum((directory / path).lstat().st_size for path in files(directory))


def printable(path: Path) -> str:
    """Return ``path`` for a message, with control characters and bytes that are not UTF-8 escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def _kind(path: Path) -> str:
    return "program" if path.stat().st_mode & 0o100 else "file"


def _target(directory: Path, path: Path) -> str:
    """Return the target of the link ``path``; empty for a file."""
    full = directory / path
    if not full.is_symlink():
        return ""
    target = full.readlink()
    try:
        inside = full.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise SourceError(f"{printable(full)} is a broken link: {error}; remove it") from error
    if target.is_absolute() or not inside:
        raise SourceError(
            f"{printable(full)} is a link to {printable(target)}, outside of the source; "
            "copy the file, or exclude it in .gitignore"
        )
    return str(target)


def _require_sendable(path: Path) -> None:
    """Raise SourceError unless the path is a file or a link, and not a Git LFS pointer."""
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        return
    if not stat.S_ISREG(state.st_mode):
        raise SourceError(f"{printable(path)} is neither a file, a directory nor a link; remove it, or exclude it in .gitignore")
    if state.st_size < LFS_POINTER_SIZE:
        try:
            begins = path.read_bytes()[: len(LFS_POINTER)]
        except OSError as error:
            raise SourceError(f"{printable(path)} cannot be read: {error.strerror}") from error
        if begins == LFS_POINTER:
            raise SourceError(f"{printable(path)} is a Git LFS pointer instead of the file; run `git lfs pull`")


def _list(directory: Path) -> Iterator[Path]:
    """Yield the files of ``directory``; git lists them in a work tree."""
    resolved = directory.resolve()
    if any((parent / ".git").exists() for parent in (resolved, *resolved.parents)):
        yield from _git_files(directory)
    else:
        yield from _walk(directory)


def _git_files(directory: Path) -> Iterator[Path]:
    """Yield the files that git lists, including those of nested repositories.

    :raises SourceError: when git fails, a submodule is not checked out, or git ignores the directory.
    """
    top = _git(directory, "rev-parse", "--show-toplevel").rstrip("\n")
    here = directory.resolve()
    if not here.samefile(top) and _git(here.parent, "check-ignore", "--", here.name, accept=(0, 1)):
        raise SourceError(
            f"git ignores {printable(directory)}, so no files would be packed; change the .gitignore that excludes it"
        )
    # The files of a directory that has replaced a tracked file are listed as well.
    for name in filter(None, _git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        full = directory / name
        if not full.is_dir() or full.is_symlink():
            yield Path(name)
        elif (full / ".git").exists():
            yield from (Path(name) / inner for inner in _git_files(full))
        elif _git(directory, "ls-files", "--stage", "--", f":(literal){name}").startswith(_SUBMODULE):
            raise SourceError(
                f"the submodule {printable(full)} is not checked out; run `git submodule update --init --recursive`"
            )


def _git(directory: Path, *arguments: str, accept: tuple[int, ...] = (0,)) -> str:
    """Return the output of git, run without ``GIT_*`` variables, by which a hook would select another repository.

    :raises SourceError: when git is not installed, or exits with a status that is not in ``accept``.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}
    try:
        command = ["git", *_GIT_OPTIONS, "-C", str(directory), *arguments]
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
    except OSError as error:
        raise SourceError(
            f"{printable(directory)} is in a git work tree, but git, which must list its files, cannot be started: "
            f"{error.strerror}"
        ) from error
    if done.returncode not in accept:
        words = done.stderr.decode(errors="replace").strip()
        raise SourceError(f"git cannot list {printable(directory)}: {words}")
    return os.fsdecode(done.stdout)


def _walk(directory: Path) -> Iterator[Path]:
    """Yield the files below a directory; git lists those of the work trees in it."""

    def fail(error: OSError) -> None:
        raise SourceError(f"{printable(Path(error.filename))} cannot be listed: {error.strerror}") from error

    for root, directories, names in os.walk(directory, onerror=fail):
        here = Path(root).relative_to(directory)
        directories[:] = [name for name in directories if name not in EXCLUDED]
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        repositories = [name for name in directories if name not in links and (Path(root) / name / ".git").exists()]
        yield from (here / name for name in links)
        yield from (here / name / inner for name in repositories for inner in _git_files(Path(root) / name))
        yield from (here / name for name in names if not name.endswith(".pyc"))
        directories[:] = [name for name in directories if name not in repositories]
