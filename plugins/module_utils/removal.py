"""Taking an app off a host: its processes after they have finished, then all that it owns."""

from __future__ import annotations

import pwd
import shutil
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.command import run
from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.switch import withdraw


def belongings(layout: Layout) -> list[str]:
    """Return what there is of an app on this host, as lines of a diff."""
    paths: list[Path] = [layout.home, layout.logs, *(layout.supervisor_file(slot) for slot in SLOTS)]
    return [*(str(path) for path in paths if path.exists()), *([f"user {layout.user}"] if _has_user(layout) else [])]


def remove(layout: Layout) -> None:
    """End the app and remove all of it, what it wrote into ``shared`` too.

    :raises SupervisorError: when a process does not end.
    :raises CommandError: when the user cannot be removed.
    """
    withdraw(layout)
    for directory in (layout.home, layout.logs):
        if directory.exists():
            shutil.rmtree(directory)
    if _has_user(layout):
        run(["userdel", layout.user])


def _has_user(layout: Layout) -> bool:
    """Say whether the host has the app's user: one of that name whose home is another one is none of ours."""
    try:
        return pwd.getpwnam(layout.user).pw_dir == str(layout.home)
    except KeyError:
        return False
