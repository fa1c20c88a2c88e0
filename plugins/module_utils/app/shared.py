"""The key ``shared`` of an app: paths of its source that persist outside its releases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import STATIC_URL

#: A relative path without special characters of nginx and the shell; a final slash marks a directory.
_PATH = re.compile(r"((?!\.{1,2}(/|$))[A-Za-z0-9._-]+/)*(?!\.{1,2}$)[A-Za-z0-9._-]+/?")

#: First component of paths in the directory of shared data that the collection uses itself.
RESERVED = re.compile(r"\.funnel.*")


@dataclass(frozen=True, kw_only=True)
class SharedPath:
    """Options of a shared path."""

    url: Annotated[
        str | None,
        Doc("URL prefix below which nginx serves the files of the directory, such as uploads; not served if unset."),
        STATIC_URL,
    ] = None
    backup: Annotated[bool, Doc("Whether backup.yml includes the path.")] = True


def by_path(shared: Sequence[str] | Mapping[str, SharedPath]) -> dict[str, SharedPath]:
    """Return the shared paths with their options, without final slashes."""
    options = shared if isinstance(shared, Mapping) else dict.fromkeys(shared, SharedPath())
    return {path.rstrip("/"): option for path, option in options.items()}


def is_directory(path: str) -> bool:
    """Return whether a path that the source lacks, as written in the entry, is a directory: a file has an extension."""
    return path.endswith("/") or not PurePosixPath(path).suffix


def shared_keys(shared: Sequence[str] | Mapping[str, SharedPath], path: str) -> Iterator[tuple[str, str]]:
    """Yield each of the shared paths at ``path`` with its key: the index in a list, and the path in a dict."""
    for number, name in enumerate(shared):
        yield (f"{path}.{name}" if isinstance(shared, Mapping) else f"{path}[{number}]"), name


def shared_problems(shared: Sequence[str] | Mapping[str, SharedPath], static: str | None, path: str) -> Iterator[str]:
    """Yield the problems of the shared paths at ``path``.

    :arg static: the directory of static files.
    """
    taken: list[PurePosixPath] = []
    for key, name in shared_keys(shared, path):
        here = PurePosixPath(name)
        if not _PATH.fullmatch(name):
            yield (
                f"{key}: must be a path inside the source, relative to it, of letters, digits and . _ -, such as instance or "
                f"data/db.sqlite3; found {name!r}"
            )
            continue
        if RESERVED.fullmatch(here.parts[0]):
            yield f"{key}: the name {here.parts[0]} is reserved; choose another"
        for other in taken:
            if other == here:
                yield f"{key}: {here} is listed twice"
            elif other in here.parents or here in other.parents:
                inner, outer = (here, other) if other in here.parents else (other, here)
                yield f"{key}: {inner} lies in {outer}, which is shared as well; keep {outer}"
        taken.append(here)
        if static is not None:
            yield from _static_problems(here, PurePosixPath(static), by_path(shared)[str(here)].url, key)
        if by_path(shared)[str(here)].url and not is_directory(name):
            yield f"{key}.url: requires a directory; share the directory of the file, or end the path with /"


def _static_problems(path: PurePosixPath, static: PurePosixPath, url: str | None, key: str) -> Iterator[str]:
    """Yield the conflict of a shared path with the directory of static files, which belongs to each release."""
    if path == static or path in static.parents:
        yield f"{key}: contains {static}, the static.path, which each release has its own files in; share a directory in it"
    elif static in path.parents and url is None:
        yield f"{key}: lies in {static}, the static.path; set its url, so that nginx serves it, or move it out of there"
