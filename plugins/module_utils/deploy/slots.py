"""Slots: access control, connection draining, and the removal of a slot whose processes no longer receive traffic."""

from __future__ import annotations

import contextlib
import grp
import operator
import pwd
import signal
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core import private, proc, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import full_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import NGINX_GROUP, SLOTS, Layout, Slot
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import count_connections
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.front_door_check import is_published

#: Seconds between two checks.
INTERVAL = 0.1

#: Seconds for which a rollback deletes the cache on a full disk.
MAX_CLEANING = 10

#: Modes of a slot and of its directory of sockets. An access control list lets the app's user enter the slot; in the directory
#: of sockets that user is one of the others. nginx's group may list that directory, but not write there.
SLOT_MODE = 0o710
RUN_MODE = 0o3757


def protect(layout: Layout, slot: Slot) -> None:
    """Restrict a slot to root, nginx and the app's user, and make its directory of sockets sticky like /tmp.

    In a sticky directory the app's user cannot change files of root, and the kernel follows links for their owner only. The slot
    is restricted first, so that other users cannot reach the writable directory below it. Listening processes are unaffected.

    :raises PrivateError: when the file system does not support it.
    """
    user, group = pwd.getpwnam(layout.user).pw_uid, grp.getgrnam(NGINX_GROUP).gr_gid
    private.restrict_directory(layout.slot(slot), group, SLOT_MODE, user)
    private.restrict_directory(layout.run(slot), group, RUN_MODE)


def is_protected(layout: Layout, slot: Slot) -> bool:
    """Return whether a slot has the permissions of :func:`protect`, unlike those of early versions of the collection."""
    user, group = pwd.getpwnam(layout.user).pw_uid, grp.getgrnam(NGINX_GROUP).gr_gid
    return private.is_restricted(layout.slot(slot), group, SLOT_MODE, user) and private.is_restricted(
        layout.run(slot), group, RUN_MODE
    )


def has_leftovers(layout: Layout) -> bool:
    """Return whether a switch is incomplete: it was interrupted, or the live slot is damaged or of an early version."""
    live = layout.live_slot()
    markers = [layout.reload_marker(live), layout.verification_marker(live)] if live else []
    if live and not is_recorded(layout, live):
        return True
    is_open = (live is not None and not is_protected(layout, live)) or not history.is_private(layout)
    outdated = is_open or (live is not None and not is_published(layout, live))
    return has_inactive_slot(layout) or any(marker.exists() for marker in markers) or outdated


def is_usable(layout: Layout, slot: Slot) -> bool:
    """Return whether a slot has what nginx needs of it: the servers, and the directory of their sockets."""
    run = layout.run(slot)
    return run.is_dir() and not run.is_symlink() and layout.upstream(slot).is_file() and layout.upstream(slot).stat().st_size > 0


def is_recorded(layout: Layout, live: Slot) -> bool:
    """Return whether the history and the link for operators name the live release."""
    return layout.current.is_symlink() and history.latest(layout) == layout.slot_release(live)


def has_inactive_slot(layout: Layout) -> bool:
    """Return whether the inactive slot exists or is configured."""
    inactive = layout.inactive_slot()
    return layout.slot(inactive).exists() or layout.supervisor_file(inactive).exists()


def drain_connections(layout: Layout, slot: Slot, seconds: float) -> None:
    """Wait up to ``seconds`` until the processes of a slot have no open connections and thus no in-flight requests."""
    upstream = layout.upstream(slot)
    lines = upstream.read_text(encoding="utf-8").splitlines() if upstream.exists() else []
    ports = {int(line.rsplit(":", 1)[1].split()[0]) for line in lines if "unix:" not in line}
    poll(lambda: count_connections(layout.run(slot), ports), operator.not_, timeout=seconds, interval=INTERVAL)


def clear_slot(layout: Layout, slot: Slot, server: Any, timeout: float) -> None:
    """Stop all processes of a slot and delete the slot; idempotent.

    The configuration goes first, so that supervisord does not start the processes again after an interrupted run.

    :arg timeout: seconds until processes that do not stop are killed.
    :raises SupervisorError: when a process under supervisord does not end.
    :raises TreeError: when its files cannot be deleted.
    """
    for path in (layout.supervisor_file(slot), private.staged(layout.supervisor_file(slot))):
        path.unlink(missing_ok=True)
    supervisord.remove_groups(server, supervisord.slot_groups(server, layout.group(slot)), timeout)
    _stop_orphans(layout, slot, timeout)
    tree.remove(layout.slot(slot))


def slot_releases(layout: Layout) -> list[str]:
    """Return the releases that the slots run, as far as they are still on the host."""
    return [release for slot in SLOTS if (release := layout.slot_release(slot)) and layout.is_built(release)]


def require_space(layout: Layout) -> None:
    """Require some free space for a deploy.

    :raises OSError: when a disk is full.
    """
    if problem := full_problem((layout.home, layout.supervisor_file("a").parent, layout.logs)):
        raise OSError(problem)


def make_space(layout: Layout) -> None:
    """Delete the cache of uv if the disk of the app is full, as a rollback must not wait until somebody frees some space."""
    if full_problem((layout.home,)):
        with contextlib.suppress(OSError, tree.TreeError):
            tree.remove(layout.cache / "uv", trusted=layout.home, seconds=MAX_CLEANING)


def stop_workers(layout: Layout, slot: Slot, server: Any) -> None:
    """Ask the workers of a slot without traffic to stop, so that they finish their work while its connections drain."""
    site = layout.group(slot)
    supervisord.stop_groups(server, [group for group in supervisord.slot_groups(server, site) if group != site])


def _stop_orphans(layout: Layout, slot: Slot, timeout: float) -> None:
    """Stop the orphaned processes of a slot, which a killed supervisord or a main process has left running.

    Only a main process, which leads its process group, is asked first, because it may let its children finish their work.
    """
    with contextlib.suppress(KeyError):
        uid = pwd.getpwnam(layout.user).pw_uid
        environment = {"TORNADO_APP": layout.app, "TORNADO_SLOT": slot}
        asked: set[int] = set()

        def ask() -> list[int]:
            pids = proc.pids_with_environment(uid, environment)
            leaders = [pid for pid in pids if proc.process_group(pid) == pid] or pids
            for pid in set(leaders) - asked:
                proc.send_signal(pid, signal.SIGTERM, uid, environment)
            asked.update(leaders)
            return pids

        if poll(ask, operator.not_, timeout=timeout, interval=INTERVAL):
            for pid in ask():
                proc.send_signal(pid, signal.SIGKILL, uid, environment)
