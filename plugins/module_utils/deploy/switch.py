"""How a release goes live: start the free slot, see that it serves, move one link, let the other slot drain, stop it.

Traffic moves by a rename of the link ``live``. nginx connects to ``live/run/<process>.sock``, so new connections reach the
new slot at once and no reload is needed; nginx retires the connections it keeps to the old slot by itself. Only when the
server lines change (another number of processes, or programs that listen on ports) nginx is reloaded as well.

Every step can be broken off: what is found half-done is finished or removed by the next run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, VARIABLE, Layout, Slot
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import PrivateError, link_protection_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.access_log import ResponseCounter
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import (
    STOP_MARGIN,
    ProcessGroup,
    ProcessGroupError,
    is_live,
)
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import (
    clear,
    drain,
    has_inactive_slot,
    has_leftovers,
    is_protected,
    protect,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: The service that is told when server lines change. It logs a configuration that it refuses to a file of its own.
NGINX = systemd.ServiceSpec("nginx", on_change="reload", log=Path("/var/log/nginx/error.log"))

#: Releases that stay on the host, the live one and the one before it among them.
KEPT_RELEASES = 3

#: Seconds between two looks at a release that is watched.
SOAK_INTERVAL = 1.0

#: ResponseCounter that have to be seen before their share of errors means anything.
SOAK_ANSWERS = 10


class SwitchError(Exception):
    """A release did not go live, or did not stay so; what was served before is. The message has the process and its log."""


@dataclass
class SwitchResult:
    """What a switch did: ``steps`` are ``{name, seconds}`` in order; ``changed`` is False when there was nothing to do."""

    slot: str | None
    release: str
    changed: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SwitchRequest:
    """What is asked for: ``by`` whom, whether to start processes anew though they run, whether to run ``before_switch``."""

    release: str
    by: str = ""
    restart: bool = False
    before_switch: bool = True


class Switcher:
    """Brings one release of one app live."""

    def __init__(self, layout: Layout, wanted: SwitchRequest, note: Callable[[str], None] = lambda _step: None) -> None:
        """Read the release's description.

        :arg note: is told the name of each step when it begins.
        :raises FileNotFoundError: when the release is not on this host.
        """
        self.layout = layout
        self.wanted = wanted
        self.note = note
        self.outcome = SwitchResult(layout.live_slot(), wanted.release)
        self.kept = {wanted.release} | {
            found for slot in SLOTS if (found := layout.slot_release(slot)) and layout.is_built(found)
        }
        # To stop a group takes as long as its release's drain.
        self.patience = max(read_manifest(layout, kept).drain for kept in self.kept) + STOP_MARGIN
        self.server = supervisord.connect(timeout=self.patience + STOP_MARGIN)

    def is_live(self) -> bool:
        """Say whether the release is what the live slot runs, with every process of it up."""
        return is_live(self.layout, self.wanted.release, self.server)

    def has_leftovers(self) -> bool:
        """Say whether a switch that was broken off left something to finish or to remove."""
        return has_leftovers(self.layout)

    def run(self) -> SwitchResult:
        """Bring the release live.

        :raises SwitchError: when it does not serve; the slot that was live still is.
        """
        if problem := link_protection_problem():
            raise SwitchError(f"{self._name()} did not go live: {problem}")
        try:
            try:
                self._bring_live()
            except SwitchError:
                self._prune()  # or deploys that fail again and again fill the disk
                raise
            if self.outcome.changed:
                with self._step("prune"):
                    self._prune()
        except (PrivateError, TreeError) as error:
            raise SwitchError(
                f"{VARIABLE}.{self.layout.app}: {self.layout.live_release() or 'no release'} is live; {error}"
            ) from error
        self.outcome.slot = self.layout.live_slot()
        return self.outcome

    def _bring_live(self) -> None:
        self._protect()
        self._finish()
        if self.wanted.restart or not self.is_live():
            slot = self.layout.inactive_slot()
            with self._step("clean"):
                self._clear(slot)
            self._start(slot)
            with self._step("switch"):
                self._move_traffic(slot)
            self._finish()

    def _protect(self) -> None:
        """Close what an earlier release of this collection left open to other users, while it serves on."""
        live = self.layout.live_slot()
        if (live is None or is_protected(self.layout, live)) and history.is_private(self.layout):
            return
        with self._step("protect"):
            if live:
                protect(self.layout, live)
            history.make_private(self.layout)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Time a step; whatever has a step is a change."""
        self.note(name)
        began = time.monotonic()
        self.outcome.changed = True
        yield
        self.outcome.steps.append({"name": name, "seconds": round(time.monotonic() - began, 3)})

    def _prune(self) -> None:
        before = history.previous(self.layout)
        self.outcome.pruned = _prune(self.layout, self.kept | ({before} if before else set()), KEPT_RELEASES)

    def _generation(self, slot: Slot) -> ProcessGroup:
        return ProcessGroup(self.layout, slot, self.layout.slot_release(slot) or self.wanted.release, self.server)

    def _start(self, slot: Slot) -> None:
        """Bring the release up in the slot; if it does not get well it is removed again."""
        generation = self._generation(slot)
        try:
            with self._step("start"):
                generation.start()
            with self._step("health"):
                generation.wait_healthy()
            if self.wanted.before_switch and generation.has_hook("before_switch"):
                with self._step("before_switch"):
                    generation.run_hook("before_switch")
        except (ProcessGroupError, supervisord.SupervisorError) as error:
            self._give_up(slot)
            raise SwitchError(f"{self._name()} did not go live: {error}") from error
        except BaseException:
            self._give_up(slot)
            raise

    def _give_up(self, slot: Slot) -> None:
        """Clear a slot that did not get traffic; what cannot be removed now is removed, or reported, by the next run."""
        with contextlib.suppress(TreeError):
            self._clear(slot)

    def _move_traffic(self, slot: Slot) -> None:
        """Rename the link."""
        live = self.layout.live_slot()
        generation = self._generation(slot)
        self.layout.verification_marker(slot).touch()
        if live is None:
            self.layout.reload_marker(slot).touch()
        else:
            self._lead_on(live, generation)
        _point(self.layout.live, f"slots/{slot}")

    def _lead_on(self, live: Slot, generation: ProcessGroup) -> None:
        """Mark that nginx has to learn the slot's server lines, and let those that it knows lead to it until then."""
        if self.layout.upstream(live).read_text() != self.layout.upstream(generation.slot).read_text():
            self.layout.reload_marker(generation.slot).touch()
            generation.add_socket_aliases(len(self.layout.upstream(live).read_text().splitlines()), live)

    def _finish(self) -> None:
        """Do what is left after traffic has moved: now, or in an earlier run that was broken off."""
        live = self.layout.live_slot()
        if live is None:
            return
        self._record_live(live)
        self._reload_nginx(live)
        if self.layout.verification_marker(live).exists():
            # A release that another one is about to replace need not prove itself any more.
            if self.layout.slot_release(live) == self.wanted.release:
                self._settle(live)
            self.layout.verification_marker(live).unlink()
        if has_inactive_slot(self.layout):
            self._retire(self.layout.inactive_slot())

    def _record_live(self, slot: Slot) -> None:
        """Let ``current`` and the history say what is live."""
        if not self.layout.current.is_symlink():
            _point(self.layout.current, "live/release")
        release = self.layout.slot_release(slot)
        if release and history.latest(self.layout) != release:
            history.record(self.layout, release, read_manifest(self.layout, release).revision, self.wanted.by)

    def _retire(self, slot: Slot) -> None:
        """Let a slot that has no traffic any more finish what it has, and stop it."""
        release = self.layout.slot_release(slot)
        with self._step("drain"):
            drain(self.layout, slot, read_manifest(self.layout, release).drain if release and release in self.kept else 0)
        with self._step("stop"):
            self._clear(slot)
            if live := self.layout.live_slot():
                self._generation(live).remove_socket_aliases()

    def _clear(self, slot: Slot) -> None:
        clear(self.layout, slot, self.server, self.patience)

    def _reload_nginx(self, slot: Slot) -> None:
        if self.layout.reload_marker(slot).exists():
            with self._step("reload"):
                nginx = systemd.query(NGINX.name)
                if nginx.active:
                    systemd.activate(NGINX, nginx, "reload")
                self.layout.reload_marker(slot).unlink()

    # The time after the switch

    def _settle(self, slot: Slot) -> None:
        """Run what has to run after the switch, and watch; traffic goes back if that fails.

        Not if supervisord cannot be asked, of which the release can do nothing: then the next run goes on here.
        """
        generation = self._generation(slot)
        began = time.monotonic()
        try:
            if generation.has_hook("after_switch"):
                with self._step("after_switch"):
                    generation.run_hook("after_switch")
            if generation.manifest.soak:
                with self._step("soak"):
                    self._soak(generation)
        except ProcessGroupError as error:
            seconds = time.monotonic() - began
            self._undo(slot, str(error).splitlines()[0])
            raise SwitchError(f"{self._name()} was live for {seconds:.0f} s and is no more: {error}") from error

    def _soak(self, generation: ProcessGroup) -> None:
        """Watch the health of every process and the answers of nginx.

        :raises ProcessGroupError: when a process is not well, or was started again, or too many answers are errors.
        """
        bound = generation.manifest.soak_errors
        deadline = time.monotonic() + generation.manifest.soak
        answers = ResponseCounter(self._is_upstream(generation.slot))
        pids = generation.pids()
        while time.monotonic() < deadline:
            time.sleep(min(SOAK_INTERVAL, max(deadline - time.monotonic(), 0)))
            ended = [process for process, pid in generation.pids().items() if pid not in (0, pids[process])]
            if ended:
                raise ProcessGroupError(f"process {ended[0]} ended and was started again")
            generation.require_healthy()
            answers.read()
            if answers.total >= SOAK_ANSWERS and answers.error_share > bound:
                share = f"{answers.error_share:.0f} % of {answers.total} answers were 5xx"
                raise ProcessGroupError(f"{share}, more than {bound} % (soak_errors)")

    def _is_upstream(self, slot: Slot) -> Callable[[str], bool]:
        """Return a test of nginx's upstream addresses: whether one is the slot's."""
        lines = self.layout.upstream(slot).read_text().splitlines()
        ours = {line.split()[1].rstrip(";") for line in lines}
        return ours.__contains__

    def _undo(self, slot: Slot, reason: str) -> None:
        """Move traffic back to the other slot, which still runs; without one, nothing is served, as before."""
        other, release = self.layout.inactive_slot(), self.layout.slot_release(slot)
        with self._step("undo"):
            if self.layout.slot_release(other):
                self._lead_on(slot, self._generation(other))
                _point(self.layout.live, f"slots/{other}")
            else:
                self.layout.live.unlink()
                self.layout.current.unlink(missing_ok=True)
        if release and self.layout.live_release() != release:
            history.undo(self.layout, release, reason)
        if self.layout.live_slot():
            self._reload_nginx(other)
        self._retire(slot)

    def _name(self) -> str:
        return f"{VARIABLE}.{self.layout.app}: release {self.wanted.release}"


def stop_app(layout: Layout) -> None:
    """End all that an app runs, after what it has in progress.

    :raises SupervisorError: when a process does not end.
    """
    releases = [release for slot in SLOTS if (release := layout.slot_release(slot)) and layout.is_built(release)]
    patience = max((read_manifest(layout, release).drain for release in releases), default=0)
    server = supervisord.connect(timeout=patience + 2 * STOP_MARGIN)
    for slot in SLOTS:
        drain(layout, slot, patience)
        clear(layout, slot, server, patience + STOP_MARGIN)


def _prune(layout: Layout, keep: set[str], count: int) -> list[str]:
    """Remove all but the ``count`` newest releases and those in ``keep``, and environments that none uses; name them."""
    found = sorted(
        (path for path in layout.releases.iterdir() if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    gone = [path for path in found[count:] if path.name not in keep]
    for path in gone:
        tree.remove(path)
    used = {(path / "venv").resolve() for path in layout.releases.iterdir()}
    for environment in layout.environments.iterdir():
        if environment not in used:
            tree.remove(environment)
    return [path.name for path in gone]


def _point(link: Path, target: str) -> None:
    """Let ``link`` point to ``target`` in one atomic step, wherever it pointed to."""
    new = link.with_name(f".{link.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.rename(link)
