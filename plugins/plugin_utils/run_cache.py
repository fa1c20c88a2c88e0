"""Results that one of the processes of a run computes for all: Ansible starts one per host and task."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path

from ansible import constants


def file_once(key: str, write: Callable[[Path], None]) -> Path:
    """Return the file that ``write`` has created, once in this run.

    It is in Ansible's temporary directory, which is private and removed at the end of the run.

    :arg key: what the file depends on.
    """
    path = Path(vars(constants)["DEFAULT_LOCAL_TMP"]) / f"once-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()}"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(".new")
            unfinished.unlink(missing_ok=True)  # of a process that was killed
            write(unfinished)
            unfinished.rename(path)
    return path


def text_once(key: str, compute: Callable[[], str]) -> str:
    """Return the result of ``compute``, which runs once in this run unless it fails, or its result cannot be stored.

    :arg key: what the result depends on.
    """
    try:
        path = file_once(key, lambda path: _write(path, compute()))
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # the file system is full, for example
        return compute()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
