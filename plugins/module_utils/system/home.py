"""An app's place on a host: its users, its directories, who owns what in them, and the user that builds its releases."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import private, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT, VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation
from ansible_collections.funnel.tornado.plugins.module_utils.system.accounts import is_locked

#: Seconds that a step of a build may take, unless it has a limit of its own: a large dependency may have to be compiled.
BUILD_SECONDS = 1800

#: All that a program of a build gets, whatever it is started for.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

#: Lines of a failed program that are shown.
SHOWN_LINES = 20


class BuildError(Exception):
    """A release cannot be built. The message names the key of the entry that the mistake is in."""

    def __init__(self, message: str) -> None:
        """Keep the message without what a URL in it has before its host: that may be a password."""
        super().__init__(re.sub(r"(https?://)[^/@\s]+@", r"\1***@", message))


def is_managed(layout: Layout) -> bool:
    """Say whether the host has the app's user, made by :func:`ensure_home`: without it nothing of that name is an app's."""
    try:
        return pwd.getpwnam(layout.user).pw_dir == str(layout.home)
    except KeyError:
        return False


def ensure_home(layout: Layout) -> bool:
    """Make the app's users and directories; return whether something was missing.

    :raises BuildError: when a name belongs to another user of the host, or to a directory that is no app's.
    """
    made = _ensure_user(layout)
    made |= _ensure_builder(layout)
    _discard_foreign_cache(layout)
    directories = {
        layout.home: (0o711, "root", "root"),
        layout.releases: (0o711, "root", "root"),
        layout.environments: (0o711, "root", "root"),
        layout.slots: (0o711, "root", "root"),
        layout.cache: (0o700, layout.builder, layout.builder),
        layout.shared: (0o750, layout.user, layout.user),
        layout.logs: (0o750, "root", layout.user),
    }
    for path, (mode, owner, group) in directories.items():
        made |= _ensure_directory(path, mode, owner, group)
    return made


def _ensure_user(layout: Layout) -> bool:
    if is_managed(layout):
        if is_locked(layout.user):
            raise BuildError(
                f"{VARIABLE}.{layout.app}: its removal from this host was broken off; complete it with remove.yml first"
            )
        return False
    if layout.home.exists():
        raise BuildError(f"{VARIABLE}.{layout.app}: the host has a directory {layout.home} that is no app's; rename the app")
    _make_user(layout, layout.user, layout.home)
    return True


def _ensure_builder(layout: Layout) -> bool:
    try:
        home = pwd.getpwnam(layout.builder).pw_dir
    except KeyError:
        _make_user(layout, layout.builder, layout.cache)
        return True
    if home != str(layout.cache):
        raise BuildError(
            f"{VARIABLE}.{layout.app}: the host has another user {layout.builder}, the name of the one that would build the app; "
            "rename the app"
        )
    return False


def _make_user(layout: Layout, name: str, home: Path) -> None:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home)]
    try:
        run([*command, "--shell", "/usr/sbin/nologin", name])
    except CommandError as error:
        raise BuildError(f"{VARIABLE}.{layout.app}: user {name} cannot be made: {error}") from error


def _discard_foreign_cache(layout: Layout) -> None:
    """Remove a cache that was filled by another user, such as the app's own, which built releases once."""
    with contextlib.suppress(FileNotFoundError):
        if layout.cache.lstat().st_uid != pwd.getpwnam(layout.builder).pw_uid:
            tree.remove(layout.cache)


def _ensure_directory(path: Path, mode: int, owner: str, group: str) -> bool:
    """Make ``path`` or mend it; its owner is set before anything that the mode would let others do."""
    uid, gid = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    if path.is_dir() and not path.is_symlink():
        state = path.stat()
        if (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (mode, uid, gid):
            return False
    path.mkdir(mode=0o700, exist_ok=True)
    private.set_owner(path, uid, gid, mode)
    return True


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Reach files with the rights of a user: a link that is followed leads to nothing that only root may read."""
    user, groups = pwd.getpwnam(name), os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@dataclass(frozen=True)
class Builder:
    """The user that builds an app's releases, and owns nothing else: whatever a source brings runs as this user.

    What it has made becomes root's by :meth:`take_ownership`, as a copy.
    """

    layout: Layout

    def run(
        self,
        command: Sequence[str],
        failure: str,
        *,
        directory: Path,
        environment: Mapping[str, str],
        timeout: float = BUILD_SECONDS,
        stdin: int | None = None,
        open_files: int | None = None,
    ) -> str:
        """Run a program in an isolated unit with ``environment`` and nothing else of root's; return what it printed.

        :arg timeout: in seconds.
        :arg stdin: a file descriptor that becomes its standard input.
        :raises BuildError: when it fails or takes too long: ``failure``, then its last words.
        """
        try:
            done = isolation.run(
                self.layout.builder,
                command,
                directory=directory,
                environment={**ENVIRONMENT, "HOME": str(self.layout.cache), "USER": self.layout.builder, **environment},
                timeout=timeout,
                description=f"Build of {self.layout.app}",
                stdin=stdin,
                separate_stderr=True,
                private_tmp=not directory.is_symlink(),  # the link to source.directory, which may lie in /tmp
                open_files=open_files,
            )
        except CommandError as error:
            raise BuildError(f"{failure}: {error}") from error
        if done.status != 0:
            words = done.last_lines(SHOWN_LINES)
            raise BuildError(f"{failure} (exit status {done.status}): {words or 'it said nothing'}")
        return done.output

    def make_directory(self, path: Path) -> None:
        """Make a directory that this user may fill, in one that is root's."""
        user = pwd.getpwnam(self.layout.builder)
        path.mkdir(mode=0o700)
        private.set_owner(path, user.pw_uid, user.pw_gid, 0o700)

    def take_ownership(
        self, path: Path, key: str, *, group: str = "root", mode: int = 0o755, allow: Callable[[Path], bool] = lambda _path: False
    ) -> None:
        """Replace what this user has made with a copy that is root's; nothing of the original is left.

        :arg key: the source's place in the inventory, for messages.
        :arg group: may pass through the copy, whose top directory gets ``mode``.
        :arg allow: whether a link may lead to a path outside.
        :raises BuildError: when something in it is not a file, a directory or a link that stays inside, or is too large.
        """
        new, old = path.with_name(f".new-{path.name}"), path.with_name(f".old-{path.name}")
        owner = pwd.getpwnam(self.layout.builder).pw_uid
        try:
            tree.remove(new)
            tree.copy(path, new, owner=owner, gid=grp.getgrnam(group).gr_gid, mode=mode, allow=allow)
            path.rename(old)
            new.rename(path)
            tree.remove(old)
        except TreeError as error:
            raise BuildError(f"{key}: {str(error).removeprefix(f'{path}/')}") from error


def build_environment(path: Path = UV_ENVIRONMENT) -> dict[str, str]:
    """Return the environment that uv and git have to be run with; nothing while uv was not installed."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
