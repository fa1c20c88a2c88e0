"""Atomic replacement of files and symbolic links.

Use it only in directories that no app's user can write; in all others use :mod:`tree`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def stage_file(path: Path, content: bytes, *, mode: int, uid: int, gid: int) -> Path:
    """Write ``content`` to a new file beside ``path`` and return it, ready to be renamed to ``path``.

    The leading dot and the suffix of its name keep it out of the include patterns of daemons.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    staged = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)  # some file systems report a full disk only then
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
    except BaseException:
        staged.unlink()
        raise
    return staged


def stage_link(path: Path, target: str | Path) -> Path:
    """Create a symbolic link to ``target`` beside ``path`` and return it, ready to be renamed to ``path``.

    :raises IsADirectoryError: if there is a directory in its place, which a link cannot replace.
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(f"{path} must be a symbolic link, but is a directory; move it away")
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)  # left behind by an interrupted run
    staged.symlink_to(target)
    return staged


def replace_link(path: Path, target: str | Path) -> None:
    """Point the symbolic link ``path`` to ``target``, replacing a file or link that exists, but no directory."""
    staged = stage_link(path, target)
    try:
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
