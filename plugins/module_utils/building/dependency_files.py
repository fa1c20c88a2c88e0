"""Files in the top-level directory of a source that declare its dependencies, which the app's builder user may have changed."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import tree

#: The files, in the order in which they are looked for; the first one that exists is used.
UV_LOCK, PYLOCK, REQUIREMENTS = "uv.lock", "pylock.toml", "requirements.txt"
POETRY_LOCK, PDM_LOCK, PIPFILE_LOCK = "poetry.lock", "pdm.lock", "Pipfile.lock"
PROJECT, SETUP = "pyproject.toml", "setup.py"

#: Files that ask for a version of Python, of pyenv and uv, and of Heroku; the first one that exists is used.
VERSION_FILES = (".python-version", "runtime.txt")

#: Maximum size of such a file in bytes.
MAX_FILE_BYTES = 8 << 20


def has_file(source: Path, name: str) -> bool:
    """Return whether the source has an entry of any type called ``name`` in its top-level directory."""
    return os.path.lexists(source / name)


def content(source: Path, name: str) -> str | None:
    """Return the content of a file of the source; None if it does not exist.

    :raises TreeError: when it is not a regular file, or is too large.
    :raises ValueError: when it is not in UTF-8.
    """
    try:
        return tree.read(source / name, MAX_FILE_BYTES, trusted=source).decode()
    except FileNotFoundError:
        return None
