"""Paths and names of an app on a host, all derived from the app's name.

    /srv/<app>/                       owned by root; other users may traverse it but not list it
        releases/<id>/                an immutable release
            src/                      source code, readable by the app's user only; for source.directory, a link to it
            public/<url>/             static files that nginx serves, by URL path; world-readable
            versions/<SHA-512>.<type> the same files by content hash, for open pages of this release after the next switch
            venv -> environments/<hash>
            launch.py  runner/  release.json  secrets.json
            source.tar                the pushed source, if any; releases with other settings are built from it
        environments/<hash>/          virtual environments, shared by releases with the same dependencies
        slots/{a,b}/                  a process group; only root, nginx and the app's user may traverse it
            release -> releases/<id>
            before -> releases/<id>   the previously served release, if any, for pages that are still open
            run/<process>.{sock,pid,starts,metrics}   sticky like /tmp: users cannot remove or follow files of other users
            upstream.conf             the servers of the nginx upstream
            health -> check/...       the health check of the release, spelled as a path for nginx
            health.conf               the headers of that health check
        live -> slots/{a,b}           the switch: replacing this link moves all traffic
        current -> live/release       for operators
        history.json                  served releases with their times
        maintenance                   while this file exists, nginx serves the maintenance page
        shared/                       persistent data that the app may write

The slots are kept beside the releases instead of in ``/run``: the link to the live slot survives a reboot, and no directory must
be recreated before supervisord and nginx start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Slot = Literal["a", "b"]
SLOTS: tuple[Slot, Slot] = ("a", "b")

#: The variable with the entries of the apps; keys in messages start with it.
VARIABLE = "tornado_apps"

#: Entries and secrets of pushed apps, readable by root only.
PUSH_ENTRIES = Path("/etc/funnel/push")

#: Environment of uv and git in builds: index, certificates, proxy.
UV_ENVIRONMENT = Path("/etc/uv/environment")

#: Name of the pushed archive in a release.
PUSHED_SOURCE = "source.tar"

#: Maximum processes of a slot, so that their ports fit into its half of the port range of an app.
MAX_PROCESSES = 256

#: User and group of nginx on Debian; of an app, the group may access only the sockets. HAProxy connects to them as this group.
NGINX_USER = NGINX_GROUP = "www-data"


def port_of(first: int, slot: Slot, process: int) -> int:
    """Return the port of a process of an app whose port range starts at ``first``.

    The ports of the two slots alternate, so they never collide if one slot has more processes. ``launch.py``, which cannot
    import this module, computes the same; a test compares both.
    """
    return first + 2 * process + SLOTS.index(slot)


@dataclass(frozen=True)
class Layout:
    """Paths and names of the app ``app``; ``base`` differs from ``/`` in tests only."""

    app: str
    base: Path = Path("/")

    @property
    def user(self) -> str:
        """Name of the user and group of the processes."""
        return self.app

    @property
    def builder(self) -> str:
        """Name of the user that builds releases; names of apps never start with an underscore."""
        return f"_{self.app}"

    @property
    def home(self) -> Path:
        """Directory of the app."""
        return self.base / "srv" / self.app

    @property
    def releases(self) -> Path:
        """Contains a directory per release, named by its id."""
        return self.home / "releases"

    @property
    def environments(self) -> Path:
        """Contains a virtual environment per set of dependencies."""
        return self.home / "environments"

    @property
    def mirror(self) -> Path:
        """Bare clone of ``source.git``."""
        return self.home / "source.git"

    @property
    def cache(self) -> Path:
        """Owned by the builder: the package cache of uv, and the home directory of hooks.build."""
        return self.home / "cache"

    @property
    def shared(self) -> Path:
        """Persistent data that the app may write, shared by all releases."""
        return self.home / "shared"

    @property
    def slots(self) -> Path:
        """Contains the slots."""
        return self.home / "slots"

    @property
    def live(self) -> Path:
        """Link to the live slot."""
        return self.home / "live"

    @property
    def current(self) -> Path:
        """Link to the live release."""
        return self.home / "current"

    @property
    def history(self) -> Path:
        """File with the served releases."""
        return self.home / "history.json"

    @property
    def lock(self) -> Path:
        """Lock file of deploys."""
        return self.home / ".lock"

    @property
    def preemption(self) -> Path:
        """File that names the operation which preempts the holder of the lock, while it waits for the lock."""
        return self.home / ".preemption"

    @property
    def logs(self) -> Path:
        """Contains ``<slot>-<process>.log``, so that overlapping process groups never rotate the same file."""
        return self.base / "var/log" / self.app

    def release(self, release: str) -> Path:
        """Directory of one release."""
        return self.releases / release

    def pushed_source(self, release: str) -> Path:
        """Pushed archive from which a release was built, if any."""
        return self.release(release) / PUSHED_SOURCE

    def manifest(self, release: str) -> Path:
        """Return the file with the manifest of a release."""
        return self.release(release) / "release.json"

    def is_built(self, release: str) -> bool:
        """Return whether a release exists with a complete manifest; it is renamed into place, so no incomplete build counts."""
        manifest = self.manifest(release)
        return manifest.is_file() and manifest.read_bytes().endswith(b"}")

    def slot(self, slot: str) -> Path:
        """Directory of one slot."""
        return self.slots / slot

    def run(self, slot: str) -> Path:
        """Directory of the sockets of a slot, accessible to the app's user and to nginx only."""
        return self.slot(slot) / "run"

    def socket(self, slot: str, process: int) -> Path:
        """Socket of one process."""
        return self.run(slot) / f"{process}.sock"

    def upstream(self, slot: str) -> Path:
        """Return the file with the servers of the nginx upstream of a slot."""
        return self.slot(slot) / "upstream.conf"

    def health(self, slot: str) -> Path:
        """Return the link whose target spells the health check of the release in a slot, so that it moves with the release."""
        return self.slot(slot) / "health"

    def health_headers(self, slot: str) -> Path:
        """Return the file with the headers of the health check, which nginx includes."""
        return self.slot(slot) / "health.conf"

    def reload_marker(self, slot: str) -> Path:
        """Return the file that exists from the switch to a slot until nginx has loaded its upstream servers."""
        return self.slot(slot) / "reload"

    def served_marker(self, slot: str) -> Path:
        """Return the file that exists in a slot that has been live, so that traffic may return to it at once."""
        return self.slot(slot) / "served"

    def verification_marker(self, slot: str) -> Path:
        """Return the file that exists while a live slot is being verified and may be rolled back."""
        return self.slot(slot) / "unsettled"

    @property
    def live_upstream(self) -> Path:
        """The file with the upstream servers of the live slot, which nginx includes."""
        return self.live / "upstream.conf"

    @property
    def maintenance(self) -> Path:
        """File whose existence enables maintenance mode, across deploys."""
        return self.home / "maintenance"

    def log(self, slot: str, process: int, worker: str = "") -> Path:
        """Log of a process of the site, or of ``worker``."""
        return self.logs / f"{slot}-{f'{worker}-' if worker else ''}{process}.log"

    def starts(self, slot: str, process: int, worker: str = "") -> Path:
        """File to which a process of the site, or of ``worker``, appends a line at each start."""
        return self.run(slot) / f"{f'{worker}.' if worker else ''}{process}.starts"

    def group(self, slot: str, worker: str = "") -> str:
        """Name of the supervisord group of a slot, or of one of its workers; names of apps contain no dot."""
        return f"{self.app}-{slot}{f'.{worker}' if worker else ''}"

    def supervisor_file(self, slot: str) -> Path:
        """Return the supervisord configuration of a slot."""
        return self.base / "etc/supervisor/conf.d" / f"{self.group(slot)}.conf"

    def live_slot(self) -> Slot | None:
        """Return the live slot; None before the first switch."""
        if not self.live.is_symlink():
            return None
        name = self.live.readlink().name
        return next((slot for slot in SLOTS if slot == name), None)

    def slot_release(self, slot: str) -> str | None:
        """Return the id of the release in a slot; None if it is empty."""
        link = self.slot(slot) / "release"
        return link.readlink().name if link.is_symlink() else None

    def live_release(self) -> str | None:
        """Return the id of the live release; None before the first switch."""
        live = self.live_slot()
        return self.slot_release(live) if live else None

    def inactive_slot(self) -> Slot:
        """Return the slot for the next release."""
        return "b" if self.live_slot() == "a" else "a"
