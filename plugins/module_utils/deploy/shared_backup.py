"""Backups of the shared data of an app, ``/var/backups/apps/<app>/<time>.tar``, which only root can read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import open_file, set_owner
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.health import HealthChecks
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisor_config import STOP_MARGIN
from ansible_collections.funnel.tornado.plugins.module_utils.system import shared_data
from ansible_collections.funnel.tornado.plugins.module_utils.system.shared_data import SharedDataError

#: Name of the newest backup.
LATEST = "latest"

#: File of a backup that an operator provides.
GIVEN = ".given.tar"


class Backups:
    """The backups of an app on this host, named after their time (UTC)."""

    def __init__(self, layout: Layout) -> None:
        """Read the manifest of the live release.

        :raises SharedDataError: when none is live, or it shares no data.
        """
        self.layout = layout
        self.directory = layout.base / "var/backups/apps" / layout.app
        release = layout.live_release()
        if release is None:
            raise SharedDataError(f"{VARIABLE}.{layout.app}: no release is live on this host; deploy the app first")
        self.release = release
        self.manifest: ReleaseManifest = read_manifest(layout, release)
        self.paths = [path for path, options in self.manifest.shared.items() if options.backup]
        if not self.paths:
            raise SharedDataError(f"{VARIABLE}.{layout.app}.shared: the live release has no path to back up or restore")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory, and hold its lock, which also ends with the process.

        :raises SharedDataError: when another backup or restore of the app is in progress.
        """
        for directory in (self.directory.parent, self.directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            set_owner(directory, 0, 0, 0o700)
        with os.fdopen(open_file(self.directory / ".lock"), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SharedDataError("another backup or restore is in progress; try again when it has finished") from error
            yield

    def names(self) -> list[str]:
        """Return the names of the backups, newest last."""
        return sorted(path.stem for path in self.directory.glob("[!.]*.tar"))

    def create(self, keep: int) -> Path:
        """Create a backup, keep the newest ``keep`` ones, and return its path.

        :raises SharedDataError: when it cannot be created; no other one is removed then.
        """
        new = self.directory / ".new"
        new.unlink(missing_ok=True)
        try:
            with os.fdopen(open_file(new), "rb") as file:
                shared_data.back_up(self.layout, self.paths, file.fileno())
                os.fsync(file.fileno())
            path = self.directory / time.strftime("%Y-%m-%dT%H-%M-%SZ.tar", time.gmtime())
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        for name in self.names()[:-keep]:
            (self.directory / f"{name}.tar").unlink()
        return path

    def restore(self, name: str, *, force: bool) -> list[str]:
        """Replace the shared data by those of a backup, while the app is stopped; return the restored paths.

        :arg force: replace existing data.
        :raises SharedDataError: when there are data, or the backup is missing or damaged; nothing is changed then.
        """
        backup = self._find(name)
        occupied = shared_data.prepare_restore(self.layout, self.paths)
        if occupied and not force:
            raise SharedDataError(f"{self.layout.shared} has data in {', '.join(occupied)}; set force=true to replace them")
        try:
            with backup.open("rb") as file:
                shared_data.unpack(self.layout, file.fileno())
        except SharedDataError as error:
            shared_data.prepare_restore(self.layout, [])
            raise SharedDataError(f"{backup} cannot be restored: {error}; nothing was changed") from error
        served = [path for path in self.paths if self.manifest.shared[path].url]
        with self._stopped():
            return shared_data.replace(self.layout, self.paths, served)

    def _find(self, name: str) -> Path:
        names = self.names()
        if name == LATEST and names:
            name = names[-1]
        path = self.directory / (name if name == GIVEN else f"{name}.tar")
        if "/" in name or not path.is_file():
            raise SharedDataError(f"no backup {name} in {self.directory}; it has {', '.join(names) or 'none'}")
        return path

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Stop the processes of the app, gracefully and in maintenance mode; then start them again.

        :raises ProcessGroupError: when they do not become healthy again.
        :raises SupervisorError: when they cannot be stopped or started.
        """
        live = self.layout.live_slot()
        if live is None:
            raise SharedDataError(f"{VARIABLE}.{self.layout.app}: no release is live any more")
        server = supervisord.connect()
        process_group = ProcessGroup(self.layout, live, self.release, server)
        groups = supervisord.slot_groups(server, self.layout.group(live))
        with self._maintenance():
            try:
                supervisord.remove_groups(server, groups, self.manifest.stop_timeout + STOP_MARGIN)
                yield
            finally:
                for group in groups:
                    supervisord.add_group(server, group)
            HealthChecks(process_group).wait()

    @contextlib.contextmanager
    def _maintenance(self) -> Iterator[None]:
        """Put the app in maintenance mode, unless it already is."""
        marker = self.layout.maintenance
        enabled = not marker.exists()
        marker.touch()
        try:
            yield
        finally:
            if enabled:
                marker.unlink(missing_ok=True)
