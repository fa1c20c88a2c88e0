"""An app's place on a host: its user, its directories, who owns what in them, and programs that run as that user."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.accounts import is_closed
from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.layout import UV_ENVIRONMENT, VARIABLE, Layout

#: Seconds that a step of a build may take, unless it has a limit of its own: a large dependency may have to be compiled.
BUILD_SECONDS = 1800

#: Lines of a failed program that are shown.
SHOWN_LINES = 20


class BuildError(Exception):
    """A release cannot be built. The message names the key of the entry that the mistake is in."""

    def __init__(self, message: str) -> None:
        """Keep the message without what a URL in it has before its host: that may be a password."""
        super().__init__(re.sub(r"(https?://)[^/@\s]+@", r"\1***@", message))


def is_ours(layout: Layout) -> bool:
    """Say whether the host has the app's user, made by :func:`ensure_home`: without it nothing of that name is an app's."""
    try:
        return pwd.getpwnam(layout.user).pw_dir == str(layout.home)
    except KeyError:
        return False


def ensure_home(layout: Layout) -> bool:
    """Make the app's user and directories; return whether something was missing.

    :raises BuildError: when the name belongs to another user of the host, or to a directory that is no app's.
    """
    made = _ensure_user(layout)
    directories = {
        layout.home: (0o711, "root", "root"),
        layout.releases: (0o711, "root", "root"),
        layout.environments: (0o711, "root", "root"),
        layout.slots: (0o711, "root", "root"),
        layout.cache: (0o700, layout.user, layout.user),
        layout.shared: (0o750, layout.user, layout.user),
        layout.logs: (0o750, "root", layout.user),
    }
    for path, (mode, owner, group) in directories.items():
        made |= _ensure_directory(path, mode, owner, group)
    return made


def _ensure_user(layout: Layout) -> bool:
    if is_ours(layout):
        if is_closed(layout.user):
            raise BuildError(
                f"{VARIABLE}.{layout.app}: its removal from this host was broken off; complete it with remove.yml first"
            )
        return False
    if layout.home.exists():
        raise BuildError(f"{VARIABLE}.{layout.app}: the host has a directory {layout.home} that is no app's; rename the app")
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(layout.home)]
    try:
        run([*command, "--shell", "/usr/sbin/nologin", layout.user])
    except CommandError as error:
        raise BuildError(f"{VARIABLE}.{layout.app}: no user can be made: {error}") from error
    return True


def _ensure_directory(path: Path, mode: int, owner: str, group: str) -> bool:
    """Make ``path`` or mend it; its owner is set before anything that the mode would let others do."""
    uid, gid = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    if path.is_dir() and not path.is_symlink():
        state = path.stat()
        if (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (mode, uid, gid):
            return False
    path.mkdir(mode=0o700, exist_ok=True)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return True


def give(layout: Layout, tree: Path, user: str, group: str, mode: int) -> None:
    """Give ``tree`` to ``user``, its top with ``mode``: its owner may write, who reaches it may read; programs stay programs.

    From the top down: nobody but the new owner can exchange a file for a link once its directory has been given.

    :raises BuildError: for a device, a socket or a pipe, which no source has and an archive could bring.
    """
    uid, gid = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    os.chown(tree, uid, gid)
    tree.chmod(mode)
    for root, directories, names in os.walk(tree):
        for name in [*directories, *names]:
            path = Path(root) / name
            kind = path.lstat().st_mode
            if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                raise BuildError(
                    f"{VARIABLE}.{layout.app}.source: {path.relative_to(tree)} is neither a file nor a directory nor a link"
                )
            os.chown(path, uid, gid, follow_symlinks=False)
            if not stat.S_ISLNK(kind):
                path.chmod(0o755 if stat.S_ISDIR(kind) or kind & 0o100 else 0o644)


@contextlib.contextmanager
def as_user(layout: Layout) -> Iterator[None]:
    """Reach files with the rights of the app's user: a link in a source then leads to nothing that only root may read."""
    user, groups = pwd.getpwnam(layout.user), os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def run_as_user(
    layout: Layout,
    command: Sequence[str],
    failure: str,
    *,
    directory: Path,
    environment: Mapping[str, str],
    timeout: float = BUILD_SECONDS,
) -> str:
    """Run a program as the app's user, with ``environment`` and nothing else of root's; return what it printed.

    What it started goes with it. :arg timeout: in seconds.

    :raises BuildError: when it fails or takes too long: ``failure``, then its last words.
    """
    try:
        done = run(
            command,
            timeout=timeout,
            environment=environment,
            check=False,
            user=layout.user,
            directory=directory,
            apart=True,
        )
    except CommandError as error:
        raise BuildError(f"{failure}: {error}") from error
    if done.status != 0:
        words = done.last_lines(SHOWN_LINES)
        raise BuildError(f"{failure} (exit status {done.status}): {words or 'it said nothing'}")
    return done.output


def build_environment(path: Path = UV_ENVIRONMENT) -> dict[str, str]:
    """Return the environment that uv and git have to be run with; nothing while uv was not installed."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
