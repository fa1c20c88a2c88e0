"""The descriptors that stay open in a hot reload: the locked pid file and the listening sockets."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

DESCRIPTORS_VARIABLE = "_TORNADO_RUNNER_DESCRIPTORS"
"""Environment variable that passes the open descriptors to the program after a reload."""

Descriptors = tuple[int | None, list[int]]
"""Descriptors of the pid file, if any, and of the listening sockets."""


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
