"""Users and directories of an app on a host, and programs that run as the user that builds its releases."""

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
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import time_limit
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation
from ansible_collections.funnel.tornado.plugins.module_utils.system.accounts import is_locked

#: Default timeout in seconds of a build step, which may compile a large dependency.
BUILD_SECONDS = 1800

#: Seconds in which root reads and parses files of an unfinished build.
READ_SECONDS = 120

#: Environment of all programs of a build.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

#: Output lines of a failed program in its message.
SHOWN_LINES = 20


class BuildError(Exception):
    """A release cannot be built. The message contains the path of the invalid key, if any; ``output`` is that of a program."""

    def __init__(self, message: str, output: str = "") -> None:
        """Store the message, with the credentials in URLs masked."""
        self.output = output
        super().__init__(re.sub(r"(https?://)[^/@\s]+@", r"\1***@", message))


def is_managed(layout: Layout) -> bool:
    """Return whether :func:`ensure_home` has created the app's user; otherwise its name belongs to something else."""
    try:
        return pwd.getpwnam(layout.user).pw_dir == str(layout.home)
    except KeyError:
        return _is_home(layout)


def _is_home(layout: Layout) -> bool:
    """Return whether the home is that of an app, whose user was deleted."""
    parts = (layout.home, layout.releases, layout.environments, layout.slots)
    return all(path.is_dir() and not path.is_symlink() for path in parts) and layout.home.stat().st_uid == 0


def ensure_home(layout: Layout) -> bool:
    """Create the app's users and directories; return whether anything was changed.

    :raises BuildError: if another user or directory of the host has one of the names.
    """
    changed = _ensure_users(layout)
    for path, (mode, owner, group) in _directories(layout).items():
        changed |= _ensure_directory(path, mode, owner, group)
    return changed


def is_complete(layout: Layout) -> bool:
    """Return whether :func:`ensure_home` would change nothing."""
    try:
        return (
            pwd.getpwnam(layout.user).pw_dir == str(layout.home)
            and not is_locked(layout.user)
            and pwd.getpwnam(layout.builder).pw_dir == str(layout.cache)
            and all(_is_directory(path, *state) for path, state in _directories(layout).items())
        )
    except KeyError:
        return False


def _directories(layout: Layout) -> dict[Path, tuple[int, str, str]]:
    """Return the directories of an app with their modes, owners and groups."""
    return {
        layout.home: (0o711, "root", "root"),
        layout.releases: (0o711, "root", "root"),
        layout.environments: (0o711, "root", "root"),
        layout.slots: (0o711, "root", "root"),
        layout.cache: (0o700, layout.builder, layout.builder),
        layout.shared: (0o750, layout.user, layout.user),
        layout.logs: (0o750, "root", layout.user),
    }


def _ensure_users(layout: Layout) -> bool:
    """Create the missing users; those that were deleted get the ids that own their files."""
    if layout.home.exists() and not is_managed(layout):
        raise BuildError(
            f"{VARIABLE}.{layout.app}: the directory {layout.home} on the host does not belong to an app; rename the app"
        )
    changed = False
    _discard_foreign_cache(layout)
    for name, home, owned in ((layout.user, layout.home, layout.shared), (layout.builder, layout.cache, layout.cache)):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            changed |= _create_user(layout, name, home, owned)
            continue
        if user.pw_dir != str(home):
            raise BuildError(f"{VARIABLE}.{layout.app}: the host has another user {name}; rename the app")
        if is_locked(name):
            raise BuildError(
                f"{VARIABLE}.{layout.app}: its removal from this host was interrupted; complete it with remove.yml first"
            )
        if name not in {group.gr_name for group in grp.getgrall()}:
            _ensure_group(layout, name, user.pw_gid)
            changed = True
    return changed


def _create_user(layout: Layout, name: str, home: Path, owned: Path) -> bool:
    """Create a user with its group; the ids that own the directory ``owned`` are those of a deleted user of the name."""
    command = ["useradd", "--system", "--no-create-home", f"--home-dir={home}", "--shell=/usr/sbin/nologin"]
    try:
        state = owned.lstat()
        taken = [user.pw_name for user in pwd.getpwall() if user.pw_uid == state.st_uid]
    except FileNotFoundError:
        command += ["--user-group"]
    else:
        if taken:
            raise BuildError(
                f"{VARIABLE}.{layout.app}: {owned} belongs to {taken[0]}, and there is no user {name}; correct its owner"
            )
        command += [f"--uid={state.st_uid}", f"--gid={_ensure_group(layout, name, state.st_gid)}"]
    _run(layout, name, [*command, name])
    return True


