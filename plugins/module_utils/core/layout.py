"""Where everything of an app lies on a host: every path follows from the app's name, and only from here.

    /srv/<app>/                       root's; others may pass through it, and list nothing
        releases/<id>/                an immutable release
            src/                      the code: readable by the app's user only; of source.directory, a link to it
            public/<url>/             what nginx serves of it, by its whole address: readable by all
            versions/<SHA-512>.<type> the same files by their content, for pages of this release when the next one is live
            venv -> environments/<hash>
            launch.py  runner/  release.json  secrets.json
            source.tar                what was pushed, if it was: the code of the next release with other settings
        environments/<hash>/          virtual environments, shared by releases with the same dependencies
        slots/{a,b}/                  a generation of processes; nobody but root, nginx and the app's user may pass through it:
            release -> releases/<id>
            before -> releases/<id>   the one that was served before it, if any, and whose pages are still open somewhere
            run/<process>.{sock,pid,starts,metrics}   as in /tmp, nobody removes or follows there what another user made
            upstream.conf             the servers of nginx's upstream
        live -> slots/{a,b}           the switch: renaming a link over this one moves all traffic
        current -> live/release       for people
        history.json                  which releases were served, and when
        maintenance                   while it exists, nginx answers that the site is being worked on
        shared/                       the app's own: writable, kept over releases

The slots lie beside the releases, not under ``/run``: which slot is live then survives a reboot in one place, the link,
and nothing has to recreate a directory before supervisord and nginx start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Slot = Literal["a", "b"]
SLOTS: tuple[Slot, Slot] = ("a", "b")

#: The variable that holds the apps' entries: every path in a message begins with it.
VARIABLE = "tornado_apps"

#: What apps that are pushed are built by, with their secrets: root's alone.
PUSH_ENTRIES = Path("/etc/funnel/push")

#: What uv and git need in their environment to build: index, certificates, proxy.
UV_ENVIRONMENT = Path("/etc/uv/environment")

#: In a release: the archive that was pushed.
PUSHED_SOURCE = "source.tar"

#: Processes that a slot may have at most: with their numbers from 0 it still has its own half of an app's ports.
MAX_PROCESSES = 256

#: nginx's group on Debian: it reaches the sockets, and nothing else of an app.
NGINX_GROUP = "www-data"


def port_of(first: int, slot: Slot, process: int) -> int:
    """Return the port of a process of an app whose ports begin at ``first``.

    The slots interleave, so that a slot with more processes than the other never takes one of its ports. ``launch.py``,
    which stands alone in a release, reckons the same; a test holds the two together.
    """
    return first + 2 * process + SLOTS.index(slot)


@dataclass(frozen=True)
class Layout:
    """The paths and names of the app ``app``; ``base`` is another directory than ``/`` in tests only."""

    app: str
    base: Path = Path("/")

    @property
    def user(self) -> str:
        """Name of the user, and of the group, that the processes run as."""
        return self.app

    @property
    def builder(self) -> str:
        """Name of the user that builds releases; no app's name begins like this."""
        return f"_{self.app}"

    @property
    def home(self) -> Path:
        """The app's directory."""
        return self.base / "srv" / self.app

    @property
    def releases(self) -> Path:
        """Holds a directory per release, named by its id."""
        return self.home / "releases"

    @property
    def environments(self) -> Path:
        """Holds a virtual environment per set of dependencies."""
        return self.home / "environments"

    @property
    def mirror(self) -> Path:
        """Bare clone of ``source.git``."""
        return self.home / "source.git"

    @property
    def cache(self) -> Path:
        """The builder's own: the package cache of uv, and the home of hooks.build."""
        return self.home / "cache"

    @property
    def shared(self) -> Path:
        """What the app may write and every release sees."""
        return self.home / "shared"

    @property
    def slots(self) -> Path:
        """Holds the slots."""
        return self.home / "slots"

    @property
    def live(self) -> Path:
        """The link to the slot that is served."""
        return self.home / "live"

    @property
    def current(self) -> Path:
        """The link to the release that is served."""
        return self.home / "current"

    @property
    def history(self) -> Path:
        """The file that says which releases were served."""
        return self.home / "history.json"

    @property
    def lock(self) -> Path:
        """The file that a deploy holds locked."""
        return self.home / ".lock"

    @property
    def logs(self) -> Path:
        """Holds ``<slot>-<process>.log``: two generations that overlap in time never rotate the same file."""
        return self.base / "var/log" / self.app

    def release(self, release: str) -> Path:
        """Directory of one release."""
        return self.releases / release

    def pushed_source(self, release: str) -> Path:
        """Archive that a release was made of, if it was pushed to this host."""
        return self.release(release) / PUSHED_SOURCE

    def manifest(self, release: str) -> Path:
        """Return the file with the manifest of a release."""
        return self.release(release) / "release.json"

    def is_built(self, release: str) -> bool:
        """Say whether a release is there; one whose build was broken off is not, as a release appears by a rename."""
        return self.manifest(release).exists()

    def slot(self, slot: str) -> Path:
        """Directory of one slot."""
        return self.slots / slot

    def run(self, slot: str) -> Path:
        """Directory of a slot's sockets: the app's user makes them, nginx's group reaches them, nobody else does."""
        return self.slot(slot) / "run"

    def socket(self, slot: str, process: int) -> Path:
        """Socket of one process."""
        return self.run(slot) / f"{process}.sock"

    def upstream(self, slot: str) -> Path:
        """Return the file with the server lines of nginx's upstream that a slot is."""
        return self.slot(slot) / "upstream.conf"

    def reload_marker(self, slot: str) -> Path:
        """Return the file that says that nginx has still to learn the server lines of a slot that traffic has moved to."""
        return self.slot(slot) / "reload"

    def verification_marker(self, slot: str) -> Path:
        """Return the file that says that a slot has traffic, and may lose it again."""
        return self.slot(slot) / "unsettled"

    @property
    def live_upstream(self) -> Path:
        """The server lines of the slot that is served, as nginx includes them."""
        return self.live / "upstream.conf"

    @property
    def maintenance(self) -> Path:
        """The file whose presence puts the site in maintenance, over deploys too."""
        return self.home / "maintenance"

    def log(self, slot: str, process: int, worker: str = "") -> Path:
        """Log of one process, or of one of a worker's."""
        return self.logs / f"{slot}-{f'{worker}-' if worker else ''}{process}.log"

    def starts(self, slot: str, process: int, worker: str = "") -> Path:
        """File to which a process, or one of a worker's, adds a line at each start."""
        return self.run(slot) / f"{f'{worker}.' if worker else ''}{process}.starts"

    def group(self, slot: str, worker: str = "") -> str:
        """Name of a slot's supervisord group, or of the group of one of its workers; no app's name has a dot."""
        return f"{self.app}-{slot}{f'.{worker}' if worker else ''}"

    def supervisor_file(self, slot: str) -> Path:
        """Return the file that configures a slot's group."""
        return self.base / "etc/supervisor/conf.d" / f"{self.group(slot)}.conf"

    def live_slot(self) -> Slot | None:
        """Return the slot that is served; None before the first switch."""
        if not self.live.is_symlink():
            return None
        name = self.live.readlink().name
        return next((slot for slot in SLOTS if slot == name), None)

    def slot_release(self, slot: str) -> str | None:
        """Return the id of the release that a slot runs; None when it is empty."""
        link = self.slot(slot) / "release"
        return link.readlink().name if link.is_symlink() else None

    def live_release(self) -> str | None:
        """Return the id of the release that is served; None before the first switch."""
        live = self.live_slot()
        return self.slot_release(live) if live else None

    def inactive_slot(self) -> Slot:
        """Return the slot that the next release goes to."""
        return "b" if self.live_slot() == "a" else "a"
