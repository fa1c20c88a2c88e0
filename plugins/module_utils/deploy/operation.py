"""Operations of an operator on apps: deploy, restart and rollback, under the lock of each app, concurrently for several."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.core.workers import run_concurrently
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import is_live
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import (
    has_inactive_slot,
    has_leftovers,
    make_space,
    require_space,
)
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError, connect
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import (
    Switcher,
    SwitchError,
    SwitchRequest,
    UndoneError,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

#: Concurrent switches per CPU: a switch mostly waits.
SWITCHES_PER_CPU = 2


@dataclass(frozen=True)
class Operation:
    """What the operator ``by`` does with each app; the other fields are the options of the module ``switch``.

    ``replaced`` are the releases that were live when the releases of a deploy were built. ``depends_on`` are the apps that are
    switched before an app, and ``failed`` those that failed before, in this run.
    """

    by: str = ""
    rollback: bool = False
    restart: bool = False
    once: bool = True
    defer: bool = False
    drain: bool = True
    wait: float = 60
    preempt: bool = False
    check: bool = False
    replaced: Mapping[str, str] = field(default_factory=dict)
    depends_on: Mapping[str, Collection[str]] = field(default_factory=dict)
    failed: Collection[str] = ()

    @property
    def name(self) -> str:
        """The name of the operation, for the operator of the deploy that it preempts."""
        return "rollback" if self.rollback else "deploy"


def perform_all(operation: Operation, releases: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Carry out the operation for several apps, concurrently unless one depends on another.

    :returns: the results of :func:`perform` by app. An app is not switched if one on which it depends failed.
    """
    limit = SWITCHES_PER_CPU * len(os.sched_getaffinity(0))
    results: dict[str, dict[str, Any]] = {}
    failed = set(operation.failed)
    order = TopologicalSorter({app: [name for name in operation.depends_on.get(app, ()) if name in releases] for app in releases})
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        causes = {app: [name for name in operation.depends_on.get(app, ()) if name in failed] for app in ready}
        results |= {app: _not_switched(Layout(app), names) for app, names in causes.items() if names}
        apps = [app for app in ready if app not in results]
        found = run_concurrently(lambda app: perform(operation, Layout(app), releases[app]), apps, limit)
        results |= {app: result or _killed(Layout(app), releases[app]) for app, result in zip(apps, found, strict=True)}
        failed.update(app for app in ready if results[app].get("failed"))
        order.done(*ready)
    return {app: results[app] for app in releases}


def perform(operation: Operation, layout: Layout, release: str) -> dict[str, Any]:
    """Bring a release of an app live, or predict the result in check mode.

    :arg release: the id, ``live`` or ``previous``.
    :returns: the result for Ansible, with ``failed`` and ``msg`` after a failure.
    """
    live = layout.live_release() or ""
    if not (operation.check or layout.home.is_dir()):
        return _failure(layout, "", f"{layout.app}: no release is live on this host")
    try:
        if operation.check:
            return {"before": live} | _predict(layout, _build_request(operation, layout, release))
        # Nobody preempts a rollback: a second operator who rolls back at the same time waits. Its drain preempts no later deploy.
        preempt = operation.name if operation.preempt or (operation.rollback and release != "live") else ""
        with deploy_lock(
            layout, operation.by, wait=operation.wait, preempt=preempt, preemptible=not operation.rollback
        ) as note_step:
            request = _build_request(operation, layout, release)
            _require_built(layout, request.release)
            if request.forward:
                require_space(layout)
            else:
                make_space(layout)
            if not operation.rollback:
                _require_no_rollback(layout, operation.replaced.get(layout.app, ""))
                _require_latest_push(layout, request.release)
            live, before = layout.live_release() or "", _describe_live(layout)
            note = f"{{}} of release {request.release}".format
            result = Switcher(layout, request, lambda step: note_step(note(step), request.release)).run()
    except (LockedError, OSError, SwitchError, SupervisorError, ServiceError) as error:
        failed = f"{VARIABLE}.{layout.app}: the {operation.name} failed: " if isinstance(error, OSError) else ""
        return _failure(layout, live, f"{failed}{error_text(error)}", release) | {"undone": isinstance(error, UndoneError)}
    return {"before": live, "diff": _difference(layout, before, _describe_live(layout))} | dataclasses.asdict(result)


