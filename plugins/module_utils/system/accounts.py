"""Users of apps: how everything of one is ended, and how its id is kept from ever being given to anybody else.

The account of a user whose app is removed stays, under another name, locked and with nothing of its own: so every tool that
makes users (useradd, Debian's packages, systemd) knows that its id is taken. What the removal could not find, such as a
set-user-id file in a directory that an administrator opened to everybody, thus never becomes another user's.
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
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError

#: In the comment field of an account whose app is being removed.
LOCKED_COMMENT = "funnel.tornado, being removed"

#: Names of accounts that hold an id: this, and the id.
RETIRED = "retired-"

#: Seconds in which the processes of a user have to be gone. SIGKILL takes milliseconds, unless a disk does not answer.
END_SECONDS = 20.0

#: Seconds between two rounds of ending processes.
INTERVAL = 0.05

#: Directories of a host in which any user may own files, or owns them by way of a daemon.
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

#: How many directories of others are descended through in these, and how many names one may have.
DEPTH = 50
MAX_FILES = 1_000_000

#: Calls of the C library that remove an object of System V IPC, its arguments after the id, by its table in /proc/sysvipc.
_IPC_REMOVE = 0
_IPC_CALLS = {"shm": ("shmctl", (_IPC_REMOVE, None)), "msg": ("msgctl", (_IPC_REMOVE, None)), "sem": ("semctl", (0, _IPC_REMOVE))}


class AccountError(Exception):
    """Something of a user does not end. The message names it."""


def is_locked(name: str) -> bool:
    """Say whether the removal of a user's app has begun."""
    try:
        return pwd.getpwnam(name).pw_gecos == LOCKED_COMMENT
    except KeyError:
        return False


def lock(name: str) -> None:
    """Lock a user out: no password, no shell, no session, no job of cron or at, no service of its own.

    :raises CommandError: when the account cannot be changed.
    """
    uid = pwd.getpwnam(name).pw_uid
    if not is_locked(name):
        run(["usermod", "--lock", "--expiredate", "1", "--shell", "/usr/sbin/nologin", "--comment", LOCKED_COMMENT, name])
    Path("/var/lib/systemd/linger", name).unlink(missing_ok=True)
    Path("/var/spool/cron/crontabs", name).unlink(missing_ok=True)
    # Nothing happens if they do not run, which is the rule; a host whose systemd does not answer has other problems.
    run(["systemctl", "stop", f"user@{uid}.service", f"user-runtime-dir@{uid}.service"], check=False)


def clean_up(name: str, base: Path = Path("/")) -> None:
    """End all processes of a user that was locked out, and remove what it owns outside of its app's directories.

    :raises AccountError: when a process does not end.
    :raises TreeError: when a file cannot be removed.
    """
    uid = pwd.getpwnam(name).pw_uid
    kill_processes(uid)
    for directory in SHARED_DIRECTORIES:
        remove_owned(base / directory, uid)
    _remove_ipc(uid)
    kill_processes(uid)  # what a daemon, such as at's, was about to start


def kill_processes(uid: int, seconds: float = END_SECONDS) -> None:
    """End every process of a user, whatever session, group, environment and parent it has.

    :raises AccountError: when one is left after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while left := proc.pids_of_user(uid):
        if time.monotonic() > deadline:
            raise AccountError(f"processes of user {uid} do not end: {', '.join(map(str, left))}")
        _kill_all_of(uid, deadline)
        time.sleep(INTERVAL)


def _kill_all_of(uid: int, deadline: float) -> None:
    """Kill all processes of a user at one moment, as that user: those that are seen one by one may fork faster than that."""
    if uid < 1:
        raise AccountError(f"user {uid} is not one of an app")
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
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.001)


def remove_owned(top: Path, uid: int) -> None:
    """Remove all that a user, who has no process any more, owns in a directory in which others write as well; it may not exist.

    What is mounted in it, and directories of others below ``DEPTH`` of them, are left out.

    :raises TreeError: when something of the user's cannot be removed.
    """
    if not top.is_dir():
        return
    _complete(top, uid)
    directories = [top]
    while directories:
        directory = directories.pop()
        for path in _paths(directory, top):
            state = _state(path, top)
            if state and state.st_uid == uid:
                _remove(path, uid, top, is_directory=stat.S_ISDIR(state.st_mode))
            elif state and stat.S_ISDIR(state.st_mode) and len(path.relative_to(top).parts) < DEPTH:
                directories.append(path)


def _complete(top: Path, uid: int) -> None:
    """Remove what a run that was broken off had moved to a place of root's."""
    for path in _paths(top, top):
        state = _state(path, top) if path.name.startswith(_place(uid)) else None
        if state and stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid():
            for inside in _paths(path, top):
                tree.remove(inside)
            path.rmdir()


def _paths(directory: Path, top: Path) -> list[Path]:
    """Return what a directory of somebody's contains, who may replace it at any time."""
    with contextlib.suppress(FileNotFoundError, *([] if directory == top else [TreeError])):
        return [directory / name for name in tree.names(directory, MAX_FILES, trusted=top)]
    return []


def _state(path: Path, top: Path) -> os.stat_result | None:
    with contextlib.suppress(TreeError):
        return tree.state(path, trusted=top)
    return None


def _place(uid: int) -> str:
    return f".removing-{uid}-"


def _remove(path: Path, uid: int, top: Path, *, is_directory: bool) -> None:
    """Remove a file, or a directory, which is first moved to where nobody but root reaches it."""
    if not is_directory:
        tree.remove(path, trusted=top)
        return
    place = top / f"{_place(uid)}{os.urandom(16).hex()}"  # a name that nobody can take before
    place.mkdir(mode=0o700)
    tree.move(path, place / "tree", trusted=top)
    tree.remove(place / "tree")
    place.rmdir()


def retire(name: str) -> None:
    """Give up a user's name, and keep its id and that of its group.

    :raises CommandError: when the account cannot be changed.
    """
    user = pwd.getpwnam(name)
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(user.pw_gid)
        if group.gr_name == name:  # or this was broken off after it
            run(["groupmod", "--new-name", f"{RETIRED}{user.pw_gid}", name])
    comment = f"keeps the id of {name}, which was removed"
    run(["usermod", "--login", f"{RETIRED}{user.pw_uid}", "--home", "/nonexistent", "--comment", comment, name])


def _remove_ipc(uid: int) -> None:
    """Remove shared memory, queues and semaphores of System V, which outlive the processes that made them."""
    library = ctypes.CDLL(None)
    for kind, (call, arguments) in _IPC_CALLS.items():
        for identifier in _ipc_objects(Path("/proc/sysvipc", kind), uid):
            getattr(library, call)(identifier, *arguments)


def _ipc_objects(table: Path, uid: int) -> Iterator[int]:
    """Yield the ids of what a user owns or made in a table of proc_sysvipc(5), whose first line names its columns."""
    with contextlib.suppress(OSError):
        heading, *rows = (line.split() for line in table.read_text().splitlines())
        owners = (heading.index("uid"), heading.index("cuid"))
        yield from (int(row[1]) for row in rows if str(uid) in {row[column] for column in owners})
