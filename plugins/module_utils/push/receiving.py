"""Deployment of a push: receive the commit as an archive, build it and switch to it as deploy.yml does.

The archive is stored in its release. So the source of an app is that of its live release, with no other state to keep in sync: a
failed push leaves nothing behind, and after a rollback, changed settings apply to the code of the restored release.
"""

from __future__ import annotations

import io
import os
import re
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import (
    Programs,
    PushedSource,
    build_release,
    plan_release,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import Switcher, SwitchRequest, SwitchResult
from ansible_collections.funnel.tornado.plugins.module_utils.push.policy import LOCK_TIMEOUT, MAX_BYTES, TRANSFER_TIMEOUT
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError, ensure_home

#: The end of a tar file: two blocks of zeros; a truncated file lacks them.
TAR_END = bytes(1024)

#: The start of an archive of git: two blocks of a global header with the commit ID.
COMMIT_HEADER = re.compile(rb".{156}g.{355}52 comment=([0-9a-f]{40})\n\0", re.DOTALL)
HEADER_SIZE = 1024

_CHUNK = 1 << 20


class TimedReader(io.RawIOBase):
    """A pipe whose sender may stall: everything must arrive within `TRANSFER_TIMEOUT` seconds."""

    def __init__(self, descriptor: int, key: str) -> None:
        """Read from a pipe; ``key`` is the path of the source in the inventory, for messages."""
        self._descriptor = descriptor
        self._key = key
        self._deadline = Deadline(TRANSFER_TIMEOUT)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for the next bytes.

        :raises BuildError: when they do not arrive in time.
        """
        if not select.select([self._descriptor], [], [], self._deadline.remaining)[0]:
            raise BuildError(f"{self._key}: the push did not arrive within {TRANSFER_TIMEOUT:g} s; push again")
        part = os.read(self._descriptor, len(buffer))
        buffer[: len(part)] = part
        return len(part)


def receive(stream: BinaryIO, archive: Path, key: str) -> PushedSource:
    """Write the output of ``git archive`` to ``archive``.

    :arg key: the path of the source in the inventory, for messages.
    :raises BuildError: when it is too large or incomplete.
    """
    size, begin, tail = 0, b"", b""
    # A file left behind by a power failure may be a hard link to that of a release, so it must not be overwritten.
    archive.unlink(missing_ok=True)
    with os.fdopen(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        while chunk := stream.read(_CHUNK):
            size, begin, tail = size + len(chunk), (begin + chunk)[:HEADER_SIZE], (tail + chunk)[-len(TAR_END) :]
            if size > MAX_BYTES:
                raise BuildError(f"{key}: the files of the commit are more than {MAX_BYTES >> 20} MiB")
            file.write(chunk)
    revision = COMMIT_HEADER.match(begin)
    if tail != TAR_END or not revision:
        raise BuildError(f"{key}: the push arrived incomplete; push again")
    return PushedSource(archive, revision[1].decode())


def _remove_interrupted(layout: Layout) -> None:
    """Remove the archives of interrupted pushes, for instance after a power failure."""
    for path in layout.home.glob(".pushed*.tar"):
        if not Path("/proc", path.stem.partition("-")[2] or "-").exists():
            path.unlink(missing_ok=True)


def deploy(
    layout: Layout, app: App, programs: Programs, descriptor: int, by: str, report_progress: Callable[[str], None]
) -> tuple[SwitchResult, PushedSource]:
    """Build the archive from the pipe ``descriptor`` and switch to it; the previous release is live until then, and on failure.

    :arg report_progress: called with the name of each step when it begins.
    :raises BuildError: when the build fails.
    :raises LockedError: when another deploy of the app takes too long.
    :raises SwitchError: when the release does not go live.
    """
    key = f"{VARIABLE}.{layout.app}.source.push"
    ensure_home(layout)
    _remove_interrupted(layout)
    # The lock of the app is not held yet, so the archive of another push may arrive at the same time.
    received = layout.home / f".pushed-{os.getpid()}.tar"
    try:
        pushed = receive(io.BufferedReader(TimedReader(descriptor, key), _CHUNK), received, key)
        with deploy_lock(layout, by, wait=LOCK_TIMEOUT) as note:

            def step(name: str) -> None:
                note(f"{name} of a push", planned.id)
                report_progress(name)

            planned = plan_release(app, pushed.revision, programs)
            stored = layout.pushed_source(planned.id)
            if not layout.is_built(planned.id):
                step("build")
                environment = build_release(layout, app, planned, programs, received, by)
                report_progress(f"environment {'built' if environment.built else 'reused'}")
            elif not stored.exists():  # built from another source of the same commit
                received.rename(stored)
            return Switcher(layout, SwitchRequest(planned.id, by), step).run(), pushed
    finally:
        received.unlink(missing_ok=True)
