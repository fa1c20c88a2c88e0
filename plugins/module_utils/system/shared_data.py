"""The shared data of an app, ``/srv/<app>/shared``, which :mod:`shared_files` accesses as the app's user."""

from __future__ import annotations

import inspect
import json
import os
import pwd
import select
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, CommandResult
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import NGINX_GROUP, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import acl
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation, shared_files, unpacking

#: Timeout in seconds of one step: copying, packing or unpacking all data of an app.
SECONDS = 6 * 3600

#: Maximum size of a backup in bytes, and the space that it leaves free on its file system: an app may have sparse files.
MAX_BACKUP = 1 << 40
MIN_FREE = 256 << 20

_CHUNK = 1 << 20

#: Seconds between two checks for the end of a program whose output another process keeps open.
_INTERVAL = 0.2

#: Limits of a restored archive: members and bytes.
MAX_FILES, MAX_BYTES = 10_000_000, 1 << 40


class SharedDataError(Exception):
    """The shared data cannot be accessed. The message has the reason."""


def provide(layout: Layout, seeds: Path, paths: Sequence[str], served: Sequence[str]) -> None:
    """Create the missing paths from the directory ``seeds``, and make those in ``served`` readable by nginx.

    :raises SharedDataError: when that fails.
    """
    _run(layout, "provide", {"seeds": str(seeds), "paths": list(paths), "served": list(served), "acls": _acls()})


def back_up(layout: Layout, paths: Sequence[str], file: int) -> None:
    """Write the paths as a tar file to the descriptor ``file``, with consistent copies of SQLite databases.

    The program writes to a pipe: a process of the app could take its descriptor of the file, and change the backup later.

    :raises SharedDataError: when that fails.
    :raises OSError: when the file cannot be written.
    """
    reader, writer = os.pipe()
    ended = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(receive, reader, file, ended)
        try:
            _run(layout, "back_up", {"paths": list(paths)}, writer)
        finally:
            os.close(writer)
            ended.set()
            received.result()  # why it ended early is the reason why the program failed


def receive(pipe: int, file: int, ended: threading.Event) -> None:
    """Write the output of a program to a file, and close the pipe.

    :arg ended: set when the program has ended, while another process of its user may keep writing.
    """
    size, limit = 0, MAX_BACKUP
    with os.fdopen(pipe, "rb", buffering=0) as source, open(file, "wb", closefd=False) as target:
        while size < limit:
            if has_ended := ended.is_set():
                limit = min(limit, size + _CHUNK)  # the capacity of a pipe is less
            if select.select([source], [], [], 0 if has_ended else _INTERVAL)[0]:
                chunk = source.read(_CHUNK)
                space = os.fstatvfs(file)
                if space.f_bavail * space.f_frsize < MIN_FREE + len(chunk):
                    raise SharedDataError(f"the file system of the backup has less than {MIN_FREE >> 20} MiB free")
                target.write(chunk)
                size += len(chunk)
                has_ended = not chunk
            if has_ended:
                return
    if not ended.is_set():
        raise SharedDataError(f"the backup has more than {MAX_BACKUP >> 30} GiB")


def prepare_restore(layout: Layout, paths: Sequence[str]) -> list[str]:
    """Remove what an interrupted restore has left; return those of the paths that contain data.

    :raises SharedDataError: when that fails.
    """
    return _run(layout, "prepare", {"paths": list(paths)}).output.splitlines()


def unpack(layout: Layout, file: int) -> None:
    """Unpack a tar file from the descriptor ``file`` beside the data.

    :raises SharedDataError: when it is damaged, or contains other files than regular ones, directories and links.
    """
    arguments = [str(layout.shared), f"{shared_files.RESTORING}/{shared_files.RESTORED}", "", str(MAX_FILES), str(MAX_BYTES)]
    _run_program(layout, [inspect.getsource(unpacking), *arguments], file)


def replace(layout: Layout, paths: Sequence[str], served: Sequence[str]) -> list[str]:
    """Replace those of the paths that were unpacked, and return them.

    :raises SharedDataError: when that fails; the data are then as before.
    """
    return _run(layout, "replace", {"paths": list(paths), "served": list(served), "acls": _acls()}).output.splitlines()


def _acls() -> dict[str, str]:
    """Return the access control lists that let nginx, but no other user, read files."""
    user = pwd.getpwnam(NGINX_GROUP).pw_uid
    lists = {"traverse": acl(0o750, user, 0o1), "directory": acl(0o750, user), "file": acl(0o640, user)}
    return {name: value.hex() for name, value in lists.items()}


def _run(layout: Layout, command: str, options: dict[str, Any], stdin: int | None = None) -> CommandResult:
    return _run_program(layout, [inspect.getsource(shared_files), command, str(layout.shared), json.dumps(options)], stdin)


def _run_program(layout: Layout, arguments: Sequence[str], stdin: int | None) -> CommandResult:
    try:
        result = isolation.run(
            layout.user,
            [sys.executable, "-I", "-c", *arguments],
            directory=layout.shared,
            environment={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            timeout=SECONDS,
            description=f"Shared data of {layout.app}",
            stdin=stdin,
            separate_stderr=True,
        )
    except CommandError as error:
        raise SharedDataError(str(error)) from error
    if result.status != 0:
        raise SharedDataError(result.last_lines() or f"exit status {result.status}")
    return result
