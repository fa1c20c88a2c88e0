"""Slots: access control, connection draining, and the removal of a slot whose processes no longer receive traffic."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import time
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core import private, proc, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import NGINX_GROUP, Layout, Slot
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import count_connections
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history, supervisord

#: Seconds between two checks.
INTERVAL = 0.1

#: Modes of a slot and of its directory of sockets, the first with an entry for the app's user, who is among the others of the
#: second. Nginx's group lists that, and writes nothing there.
SLOT_MODE = 0o710
RUN_MODE = 0o3757


def protect(layout: Layout, slot: Slot) -> None:
    """Let nobody but root, nginx and the app's user pass through a slot, and make its directory of sockets one like /tmp.

    There the app's user changes nothing that root made, and the kernel follows a link for nobody but who made it. In this
    order: before others may write below the slot they cannot reach it any more. Processes that listen there serve on.

    :raises PrivateError: when the file system cannot do it.
    """
    user, group = pwd.getpwnam(layout.user).pw_uid, grp.getgrnam(NGINX_GROUP).gr_gid
    private.restrict_directory(layout.slot(slot), group, SLOT_MODE, user)
    private.restrict_directory(layout.run(slot), group, RUN_MODE)


def is_protected(layout: Layout, slot: Slot) -> bool:
    """Say whether a slot is as :func:`protect` makes it; slots of the collection's first releases are not."""
    user, group = pwd.getpwnam(layout.user).pw_uid, grp.getgrnam(NGINX_GROUP).gr_gid
    return private.is_restricted(layout.slot(slot), group, SLOT_MODE, user) and private.is_restricted(
        layout.run(slot), group, RUN_MODE
    )


def has_leftovers(layout: Layout) -> bool:
    """Say whether a switch that was broken off left something to finish or to remove, or is open to other users."""
    live = layout.live_slot()
    marks = [layout.reload_marker(live), layout.verification_marker(live)] if live else []
    is_open = (live is not None and not is_protected(layout, live)) or not history.is_private(layout)
    return has_inactive_slot(layout) or any(mark.exists() for mark in marks) or is_open


def has_inactive_slot(layout: Layout) -> bool:
    """Say whether there is anything of a slot that is not served."""
    other = layout.inactive_slot()
    return layout.slot(other).exists() or layout.supervisor_file(other).exists()


def drain(layout: Layout, slot: Slot, seconds: float) -> None:
    """Wait until nobody is connected to a slot, at most ``seconds``."""
    upstream = layout.upstream(slot)
    lines = upstream.read_text().splitlines() if upstream.exists() else []
    ports = {int(line.rsplit(":", 1)[1].split()[0]) for line in lines if "unix:" not in line}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and count_connections(layout.run(slot), ports):
        time.sleep(INTERVAL)


def clear(layout: Layout, slot: Slot, server: Any, patience: float) -> None:
    """Stop all that runs in a slot and remove the slot; nothing is left to start again, whenever this is broken off.

    :arg patience: seconds that processes without a supervisor may take to end.
    :raises TreeError: when its files cannot be removed.
    """
    layout.supervisor_file(slot).unlink(missing_ok=True)
    for group in supervisord.slot_groups(server, layout.group(slot)):
        supervisord.remove_group(server, group)
    _end_orphans(layout, slot, patience)
    tree.remove(layout.slot(slot))


def _end_orphans(layout: Layout, slot: Slot, patience: float) -> None:
    """End the slot's processes that a killed supervisord has left: the one that was started after it does not know them."""
    with contextlib.suppress(KeyError):
        uid = pwd.getpwnam(layout.user).pw_uid
        wanted = {"TORNADO_APP": layout.app, "TORNADO_SLOT": slot}
        deadline = time.monotonic() + patience
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in proc.pids_with_environment(uid, wanted):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while proc.pids_with_environment(uid, wanted) and time.monotonic() < deadline:
                time.sleep(INTERVAL)
