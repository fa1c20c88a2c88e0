"""Users of removed apps: termination of their processes, removal of their files, and retirement of their ids.

The account of a removed app is kept, renamed and locked, so that useradd, packages and systemd never reuse its id. Files that the
removal cannot find, such as a setuid file in a world-writable directory, therefore never belong to another user.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError

#: Comment field of an account whose app is being removed.
LOCKED_COMMENT = "funnel.tornado, being removed"

#: Prefix of the names of retired accounts, before the id.
RETIRED = "retired-"

#: Seconds within which the processes of a user must exit after SIGKILL.
KILL_SECONDS = 20.0

#: Seconds between two rounds of SIGKILL.
INTERVAL = 0.05

#: Directories in which any user may own files, directly or through a daemon.
SHARED_DIRECTORIES = (
    "tmp",
    "var/tmp",
    "dev/shm",
    "dev/mqueue",
    "run/lock",
    "run/user",
    "var/crash",
    "var/mail",
    "var/spool/at",
    "var/spool/cron",
)

#: Maximum depth of directories of other users in these, and maximum files of a directory.
DEPTH = 50
MAX_FILES = 1_000_000

#: C library functions that remove System V IPC objects, with their arguments after the id, by /proc/sysvipc table.
_IPC_REMOVE = 0
_IPC_CALLS = {"shm": ("shmctl", (_IPC_REMOVE, None)), "msg": ("msgctl", (_IPC_REMOVE, None)), "sem": ("semctl", (0, _IPC_REMOVE))}


class AccountError(Exception):
    """A process of a user cannot be killed. The message contains its id."""


def is_locked(name: str) -> bool:
    """Return whether an account was locked for the removal of its app."""
    try:
        return pwd.getpwnam(name).pw_gecos == LOCKED_COMMENT
    except KeyError:
        return False


def lock(name: str) -> None:
    """Lock an account: disable its login and shell, and remove its crontab, lingering and user services.

    :raises CommandError: if the account cannot be changed.
    """
    uid = pwd.getpwnam(name).pw_uid
    if not is_locked(name):
        run(["usermod", "--lock", "--expiredate", "1", "--shell", "/usr/sbin/nologin", "--comment", LOCKED_COMMENT, name])
    Path("/var/lib/systemd/linger", name).unlink(missing_ok=True)
    Path("/var/spool/cron/crontabs", name).unlink(missing_ok=True)
    run(["systemctl", "stop", f"user@{uid}.service", f"user-runtime-dir@{uid}.service"], check=False)


def clean_up(name: str, base: Path = Path("/")) -> None:
    """Kill all processes of a locked user, and remove its files outside of the app's directories.

    :raises AccountError: if a process does not exit.
    :raises TreeError: if a file cannot be removed.
    """
    uid = pwd.getpwnam(name).pw_uid
    kill_processes(uid)
    for directory in SHARED_DIRECTORIES:
        remove_owned(base / directory, uid)
    _remove_ipc(uid)
    kill_processes(uid)  # a daemon such as atd may have started one meanwhile


def kill_processes(uid: int, seconds: float = KILL_SECONDS) -> None:
    """Kill all processes of a user.

    :raises AccountError: if one exists after ``seconds``.
    """
    deadline = Deadline(seconds)
    while remaining := proc.pids_of_user(uid):
        if deadline.expired:
            raise AccountError(f"processes of user {uid} do not exit: {', '.join(map(str, remaining))}")
        _kill_all(uid, deadline)
        time.sleep(INTERVAL)


def _kill_all(uid: int, deadline: Deadline) -> None:
    """Kill all processes of a user at once, as that user: it could fork faster than they are killed one by one."""
    if uid < 1:
        raise AccountError(f"user {uid} is not the user of an app")
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    # The user's processes may stop the child before it kills them.
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if deadline.expired:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.001)


def remove_owned(top: Path, uid: int) -> None:
    """Remove the files of a user, who has no more processes, from a directory that other users write too, if it exists.

    Mounted file systems, and directories of other users that are nested more than ``DEPTH`` deep, are skipped.

    :raises TreeError: if a file cannot be removed.
    """
    if not top.is_dir():
        return
    _complete_removal(top, uid)
    directories = [top]
    while directories:
        directory = directories.pop()
        for path in _paths(directory, top):
            state = _state(path, top)
            if state and state.st_uid == uid:
                _remove(path, uid, top, is_directory=stat.S_ISDIR(state.st_mode))
            elif state and stat.S_ISDIR(state.st_mode) and len(path.relative_to(top).parts) < DEPTH:
                directories.append(path)


def _complete_removal(top: Path, uid: int) -> None:
    """Empty the trash directories of an interrupted run."""
    for path in _paths(top, top):
        state = _state(path, top) if path.name.startswith(_trash_prefix(uid)) else None
        if state and stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid():
            for nested in _paths(path, top):
                tree.remove(nested)
            path.rmdir()


def _paths(directory: Path, top: Path) -> list[Path]:
    """Return the paths in a directory, which its owner may replace at any time."""
    with contextlib.suppress(FileNotFoundError, *([] if directory == top else [TreeError])):
        return [directory / name for name in tree.names(directory, MAX_FILES, trusted=top)]
    return []


def _state(path: Path, top: Path) -> os.stat_result | None:
    with contextlib.suppress(TreeError):
        return tree.state(path, trusted=top)
    return None


def _trash_prefix(uid: int) -> str:
    return f".removing-{uid}-"


def _remove(path: Path, uid: int, top: Path, *, is_directory: bool) -> None:
    """Remove a file or a directory; a directory is first moved to a trash directory that only root can access."""
    if not is_directory:
        tree.remove(path, trusted=top)
        return
    trash = top / f"{_trash_prefix(uid)}{os.urandom(16).hex()}"  # unpredictable, so that no user can create it first
    trash.mkdir(mode=0o700)
    tree.move(path, trash / "tree", trusted=top)
    tree.remove(trash / "tree")
    trash.rmdir()


def retire(name: str) -> None:
    """Rename a user and its group so that their ids stay reserved.

    :raises CommandError: if the account cannot be changed.
    """
    user = pwd.getpwnam(name)
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(user.pw_gid)
        if group.gr_name == name:  # unless an interrupted run has renamed it
            run(["groupmod", "--new-name", f"{RETIRED}{user.pw_gid}", name])
    comment = f"keeps the id of {name}, which was removed"
    run(["usermod", "--login", f"{RETIRED}{user.pw_uid}", "--home", "/nonexistent", "--comment", comment, name])


def _remove_ipc(uid: int) -> None:
    """Remove System V shared memory, message queues and semaphores, which outlive their processes."""
    library = ctypes.CDLL(None)
    for kind, (call, arguments) in _IPC_CALLS.items():
        for identifier in _ipc_objects(Path("/proc/sysvipc", kind), uid):
            getattr(library, call)(identifier, *arguments)


def _ipc_objects(table: Path, uid: int) -> Iterator[int]:
    """Yield the ids of objects that a user owns or created in a table of proc_sysvipc(5)."""
    with contextlib.suppress(OSError):
        heading, *rows = (line.split() for line in table.read_text(encoding="utf-8").splitlines())
        owners = (heading.index("uid"), heading.index("cuid"))
        yield from (int(row[1]) for row in rows if str(uid) in {row[column] for column in owners})
