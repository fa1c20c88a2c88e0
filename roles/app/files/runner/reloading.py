"""Hot reload on code changes (``--debug``), which keeps the pid file locked and the listening sockets open."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tornado import autoreload

DESCRIPTORS_VARIABLE = "_TORNADO_RUNNER_DESCRIPTORS"
"""Environment variable that passes the open descriptors to the program after a reload."""

Descriptors = tuple[int | None, list[int]]
"""Descriptors of the pid file, if any, and of the listening sockets."""


def prepare_reload(watched: list[Path], arguments: list[str], open_descriptors: Callable[[], Descriptors]) -> None:
    """Reload on changes of the watched files, too, and pass the arguments and the open descriptors on."""
    for path in watched:
        autoreload.watch(str(path.absolute()))
    autoreload.add_reload_hook(functools.partial(pass_on, Path.cwd(), arguments, open_descriptors))


def pass_on(directory: Path, arguments: list[str], open_descriptors: Callable[[], Descriptors]) -> None:
    """Restore the command line, and keep the descriptors open, for the program that replaces this one in the same process."""
    sys.argv[1:] = arguments
    lock, listeners = open_descriptors()
    for fd in (*listeners, lock):
        if fd is not None:
            fcntl.fcntl(fd, fcntl.F_SETFD, 0)
    os.environ[DESCRIPTORS_VARIABLE] = json.dumps([lock, listeners])
    for handler in logging.getLogger().handlers:
        handler.flush()
    os.chdir(directory)


def inherit_descriptors() -> Descriptors:
    """Return the descriptors that the program before a reload has left open, if any."""
    lock, listeners = json.loads(os.environ.pop(DESCRIPTORS_VARIABLE, "[null, []]"))
    for fd in (*listeners, lock):
        if fd is not None:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return lock, listeners


def watch_failed_code(cause: BaseException) -> None:
    """Reload when the code that raised an exception changes."""
    files = {frame.filename for frame in traceback.extract_tb(cause.__traceback__)}
    if isinstance(cause, SyntaxError) and cause.filename is not None:
        files.add(cause.filename)
    for file in files:
        autoreload.watch(file)
    autoreload.start()
