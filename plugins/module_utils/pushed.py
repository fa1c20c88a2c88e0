"""What was pushed to a host: received as an archive, then built and switched to as deploy.yml does.

The archive stays in its release. What was pushed last is thus what is live, and nothing else has to agree with it: a push
that does not go live leaves nothing, and after a rollback other settings are applied to the code that was gone back to.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import App
from ansible_collections.funnel.tornado.plugins.module_utils.git import COMMIT
from ansible_collections.funnel.tornado.plugins.module_utils.home import BuildError, ensure_home
from ansible_collections.funnel.tornado.plugins.module_utils.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.lock import deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.push import MOST_BYTES, WAIT
from ansible_collections.funnel.tornado.plugins.module_utils.release import Programs, Pushed, build, plan
from ansible_collections.funnel.tornado.plugins.module_utils.switch import Outcome, Switcher, Wanted

#: How a tar file ends: two blocks of zeros. One without them was cut off.
END = bytes(1024)

_CHUNK = 1 << 20


def receive(stream: BinaryIO, archive: Path, key: str) -> Pushed:
    """Write what ``git archive`` gives to ``archive``.

    :arg key: the source's place in the inventory, for messages.
    :raises BuildError: when it is too large, or not all of it.
    """
    size, tail = 0, b""
    # One that a power cut has left may be a release's own, by another name: it is not to be written to.
    archive.unlink(missing_ok=True)
    with os.fdopen(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        while chunk := stream.read(_CHUNK):
            size, tail = size + len(chunk), (tail + chunk)[-len(END) :]
            if size > MOST_BYTES:
                raise BuildError(f"{key}: the files of the commit are more than {MOST_BYTES >> 20} MiB")
            file.write(chunk)
    try:
        with tarfile.open(archive, "r:") as opened:
            revision = opened.pax_headers.get("comment", "")
    except tarfile.TarError:
        revision = ""
    if tail != END or not COMMIT.fullmatch(revision):
        raise BuildError(f"{key}: what was pushed did not come whole; push again")
    return Pushed(archive, revision)


def deploy(
    layout: Layout, app: App, programs: Programs, stream: BinaryIO, by: str, say: Callable[[str], None]
) -> tuple[Outcome, Pushed]:
    """Build what ``stream`` brings and switch to it; what was served before is served until then, and if it fails.

    :arg say: is told each step when it begins.
    :raises BuildError: when it cannot be built.
    :raises LockedError: when another deploy of the app takes too long.
    :raises SwitchError: when it does not go live.
    """
    key = f"{VARIABLE}.{layout.app}.source.push"
    ensure_home(layout)
    received = layout.home / ".pushed.tar"  # one push at a time gets here
    try:
        pushed = receive(stream, received, key)
        with deploy_lock(layout, by, wait=WAIT) as note:

            def step(name: str) -> None:
                note(f"{name} of what was pushed")
                say(name)

            planned = plan(app, pushed.revision, programs)
            kept = layout.pushed_source(planned.id)
            if not layout.is_built(planned.id):
                step("build")
                environment = build(layout, app, planned, programs, received, by)
                say(f"environment {'built' if environment.built else 'reused'}")
            elif not kept.exists():  # the app had another source before, which gave the same commit
                received.rename(kept)
            return Switcher(layout, Wanted(planned.id, by), step).run(), pushed
    finally:
        received.unlink(missing_ok=True)
