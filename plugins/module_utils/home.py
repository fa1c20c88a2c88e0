"""An app's place on a host: its user, its directories, who owns what in them, and programs that run as that user."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout

#: Seconds that a step of a build may take, unless it has a limit of its own: a large dependency may have to be compiled.
BUILD_SECONDS = 1800

#: Lines of a failed program that are shown.
SHOWN_LINES = 20


class BuildError(Exception):
    """A release cannot be built. The message names the key of the entry that the mistake is in."""

    def __init__(self, message: str) -> None:
        """Keep the message without what a URL in it has before its host: that may be a password."""
        super().__init__(re.sub(r"(https?://)[^/@\s]+@", r"\1***@", message))


def ensure_home(layout: Layout) -> bool:
    """Make the app's user and directories; return whether something was missing.

    :raises BuildError: when the name belongs to another user of the host.
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
    try:
        home = pwd.getpwnam(layout.user).pw_dir
    except KeyError:
        home = ""
    if home == str(layout.home):
        return False
    if home:
        raise BuildError(f"{VARIABLE}.{layout.app}: the host has a user {layout.user} already ({home}); rename the app")
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


def give(tree: Path, user: str, group: str, mode: int) -> None:
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
                raise BuildError(f"{path.relative_to(tree)} is neither a file nor a directory nor a link")
            os.chown(path, uid, gid, follow_symlinks=False)
            if not stat.S_ISLNK(kind):
                path.chmod(0o755 if stat.S_ISDIR(kind) or kind & 0o100 else 0o644)


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
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            cwd=directory,
            user=layout.user,
            group=layout.user,
            extra_groups=[],
            start_new_session=True,  # a process group, so that all of it can be ended
        ) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise BuildError(f"{failure}: it did not end within {timeout:g} s") from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    except OSError as error:
        raise BuildError(f"{failure}: {error}") from error
    if process.returncode != 0:
        words = last_lines(f"{output}\n{errors}", SHOWN_LINES)
        raise BuildError(f"{failure} (exit status {process.returncode}): {words or 'it said nothing'}")
    return output
