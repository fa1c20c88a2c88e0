"""The controller's half of a source: which files of a directory belong to it, what they hash to, and their archive.

Of a source that is an archive already, what that hashes to.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

#: Left out of a directory that no git tells about.
NEVER_PACKED = frozenset({".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".pytest_cache"})


class SourceError(Exception):
    """The source is not there, or cannot be sent. The message says which file and why."""


def locate(name: str, playbook: str, *, directory: bool) -> Path:
    """Return the directory, or the file, that ``name`` means: where ansible-playbook was started, or beside the playbook.

    :raises SourceError: when there is none.
    """
    path = Path(name).expanduser()
    tried = [Path.cwd() / path, Path(playbook) / path]
    for found in tried:
        if found.is_dir() if directory else found.is_file():
            return found
    places = " or ".join(dict.fromkeys(map(str, tried)))
    raise SourceError(f"there is no {'directory' if directory else 'file'} {places}")


def files(directory: Path) -> list[Path]:
    """Return the files of ``directory`` that belong to a release, relative to it and sorted.

    Inside a git work tree these are the tracked and the untracked ones that git does not ignore.
    """
    listed = _git_files(directory)
    found = _walk(directory) if listed is None else listed
    return sorted(path for path in found if os.path.lexists(directory / path))


def revision(directory: Path) -> str:
    """Return the hash of everything :func:`pack` would pack: names, contents, execute bits, targets of links."""
    digest = hashlib.sha256()
    for path in files(directory):
        full = directory / path
        if full.is_symlink():
            kind, content = "link", _target(directory, path).encode()
        else:
            kind, content = _kind(full), full.read_bytes()
        digest.update(f"{kind} {len(content)} {path}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def archive_revision(file: Path, checksum: str | None) -> str:
    """Return the hash of an archive.

    :arg checksum: what it has to be (``sha256:...``), if that is known.
    :raises SourceError: when it is something else.
    """
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if checksum is not None and checksum != f"sha256:{found}":
        raise SourceError(f"{file} hashes to sha256:{found}; {checksum} is wanted")
    return found


def pack(directory: Path) -> bytes:
    """Return the files of ``directory`` as a gzipped tar archive, root's and with the files' own times.

    The times stay because nginx and Tornado make validators for caches (``ETag``, ``Last-Modified``) of them.

    :raises SourceError: for a link that leaves the directory.
    """
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for path in files(directory):
            _target(directory, path)
            archive.add(directory / path, arcname=str(path), recursive=False, filter=_as_root)
    return raw.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def _kind(path: Path) -> str:
    return "program" if path.stat().st_mode & 0o100 else "file"


def _target(directory: Path, path: Path) -> str:
    """Return what the link ``path`` points to; empty for a file that is none."""
    full = directory / path
    if not full.is_symlink():
        return ""
    target = full.readlink()
    if target.is_absolute() or not full.resolve().is_relative_to(directory.resolve()):
        raise SourceError(f"{full} is a link to {target}, outside of the source; copy the file or leave it out by .gitignore")
    return str(target)


def _git_files(directory: Path) -> list[Path] | None:
    """Return what git lists; None outside of a work tree or without git."""
    command = ["git", "-C", str(directory), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found: list[Path] = []
    for name in filter(None, os.fsdecode(result.stdout).split("\0")):
        full = directory / name
        if full.is_dir() and not full.is_symlink():  # a submodule, or a repository inside this one
            found.extend(Path(name) / inner for inner in files(full))
        else:
            found.append(Path(name))
    return found


def _walk(directory: Path) -> Iterator[Path]:
    for root, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in NEVER_PACKED]
        here = Path(root).relative_to(directory)
        yield from (here / name for name in names if not name.endswith(".pyc"))
        yield from (here / name for name in directories if (Path(root) / name).is_symlink())
