"""Taking an app off a host: its processes after they have finished, then all that it owns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils import push
from ansible_collections.funnel.tornado.plugins.module_utils.certificate_store import Place, discard
from ansible_collections.funnel.tornado.plugins.module_utils.certificates import APP_SET
from ansible_collections.funnel.tornado.plugins.module_utils.command import run
from ansible_collections.funnel.tornado.plugins.module_utils.home import is_ours
from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.switch import withdraw


def belongings(layout: Layout) -> list[str]:
    """Return what there is of an app on this host, as lines of a diff; nothing if no app of that name is there."""
    if not is_ours(layout):
        return []
    paths: list[Path] = [layout.home, layout.logs, *(layout.supervisor_file(slot) for slot in SLOTS)]
    certificate = Place(APP_SET, layout.app, layout.base)
    paths += [certificate.chain, certificate.key, certificate.lineage.configuration]
    paths += [push.entry(layout.app), push.repository(layout.app)]
    return [*(str(path) for path in paths if os.path.lexists(path)), f"user {layout.user}"]


def remove(layout: Layout) -> None:
    """End the app and remove all of it, what it wrote into ``shared`` too; its user last, by whom the rest is known as its.

    :raises SupervisorError: when a process does not end.
    :raises CommandError: when the user cannot be removed, or certbot does not forget the certificate.
    """
    withdraw(layout)
    discard(Place(APP_SET, layout.app, layout.base))
    push.entry(layout.app).unlink(missing_ok=True)
    for directory in (push.repository(layout.app), layout.home, layout.logs):
        if directory.exists():
            shutil.rmtree(directory)
    run(["userdel", layout.user])