def _ensure_group(layout: Layout, name: str, gid: int) -> int:
    """Create a group that was deleted, with its id."""
    names = {group.gr_gid: group.gr_name for group in grp.getgrall()}
    if gid not in names:
        _run(layout, name, ["groupadd", f"--gid={gid}", name])
    elif names[gid] != name:
        raise BuildError(f"{VARIABLE}.{layout.app}: files of group {name} belong to group {names[gid]}; correct their group")
    return gid


def _run(layout: Layout, name: str, command: list[str]) -> None:
    try:
        run(command)
    except CommandError as error:
        raise BuildError(f"{VARIABLE}.{layout.app}: user {name} cannot be created: {error}") from error


def _discard_foreign_cache(layout: Layout) -> None:
    """Remove a cache of another user, such as the app's user in earlier versions of the collection."""
    users = {user.pw_name: user.pw_uid for user in pwd.getpwall()}
    with contextlib.suppress(FileNotFoundError):
        uid = layout.cache.lstat().st_uid
        if uid != users.get(layout.builder, uid) or (layout.builder not in users and uid in users.values()):
            tree.remove(layout.cache)


def _ensure_directory(path: Path, mode: int, owner: str, group: str) -> bool:
    """Create or correct a directory; its owner is set before its mode grants access."""
    if _is_directory(path, mode, owner, group):
        return False
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
        kind = "a symbolic link" if path.is_symlink() else "a file"
        raise BuildError(f"{path} must be a directory, but is {kind}; move it away, or mount the other directory there")
    path.mkdir(mode=0o700, exist_ok=True)
    private.set_owner(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid, mode)
    return True


def _is_directory(path: Path, mode: int, owner: str, group: str) -> bool:
    """Return whether a path is a directory with this mode, owner and group."""
    if not path.is_dir() or path.is_symlink():
        return False
    state, uid, gid = path.stat(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    return (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (mode, uid, gid)


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Access files with the permissions of a user, so that no link gives access to files of root, and in limited time.

    :raises TimeoutError: when that takes longer: the user may have written a file that a parser needs hours for.
    """
    user, groups = pwd.getpwnam(name), os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        with time_limit(READ_SECONDS, f"the files cannot be read within {READ_SECONDS} s"):
            yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@dataclass(frozen=True)
class Builder:
    """The user that builds the releases of an app and runs untrusted code of sources.

    :meth:`take_ownership` replaces its files with copies owned by root.
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
        """Run a program in an isolated unit, in ``environment`` only; return its output.

        :arg timeout: in seconds.
        :arg stdin: file descriptor of its standard input.
        :raises BuildError: if it fails or times out, with ``failure`` and its last output lines.
        """
        try:
            result = isolation.run(
                self.layout.builder,
                command,
                directory=directory,
                environment={**ENVIRONMENT, "HOME": str(self.layout.cache), "USER": self.layout.builder, **environment},
                timeout=timeout,
                description=f"Build of {self.layout.app}",
                stdin=stdin,
                separate_stderr=True,
                private_tmp=not directory.is_symlink(),  # source.directory may be in /tmp
                background=True,
                open_files=open_files,
            )
        except CommandError as error:
            raise BuildError(f"{failure}: {error}") from error
        if result.status != 0:
            output = result.last_lines(SHOWN_LINES)
            failed = f"{failure} (exit status {result.status}): {output or 'no output'}"
            raise BuildError(failed, f"{result.output}\n{result.errors}")
        return result.output

    def make_directory(self, path: Path) -> None:
        """Create a directory owned by this user in a directory owned by root."""
        user = pwd.getpwnam(self.layout.builder)
        path.mkdir(mode=0o700)
        private.set_owner(path, user.pw_uid, user.pw_gid, 0o700)

    def take_ownership(
        self, path: Path, key: str, *, group: str = "root", mode: int = 0o755, allow: Callable[[Path], bool] = lambda _path: False
    ) -> None:
        """Replace a tree of this user with a copy owned by root.

        :arg key: path of the source in the inventory, for messages.
        :arg group: group of the copy, whose top directory gets ``mode``.
        :arg allow: whether a link may point to a path outside.
        :raises BuildError: if it contains other files than regular ones, directories and links inside it, or exceeds a limit.
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
    """Return the environment of uv and git in builds; empty if uv is not installed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
