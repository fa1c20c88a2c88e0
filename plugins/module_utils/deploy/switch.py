"""The switch: a zero-downtime deploy of a release into the inactive slot, with health checks, draining and rollback.

A switch starts the release in the inactive slot, waits until its processes are healthy, moves the traffic, drains the old slot
and stops it. If ``after_switch`` or the soak fails, it rolls back.

Renaming the link ``live`` moves the traffic: nginx connects to ``live/run/<process>.sock``, so new connections reach the new slot
at once and without a reload, while nginx closes its idle connections to the old slot by itself. nginx is reloaded only when its
upstream changes: another number of processes, or processes that listen on ports.

Every step can be interrupted; the next run completes or removes what it finds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import applied
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.building.missing_packages import process_advice
from ansible_collections.funnel.tornado.plugins.module_utils.building.pruning import prune
from ansible_collections.funnel.tornado.plugins.module_utils.core.atomic import replace_link
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, VARIABLE, Layout, Slot
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import headline
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import PrivateError, link_protection_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import front_door_check, history, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.access_log import ResponseCounter
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.health import HealthChecks
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import PreemptedError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import (
    ProcessGroup,
    ProcessGroupError,
    is_live,
)
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import (
    clear_slot,
    drain_connections,
    has_inactive_slot,
    is_protected,
    is_recorded,
    is_usable,
    make_space,
    protect,
    require_space,
    slot_releases,
    stop_workers,
)
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisor_config import STOP_MARGIN
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: nginx, which reloads a changed upstream and logs a rejected configuration to its own file.
NGINX = systemd.ServiceSpec("nginx", on_change="reload", log=Path("/var/log/nginx/error.log"))

#: Seconds between two checks of a soaking release.
SOAK_INTERVAL = 1.0

#: Responses that the error rate of a soaking release is based on, at least.
MIN_SOAK_RESPONSES = 10


class SwitchError(Exception):
    """A release did not go live or was rolled back; the previous one is live. The message has the process and its log."""


class UndoneError(SwitchError):
    """A release was live, and was rolled back by the switch itself."""


@dataclass
class SwitchResult:
    """The result: ``steps`` are ``{name, seconds}`` in order; ``changed`` is False if there was nothing to do.

    ``deferred`` is whether the verification was left to another switch, and ``draining`` whether the drain was, see
    :class:`SwitchRequest`.
    """

    slot: str | None
    release: str
    changed: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    deferred: bool = False
    draining: bool = False


@dataclass(frozen=True)
class SwitchRequest:
    """The release to bring live, on behalf of the operator ``by``.

    ``restart`` starts new processes even if the release is live; ``rollback`` marks the release that it replaces as undone.
    ``once``: the hooks before the switch that run on only one host of the play run here. ``defer``: leave the verification of
    an app that nothing served before to another switch, which follows when the site of the app has been applied. ``drain``:
    drain and stop the replaced slot, instead of leaving that to another switch.
    """

    release: str
    by: str = ""
    restart: bool = False
    rollback: bool = False
    once: bool = True
    defer: bool = False
    drain: bool = True

    @property
    def forward(self) -> bool:
        """Whether this is a deploy, which runs the hooks before the switch, rather than a rollback or a restart."""
        return not (self.rollback or self.restart)


class Switcher:
    """Brings a release of an app live."""

    def __init__(self, layout: Layout, request: SwitchRequest, on_step: Callable[[str], None] = lambda _step: None) -> None:
        """Read the manifests of the releases involved.

        :arg on_step: called with the name of each step at its start.
        :raises FileNotFoundError: when the release is not on this host.
        """
        self.layout = layout
        self.request = request
        self.on_step = on_step
        self.result = SwitchResult(layout.live_slot(), request.release)
        self._unserved = ""
        self.history = history.DeferrableWrites()
        self.in_use = {request.release, *slot_releases(layout)}
        self.stop_timeout = max(read_manifest(layout, release).stop_timeout for release in self.in_use) + STOP_MARGIN
        self.server = supervisord.connect()

    def run(self) -> SwitchResult:
        """Bring the release live.

        :raises SwitchError: when the release fails; the slot that was live still is.
        """
        if problem := link_protection_problem():
            raise SwitchError(f"{self._name()} did not go live: {problem}")
        try:
            try:
                self._switch()
            except SwitchError:
                with contextlib.suppress(OSError):
                    self._prune()  # or failing deploys would fill the disk
                with contextlib.suppress(OSError):
                    self.history.finish()
                raise
            if self.result.changed:
                with self._step("prune"):
                    self._prune()
            self.history.finish()
        except (PrivateError, TreeError) as error:
            raise SwitchError(
                f"{VARIABLE}.{self.layout.app}: {self.layout.live_release() or 'no release'} is live; {error}"
            ) from error
        self.result.slot = self.layout.live_slot()
        if self._unserved:  # a rollback
            raise SwitchError(f"{self._name()} is live, but clients do not reach it: {self._unserved}")
        return self.result

    def _switch(self) -> None:
        self._protect()
        if self._return_to_running_slot():
            return
        stays = not self.request.restart and is_live(self.layout, self.request.release, self.server)
        self._complete(drain=self.request.drain or not stays)
        if self.request.restart or not is_live(self.layout, self.request.release, self.server):
            slot = self.layout.inactive_slot()
            with self._step("clean"):
                self._clear(slot)
            with self._clear_on_failure(slot):
                self._start(slot)
                self._mark_replaced()
                with self._step("switch"):
                    if self.request.forward:
                        require_space(self.layout)
                    self._move_traffic(slot)
            if self.request.rollback:
                self._record(slot)
            self._complete(drain=self.request.drain)

    def _return_to_running_slot(self) -> bool:
        """If the release was live before and still runs in the inactive slot, move the traffic back to it at once.

        This is the case after a deploy that was preempted or killed while the old slot drained, or the new one was verified.
        Health is not checked: the release served a moment ago, and an outage of its dependencies must not delay the rollback.
        """
        live, inactive = self.layout.live_slot(), self.layout.inactive_slot()
        if self.layout.live_release() in (None, self.request.release) or self.request.restart:
            return False
        if live is None or self.layout.slot_release(inactive) != self.request.release:
            return False
        if not self.layout.served_marker(inactive).exists() or not self._process_group(inactive).serves():
            return False
        self._record_live(live)
        self._record_site_options()
        self._mark_replaced()
        with self._step("switch"):
            self._return_traffic(live)
        self._record(inactive)
        self._reload_nginx(inactive)
        self._return_workers(live, inactive)
        self._end(live, drain=self.request.drain)
        return True

    def _mark_replaced(self) -> None:
        """Record that the live release, which is about to be replaced, is rolled back, or was not verified completely."""
        live, release = self.layout.live_slot(), self.layout.live_release()
        if live is None or release in (None, self.request.release):
            return
        if self.request.rollback:
            self.history.write(lambda: history.mark_undone(self.layout, str(release), "rolled back", self.request.by))
        elif self.layout.verification_marker(live).exists():
            reason = "replaced before its verification was complete"
            self.history.write(lambda: history.mark_undone(self.layout, str(release), reason))

    def _record_site_options(self) -> None:
        """Record the options of the site of the live release, which is about to be replaced."""
        release = self.layout.live_release()
        if release not in (None, self.request.release):
            options = applied(self.layout)
            self.history.write(lambda: history.record_site_options(self.layout, str(release), options))

    def _protect(self) -> None:
        """Complete slots of an early version of the collection without a restart: permissions, and the health check for nginx."""
        live = self.layout.live_slot()
        for slot in SLOTS:
            release = self.layout.slot_release(slot)
            if release and release in self.in_use and not front_door_check.is_published(self.layout, slot):
                with self._step("publish"):
                    front_door_check.publish_health_check(self.layout, slot, read_manifest(self.layout, release))
        exposed = live is not None and is_usable(self.layout, live) and not is_protected(self.layout, live)
        if not exposed and history.is_private(self.layout):
            return
        with self._step("protect"):
            if live and exposed:
                protect(self.layout, live)
            history.make_private(self.layout)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Time a step and mark the result as changed."""
        self.on_step(name)
        began = time.monotonic()
        self.result.changed = True
        yield
        self.result.steps.append({"name": name, "seconds": round(time.monotonic() - began, 3)})

    def _prune(self) -> None:
        target = history.previous(self.layout)
        count = read_manifest(self.layout, self.request.release).keep_releases
        self.result.pruned = prune(self.layout, self.in_use | ({target} if target else set()), count)

    def _process_group(self, slot: Slot) -> ProcessGroup:
        return ProcessGroup(self.layout, slot, self.layout.slot_release(slot) or self.request.release, self.server)

    def _start(self, slot: Slot) -> None:
        """Start the release in the slot and wait until it is healthy."""
        process_group = self._process_group(slot)
        self._run_hook(process_group, "before_start")
        with self._step("start"):
            process_group.start()
        with self._step("health"):
            HealthChecks(process_group).wait()
        self._run_hook(process_group, "before_switch")

    @contextlib.contextmanager
    def _clear_on_failure(self, slot: Slot) -> Iterator[None]:
        """Clear the slot if an error occurs before it is live."""
        try:
            yield
        except PreemptedError:
            raise  # the preempting operation clears the slot; it must not wait for processes to stop
        except BaseException as error:
            if self.layout.live_slot() != slot:
                self._discard(slot)
            if not isinstance(error, OSError | ProcessGroupError | supervisord.SupervisorError):
                raise
            advice = process_advice(f"{VARIABLE}.{self.layout.app}", str(error))
            raise SwitchError(f"{self._name()} did not go live: {error}{advice}") from error

    def _run_hook(self, process_group: ProcessGroup, step: str) -> None:
        """Run a hook before the switch, if the release has one that this host must run."""
        skipped = not self.request.once and step in process_group.manifest.hooks_once
        if self.request.forward and process_group.has_hook(step) and not skipped:
            with self._step(step):
                process_group.run_hook(step)

    def _discard(self, slot: Slot) -> None:
        """Clear a slot that did not go live; the next run removes, or reports, files that cannot be deleted now."""
        with contextlib.suppress(OSError, TreeError):
            self._clear(slot)

    def _move_traffic(self, slot: Slot) -> None:
        live = self.layout.live_slot()
        process_group = self._process_group(slot)
        self.layout.verification_marker(slot).touch()
        self._record_site_options()
        if live is None or not is_usable(self.layout, live):
            self.layout.reload_marker(slot).touch()
        else:
            self.layout.served_marker(live).touch()
            self._prepare_reload(live, process_group)
        replace_link(self.layout.live, f"slots/{slot}")

    def _prepare_reload(self, live: Slot, process_group: ProcessGroup) -> None:
        """Request a reload of nginx if a file that it includes changes; until then, alias the sockets of the present upstream."""
        if _text(self.layout.health_headers(live)) != _text(self.layout.health_headers(process_group.slot)):
            self.layout.reload_marker(process_group.slot).touch()
        present = self.layout.upstream(live).read_text(encoding="utf-8")
        if present != self.layout.upstream(process_group.slot).read_text(encoding="utf-8"):
            self.layout.reload_marker(process_group.slot).touch()
            process_group.add_socket_aliases(len(present.splitlines()), live)

    def _complete(self, *, drain: bool = True) -> None:
        """Complete the steps after the traffic has moved, in this run or in an interrupted one."""
        live = self.layout.live_slot()
        if live is None:
            return
        self._record_live(live)
        self._reload_nginx(live)
        if self.layout.verification_marker(live).exists():
            if self.layout.slot_release(live) == self.request.release:
                if self.request.defer and not has_inactive_slot(self.layout):
                    self.result.deferred = True
                    return
                self._verify(live)
            else:
                self._mark_replaced()
            self.layout.verification_marker(live).unlink()
        if has_inactive_slot(self.layout):
            self._end(self.layout.inactive_slot(), drain=drain)

    def _record_live(self, slot: Slot) -> None:
        """Record the live release in the link ``current`` and in the history."""
        if is_recorded(self.layout, slot):
            return
        self.result.changed = True
        if not self.layout.current.is_symlink():
            replace_link(self.layout.current, "live/release")
        if history.latest(self.layout) != self.layout.slot_release(slot):
            self._record(slot)

    def _record(self, slot: Slot) -> None:
        release = self.layout.slot_release(slot)
        if release and self.layout.is_built(release):  # not if it is damaged, and about to be replaced
            revision = read_manifest(self.layout, release).revision
            self.history.write(lambda: history.record(self.layout, release, revision, self.request.by))

    def _end(self, slot: Slot, *, drain: bool) -> None:
        """Drain and stop the inactive slot, or only ask its workers to stop."""
        if drain:
            self._drain_and_stop(slot)
        else:
            stop_workers(self.layout, slot, self.server)
            self.result.draining = True

    def _drain_and_stop(self, slot: Slot) -> None:
        """Drain the connections of the inactive slot, then stop its processes: their graceful shutdown."""
        release = self.layout.slot_release(slot)
        seconds = read_manifest(self.layout, release).drain if release and release in self.in_use else 0
        with self._step("drain"):
            stop_workers(self.layout, slot, self.server)
            drain_connections(self.layout, slot, seconds)
        with self._step("stop"):
            self._clear(slot)
            live = self.layout.live_slot()
            if live and self.layout.slot_release(live) in self.in_use:
                self._process_group(live).remove_socket_aliases()

    def _clear(self, slot: Slot) -> None:
        clear_slot(self.layout, slot, self.server, self.stop_timeout)

    def _reload_nginx(self, slot: Slot) -> None:
        if self.layout.reload_marker(slot).exists():
            with self._step("reload"):
                nginx = systemd.query(NGINX.name)
                if nginx.active:
                    systemd.activate(NGINX, nginx, "reload")
                self.layout.reload_marker(slot).unlink()

    # Verification and rollback

    def _verify(self, slot: Slot) -> None:
        """Ask the app at its front door, hand over singletons, run ``after_switch`` and the soak; roll back if one fails.

        An unreachable supervisord is no fault of the release, so it does not roll back: the next run resumes here.
        """
        process_group = self._process_group(slot)
        began = time.monotonic()
        try:
            with self._step("front_door"):
                self._ask_front_door()
            self._hand_over_workers(self.layout.inactive_slot(), slot)
            if process_group.has_hook("after_switch"):
                with self._step("after_switch"):
                    process_group.run_hook("after_switch")
            if process_group.manifest.soak:
                with self._step("soak"):
                    self._soak(process_group)
        except ProcessGroupError as error:
            seconds = time.monotonic() - began
            self._roll_back(slot, headline(str(error)))
            rolled_back, stopped = " s and was rolled back", " s and was stopped, without an earlier release to roll back to"
            result = rolled_back if self.layout.live_slot() else stopped
            raise UndoneError(f"{self._name()} was live for {seconds:.0f}{result}: {error}") from error

    def _ask_front_door(self) -> None:
        """Require that the reverse proxy serves the release. A rollback or restart stays live: the old slot is no better served.

        The replacement of a damaged slot also stays live; the sites of a run, which may be damaged as well, are applied next.

        :raises ProcessGroupError: when it does not.
        """
        old = self.layout.inactive_slot()
        if self.layout.slot(old).exists() and not is_usable(self.layout, old):
            return
        self._unserved = front_door_check.problem(self.layout, patient=True)
        replaced = history.newest_entries(self.layout).get(self.layout.slot_release(old) or "")
        completes_rollback = replaced is not None and bool(replaced.rollback)
        if self._unserved and self.request.forward and not completes_rollback:
            raise ProcessGroupError(self._unserved)

    def _hand_over_workers(self, old: Slot, new: Slot) -> None:
        """Stop the singletons of a slot, which finish their work, then start the workers of the other one that do not run.

        :raises ProcessGroupError: when one does not stay up.
        """
        before = self._process_group(old) if self.layout.slot_release(old) in self.in_use else None
        after = self._process_group(new)
        if (after.workers and not after.is_up()) or (before and before.singletons):
            with self._step("workers"):
                if before:
                    before.stop_singletons()
                after.start_workers()
                HealthChecks(after).wait_for_workers(after.workers, Deadline(after.manifest.health.timeout))

    def _return_workers(self, old: Slot, new: Slot) -> None:
        """Hand over the workers to the slot that has the traffic again; status.yml shows those that do not stay up."""
        if self.layout.slot_release(new) in self.in_use:
            with contextlib.suppress(ProcessGroupError):
                self._hand_over_workers(old, new)

    def _soak(self, process_group: ProcessGroup) -> None:
        """Check the health of every process and the error rate of nginx's responses for ``soak`` seconds.

        :raises ProcessGroupError: when a process is unhealthy or was restarted, a worker included, or the error rate exceeds
            ``soak_errors``.
        """
        limit = process_group.manifest.soak_errors
        deadline = Deadline(process_group.manifest.soak)
        responses = ResponseCounter(self._upstream_addresses(process_group.slot).__contains__)
        health = HealthChecks(process_group)
        health.require_stable()
        while not deadline.expired:
            time.sleep(min(SOAK_INTERVAL, deadline.remaining))
            health.require_stable()
            responses.read()
            if responses.total >= MIN_SOAK_RESPONSES and responses.error_percentage > limit:
                share = f"{responses.error_percentage:.0f} % of {responses.total} responses were 5xx"
                raise ProcessGroupError(f"{share}, more than {limit} % (soak_errors)")

    def _upstream_addresses(self, slot: Slot) -> set[str]:
        lines = self.layout.upstream(slot).read_text(encoding="utf-8").splitlines()
        return {line.split()[1].rstrip(";") for line in lines}

    def _roll_back(self, slot: Slot, reason: str) -> None:
        """Move the traffic back to the inactive slot, which still runs; without one, no release is live, as before."""
        inactive, release = self.layout.inactive_slot(), self.layout.slot_release(slot)
        make_space(self.layout)  # the release may have filled the disk
        with self._step("undo"):
            if self.layout.slot_release(inactive):
                self._return_traffic(slot)
            else:
                self.layout.live.unlink()
                self.layout.current.unlink(missing_ok=True)
        if release and self.layout.live_release() != release:
            self.history.write(lambda: history.mark_undone(self.layout, release, reason))
        if self.layout.live_slot():
            self._reload_nginx(inactive)
            self._return_workers(slot, inactive)
        self._drain_and_stop(slot)

    def _return_traffic(self, slot: Slot) -> None:
        """Move the traffic from the live ``slot`` back to the inactive one, which still runs."""
        inactive = self.layout.inactive_slot()
        if self.layout.slot_release(inactive) in self.in_use:
            self._prepare_reload(slot, self._process_group(inactive))
        replace_link(self.layout.live, f"slots/{inactive}")

    def _name(self) -> str:
        return f"{VARIABLE}.{self.layout.app}: release {self.request.release}"


def _text(file: Path) -> str:
    """Return the content of a file; an empty one for a slot of an early version, which lacks it."""
    return file.read_text(encoding="utf-8") if file.exists() else ""
