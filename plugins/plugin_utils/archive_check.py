"""Check of archives on the controller: whether hosts would unpack them."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.system.unpacking import ERRORS, PROGRAMS, UnpackError, Unpacking
from ansible_collections.funnel.tornado.plugins.plugin_utils.run_cache import text_once


@dataclass
class _Inspection(Unpacking):
    """Reads an archive as hosts unpack it, and creates nothing: ``entries`` are its paths, and whether each is a directory."""

    entries: dict[Path, bool] = field(default_factory=lambda: {Path(): True})

    def make_directory(self, path: Path) -> None:
        for directory in (path, *path.parents) if path not in self.entries else (path,):
            if not self.entries.setdefault(directory, True):
                raise UnpackError(f"{directory} is a file and a directory")

    def make_link(self, path: Path, destination: str) -> None:
        if path in self.entries:
            raise UnpackError(f"{path} is a link to {destination}, and something else")
        self.entries[path] = False

    def make_hard_link(self, first: Path, path: Path) -> None:
        if self.entries.get(first, True):
            raise UnpackError(f"{path} is a hard link to {first}, which is no file before it")
        self.make_link(path, str(first))

    def write_file(self, path: Path, chunks: Iterator[bytes], _mode: int, _modified: float, /) -> None:
        if self.entries.get(path):
            raise UnpackError(f"{path} is a file and a directory")
        self.entries[path] = False
        collections.deque(chunks, maxlen=0)

    def has_directory(self, subdirectory: str) -> bool:
        """Return whether ``subdirectory`` is a directory, in the top directory if that is the only one."""
        first = {path.parts[0] for path in self.entries if path.parts}
        only = Path(*first) if len(first) == 1 and self.entries[Path(*first)] else Path()
        return self.entries.get(only / subdirectory, False)


def archive_problem(file: Path, subdirectory: str | None) -> str:
    """Return the key below ``source`` and the reason for which hosts would refuse an archive; an empty string if they accept it.

    What this machine cannot check is left to the hosts: if it lacks the program that decompresses the archive, or has too few
    resources.
    """
    inspection = _Inspection(Path())
    try:
        with file.open("rb") as opened:
            program = PROGRAMS.get(os.pread(opened.fileno(), 4, 0))
            if program and not shutil.which(program):
                return ""
            inspection.unpack(opened)
    except (UnpackError, *ERRORS) as error:
        # Errors of the archive have no number, unlike those of this machine.
        return "" if isinstance(error, OSError) and error.errno else f"archive: {file} cannot be unpacked: {error}"
    if not inspection.has_directory(subdirectory or "."):
        return f"subdirectory: {subdirectory} is not a directory of the source"
    return ""


def archive_problem_once(file: Path, subdirectory: str | None) -> str:
    """Return the result of :func:`archive_problem`, which is determined once in a run."""
    return text_once(f"archive {file} {subdirectory}", lambda: archive_problem(file, subdirectory))
