"""What was pushed to a host: received as an archive, then built and switched to as deploy.yml does.

The archive stays in its release. What was pushed last is thus what is live, and nothing else has to agree with it: a push
that does not go live leaves nothing, and after a rollback other settings are applied to the code that was gone back to.
"""

from __future__ import annotations

import io
import os
import re
import select
import time
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
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import Switcher, SwitchRequest, SwitchResult
from ansible_collections.funnel.tornado.plugins.module_utils.push.policy import HANDING_OVER, MAX_BYTES, WAIT
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError, ensure_home

#: How a tar file ends: two blocks of zeros. One without them was cut off.
END = bytes(1024)

#: How one of git's begins, in the two blocks of a global header: with the commit.
COMMENT = re.compile(rb".{156}g.{355}52 comment=([0-9a-f]{40})\n\0", re.DOTALL)
BEGIN = 1024

_CHUNK = 1 << 20


class Sender(io.RawIOBase):
    """What somebody sends who may fall silent: it has to come within `HANDING_OVER` seconds."""

    def __init__(self, descriptor: int, key: str) -> None:
        """Read from a pipe; ``key`` is the source's place in the inventory, for messages."""
        self._descriptor = descriptor
        self._key = key
        self._deadline = time.monotonic() + HANDING_OVER

    def readable(self) -> bool:
        """Say that it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for some bytes.

        :raises BuildError: when they do not come in time.
        """
        left = max(self._deadline - time.monotonic(), 0)
        if not select.select([self._descriptor], [], [], left)[0]:
            raise BuildError(f"{self._key}: what was pushed did not come within {HANDING_OVER:g} s; push again")
        part = os.read(self._descriptor, len(buffer))
        buffer[: len(part)] = part
        return len(part)


def receive(stream: BinaryIO, archive: Path, key: str) -> PushedSource:
    """Write what ``git archive`` gives to ``archive``.

    :arg key: the source's place in the inventory, for messages.
    :raises BuildError: when it is too large, or not all of it.
    """
    size, begin, tail = 0, b"", b""
    # One that a power cut has left may be a release's own, by another name: it is not to be written to.
    archive.unlink(missing_ok=True)
    with os.fdopen(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        while chunk := stream.read(_CHUNK):
            size, begin, tail = size + len(chunk), (begin + chunk)[:BEGIN], (tail + chunk)[-len(END) :]
            if size > MAX_BYTES:
                raise BuildError(f"{key}: the files of the commit are more than {MAX_BYTES >> 20} MiB")
            file.write(chunk)
    revision = COMMENT.match(begin)
    if tail != END or not revision:
        raise BuildError(f"{key}: what was pushed did not come whole; push again")
    return PushedSource(archive, revision[1].decode())


def _remove_broken_off(layout: Layout) -> None:
    """Remove the archives of pushes that have ended without doing so themselves, as by a power cut."""
    for path in layout.home.glob(".pushed*.tar"):
        if not Path("/proc", path.stem.partition("-")[2] or "-").exists():
            path.unlink(missing_ok=True)


def deploy(
    layout: Layout, app: App, programs: Programs, descriptor: int, by: str, say: Callable[[str], None]
) -> tuple[SwitchResult, PushedSource]:
    """Build what the pipe ``descriptor`` brings and switch to it; what was served before is served until then, and if it fails.

    :arg say: is told each step when it begins.
    :raises BuildError: when it cannot be built.
    :raises LockedError: when another deploy of the app takes too long.
    :raises SwitchError: when it does not go live.
    """
    key = f"{VARIABLE}.{layout.app}.source.push"
    ensure_home(layout)
    _remove_broken_off(layout)
    # Nobody holds the lock of the app while an archive comes, so that of another push may come at the same time.
    received = layout.home / f".pushed-{os.getpid()}.tar"
    try:
        pushed = receive(io.BufferedReader(Sender(descriptor, key), _CHUNK), received, key)
        with deploy_lock(layout, by, wait=WAIT) as note:

            def step(name: str) -> None:
                note(f"{name} of what was pushed")
                say(name)

            planned = plan_release(app, pushed.revision, programs)
            kept = layout.pushed_source(planned.id)
            if not layout.is_built(planned.id):
                step("build")
                environment = build_release(layout, app, planned, programs, received, by)
                say(f"environment {'built' if environment.built else 'reused'}")
            elif not kept.exists():  # the app had another source before, which gave the same commit
                received.rename(kept)
            return Switcher(layout, SwitchRequest(planned.id, by), step).run(), pushed
    finally:
        received.unlink(missing_ok=True)
