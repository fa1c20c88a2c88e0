"""The files of a task: parsing of the option ``files`` of funnel.tornado.file_set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Pattern, parse_each
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File, FileSetError


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file, or a symbolic link, in the arguments of a task after its template was rendered."""

    EXACTLY_ONE: ClassVar = ("content", "link")

    content: str = ""
    link: str = ""
    mode: Annotated[str, Pattern(r"0?[0-7]{3}", 'octal in quotes, such as "0640"')] = "0644"
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    label: str = ""
    needs: list[str] = field(default_factory=list)


def parse_files(entries: Mapping[str, object]) -> list[File]:
    """Return the files of the option ``files`` of a task.

    :raises FileSetError: with all invalid paths, keys and values.
    """
    problems = [
        f"files.{path}: a path must name a file and must not contain .."
        for path in entries
        if not path or path.endswith("/") or ".." in Path(path).parts
    ]
    parsed = parse_each(FileEntry, entries, "files", problems)
    if problems:
        raise FileSetError("\n".join(problems))
    return [
        File(
            path,
            os.fsencode(entry.link) if entry.link else entry.content.encode(errors="surrogateescape"),
            int(entry.mode, 8),
            entry.owner,
            entry.group,
            entry.secret,
            entry.label,
            is_link=bool(entry.link),
            needs=entry.needs,
        )
        for path, entry in parsed.items()
    ]