def _not_switched(layout: Layout, causes: list[str]) -> dict[str, Any]:
    live = layout.live_release() or ""
    message = f"{VARIABLE}.{layout.app}: not switched, because it depends on {', '.join(causes)}, which failed"
    return _failure(layout, live, message)


def _killed(layout: Layout, release: str) -> dict[str, Any]:
    return _failure(layout, "", f"{layout.app}: the switch was killed; run the same command again to complete it", release)


def _failure(layout: Layout, before: str, message: str, target: str = "") -> dict[str, Any]:
    """Return the result of an operation that failed; if its ``target`` is live nevertheless, the replaced slot may be left."""
    live = layout.live_release() or ""
    return {
        "failed": True,
        "changed": False,
        "msg": printable_message(message),
        "before": before,
        "release": live,
        "draining": bool(live) and live == target and has_inactive_slot(layout),
    }


def _build_request(operation: Operation, layout: Layout, release: str) -> SwitchRequest:
    """Return the request for an app, with ``live`` and ``previous`` replaced by ids.

    :raises SwitchError: when there is no such release.
    """
    if release == "live":
        release = layout.live_release() or ""
        if not release:
            raise SwitchError(f"{layout.app}: no release is live on this host")
    elif release == "previous":
        release = history.previous(layout) or ""
        if not release:
            raise SwitchError(f"{layout.app}: this host has no earlier release that served well; {layout.history} lists all")
    options = {name: getattr(operation, name) for name in ("by", "restart", "rollback", "once", "defer", "drain")}
    return SwitchRequest(release, **options)


def _require_no_rollback(layout: Layout, expected: str) -> None:
    """Require that the release that was live when a deploy was built has not been rolled back meanwhile.

    :raises SwitchError: when it was, because the operator who rolled back did not know of this deploy.
    """
    entry = history.newest_entries(layout).get(expected)
    if layout.live_release() != expected and entry and entry.rollback:
        raise SwitchError(
            f"{layout.app}: release {expected}, which this deploy was to replace, was rolled back {entry.rollback}; run it again "
            "to deploy nevertheless"
        )


def _require_built(layout: Layout, release: str) -> None:
    """Require that a release is on this host.

    :raises SwitchError: when it is not.
    """
    if not layout.is_built(release):
        raise SwitchError(f"{layout.app}: release {release} is not on this host; deploy its version again")


def _require_latest_push(layout: Layout, release: str) -> None:
    """Require that no newer push went live while a release was built from an earlier push.

    :raises SwitchError: when one did, which the switch would replace with older code.
    """
    live = layout.live_release()
    if live is None or not all(layout.pushed_source(name).exists() for name in (live, release)):
        return
    pushed, built = (read_manifest(layout, name).revision for name in (live, release))
    if pushed != built:
        raise SwitchError(f"{layout.app}: {pushed} was pushed meanwhile and is live; run again to apply the settings to it")


def _describe_live(layout: Layout) -> str:
    """Return the live release as a line of a diff."""
    live, release = layout.live_slot(), layout.live_release()
    if live is None or release is None or not layout.is_built(release):
        return "nothing\n"
    return _describe(layout, live, release)


def _describe(layout: Layout, slot: str, release: str) -> str:
    """Return a release in a slot as a line of a diff, with the number of its processes if it is built."""
    if not layout.is_built(release):
        return f"release {release}, slot {slot}\n"
    return f"release {release}, slot {slot}, {read_manifest(layout, release).process_summary}\n"


def _difference(layout: Layout, before: str, after: str) -> dict[str, str]:
    """Return the diff."""
    return {"before": before, "after": after, "before_header": f"served by {layout.app}"} if before != after else {}


def _predict(layout: Layout, request: SwitchRequest) -> dict[str, Any]:
    """Return the result of a switch without changing anything, also on a host without supervisord."""
    before = _describe_live(layout)
    live = layout.live_slot()
    switched = request.restart or not request.release or layout.live_release() != request.release
    leftovers = False
    if not switched:
        switched, leftovers = not is_live(layout, request.release, connect()), has_leftovers(layout)
    after = _describe(layout, layout.inactive_slot(), request.release or "not built yet") if switched else before
    result = {"changed": switched or leftovers, "release": request.release, "slot": layout.inactive_slot() if switched else live}
    return result | {"steps": [], "pruned": [], "diff": _difference(layout, before, after)}
