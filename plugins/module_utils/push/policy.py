"""Push to deploy: authorization of SSH keys, Git repositories, and limits of a push.

sshd runs the program ``push`` for the owner of a key, which only runs ``git receive-pack`` for an app that the key may push to.
The pre-receive hook passes the files of the new commit to the same program as root, by the only command that sudo permits. So
root reads an archive, and never a repository that others can write.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pwd
import re
import resource
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import PUSH_ENTRIES
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File

#: The owner of the repositories, as in their URLs: git@host:app.
USER = "git"

#: The home of that user, owned by root: the user can neither authorize keys nor place startup files there.
HOME = Path("/var/lib/funnel/git")

REPOSITORIES = HOME / "repositories"
AUTHORIZED_KEYS = HOME / ".ssh/authorized_keys"

#: The program, a Python zip application, and the hooks of all repositories.
PROGRAM = Path("/usr/local/lib/funnel/push")
HOOKS = Path("/usr/local/lib/funnel/hooks")

SUDOERS = Path("/etc/sudoers.d")
SUDOERS_FILE = "funnel-push"

#: Maximum size of a push, and of the files of a commit: far more than code needs.
MAX_BYTES = 1 << 29

#: Maximum size of the repository of an app.
MAX_REPOSITORY_SIZE = 1 << 30

#: Maximum number of files and directories in a commit, and length of a path in bytes.
MAX_FILES = 100_000
MAX_PATH_LENGTH = 1000

#: Maximum number of concurrent pushes to an app: each stores its objects beside the repository until it is accepted.
MAX_CONCURRENT_PUSHES = 4

#: Maximum seconds to receive a push, and to list the files of its commit.
RECEIVE_TIMEOUT = 900.0
LIST_TIMEOUT = 60.0

#: Maximum seconds to transfer the files of the commit to root.
TRANSFER_TIMEOUT = 300.0

#: Maximum seconds to wait for another push or deploy.
LOCK_TIMEOUT = 60

#: Age in seconds of objects that an interrupted push left behind: no push takes as long.
STALE_AFTER = 86_400.0

#: Resource limits of each git process in a push: bytes of memory and of a file, seconds of CPU time.
LIMITS = {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_FSIZE: MAX_REPOSITORY_SIZE, resource.RLIMIT_CPU: 300}

#: The mode of a submodule in a tree.
SUBMODULE_MODE = b"160000"

#: The object ID of a branch that does not exist.
NO_COMMIT = re.compile("0+")


class PushError(Exception):
    """A push is rejected. The message is shown to the pusher."""


def ensure_user(*, check_mode: bool) -> bool:
    """Create the user git and its directories; return whether anything was, or would be, created.

    :raises PushError: when the host has another user of that name, or the user cannot be created.
    """
    changed = False
    try:
        home = pwd.getpwnam(USER).pw_dir
    except KeyError:
        changed = True
        # sshd runs the forced command with the user's shell. The password * is invalid, but does not lock the account for sshd.
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(HOME), "--shell", "/bin/sh"]
        if not check_mode:
            try:
                run([*command, "--password", "*", USER])
            except CommandError as error:
                raise PushError(f"cannot create the user {USER} for pushes: {error}") from error
    else:
        if home != str(HOME):
            raise PushError(
                f"this host already has a user {USER} with the home {home}; pushes need that name, with the home {HOME}"
            )
    if not REPOSITORIES.exists():
        changed = True
        if not check_mode:
            REPOSITORIES.mkdir(parents=True, mode=0o755)
            shutil.chown(REPOSITORIES, USER, USER)
            REPOSITORIES.chmod(0o700)
    return changed


def configuration_files(entries: Mapping[str, object], keys: str, program: bytes) -> list[File]:
    """Return the files that authorize ``keys``, the lines of `authorized_keys`, to push to the apps of ``entries``."""
    return [
        *(File(str(entry_file(app)), json.dumps(data).encode(), 0o600, secret=True) for app, data in entries.items()),
        File(str(PROGRAM), program, 0o755),
        File(str(HOOKS / "pre-receive"), hook().encode(), 0o755),
        File(SUDOERS_FILE, sudoers().encode(), 0o440),
        File(str(AUTHORIZED_KEYS), keys.encode(), 0o640, group=USER),
    ]


def repository(app: str) -> Path:
    """Return the bare repository of an app."""
    return REPOSITORIES / f"{app}.git"


def entry_file(app: str) -> Path:
    """Return the JSON file with the app's entry of ``tornado_apps``."""
    return PUSH_ENTRIES / f"{app}.json"


def authorized_keys(apps: Mapping[str, App]) -> str:
    """Return the lines of the authorized_keys file: each key with all apps that it may push to."""
    names: dict[str, str] = {}
    branches: dict[str, list[str]] = {}
    for app in apps.values():
        for key in app.source.keys or ():
            kind, blob, *comment = key.split()
            public = f"{kind} {blob}"
            names.setdefault(public, pusher_name(blob, " ".join(comment)))
            branches.setdefault(public, []).append(f"{app.name}={app.source.push}")
    lines = (f'restrict,command="{PROGRAM} serve {names[key]} {" ".join(words)}" {key}\n' for key, words in branches.items())
    return "".join(lines)


def pusher_name(blob: str, comment: str) -> str:
    """Return the name of the owner of a key: its comment, or its SHA-256 fingerprint as ssh shows it."""
    name = re.sub(r"[^A-Za-z0-9@._+-]+", "_", comment).strip("_")[:64]
    return name or base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode().rstrip("=")


def sudoers() -> str:
    """Return the sudoers file: the user git may run this program with an app and a name, without a pseudo-terminal."""
    words = r"^deploy [a-z][a-z0-9_-]* [A-Za-z0-9@._+/-]+$"
    return f"Defaults!{PROGRAM} !use_pty\n{USER} ALL=(root) NOPASSWD: {PROGRAM} {words}\n"


def hook() -> str:
    """Return the pre-receive hook of all repositories."""
    return f"#!/bin/sh\nexec {PROGRAM} receive\n"


def requested_app(command: str, allowed: Mapping[str, str]) -> str:
    """Return the app that the command requested over SSH pushes to.

    :arg allowed: the apps that the key may push to, with their branches.
    :raises PushError: when the command is not a push to one of them.
    """
    targets = ", ".join(f"{app} (branch {branch})" for app, branch in sorted(allowed.items()))
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if len(words) != 2 or words[0] != "git-receive-pack":
        raise PushError(f"this key may only git push to {targets}")
    app = words[1].strip("/").removesuffix(".git")
    if app not in allowed:
        raise PushError(f"this key may not push to {words[1]}, only to {targets}")
    return app


def parse_update(lines: Sequence[str], branch: str) -> tuple[str, str]:
    """Return the old and the new commit of ``branch``.

    :arg lines: the input of a pre-receive hook (githooks(5)): ``<old> <new> <reference>``.
    :raises PushError: when the push updates anything other than the branch, or deletes it.
    """
    updates = [line.split(maxsplit=2) for line in lines]
    for reference in (reference.strip() for _old, _new, reference in updates if reference.strip() != f"refs/heads/{branch}"):
        name = re.sub("^refs/(heads|tags)/", "", reference)
        raise PushError(f"{name} is not deployed, only {branch} is: git push <remote> HEAD:{branch}")
    old, new, _reference = updates[0]
    if NO_COMMIT.fullmatch(new):
        raise PushError(f"{branch} is deployed and cannot be deleted; the playbook remove.yml removes an app from its hosts")
    return old, new


def receive_pack(app: str, size: int) -> Iterator[str]:
    """Yield the command that receives a push of at most ``size`` bytes; the repository itself needs no configuration.

    git checks the objects and keeps them packed. Checks that fail only on old, harmless commits are disabled.
    """
    settings = {
        "core.hooksPath": HOOKS,
        "receive.maxInputSize": size,
        "receive.unpackLimit": 1,
        "receive.fsckObjects": "true",
        "receive.fsck.badTimezone": "ignore",
        "receive.fsck.missingSpaceBeforeDate": "ignore",
        "receive.fsck.zeroPaddedFilemode": "ignore",
        "core.bigFileThreshold": "16m",
        "core.packedGitWindowSize": "32m",
        "core.packedGitLimit": "256m",
        "core.deltaBaseCacheLimit": "64m",
        "pack.threads": 1,
        "pack.windowMemory": "64m",
        "pack.deltaCacheSize": "64m",
        "gc.autoDetach": "false",  # a background process would hold the lock of the push
    }
    yield "git"
    for name, value in settings.items():
        yield from ("-c", f"{name}={value}")
    yield from ("receive-pack", str(repository(app)))


def available_size(app: str) -> int:
    """Remove the remains of interrupted pushes; return the maximum size of another push to the repository.

    :raises PushError: when the repository is full.
    """
    directory = repository(app)
    for remains in directory.glob("objects/*incoming-*"):
        with contextlib.suppress(FileNotFoundError):  # the push has just ended
            if remains.lstat().st_mtime < time.time() - STALE_AFTER:
                shutil.rmtree(remains, ignore_errors=True)
    stored = _disk_usage(directory)
    if stored >= MAX_REPOSITORY_SIZE:
        raise PushError(
            f"{app}: its repository on this host has {stored >> 20} MiB, the maximum is {MAX_REPOSITORY_SIZE >> 20}; "
            f"an administrator of the host can remove {directory}, and the next push creates a new one"
        )
    return min(MAX_BYTES, MAX_REPOSITORY_SIZE - stored)


def _disk_usage(directory: Path) -> int:
    """Return the disk usage of a directory in bytes, without files that another push removes meanwhile."""
    size = 0
    for place, _directories, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(Path(place, name)).st_blocks * 512
    return size


def lower_limits() -> None:
    """Apply `LIMITS` to this process and its children; the deployment as root calls :func:`restore_limits`."""
    for kind, maximum in LIMITS.items():
        _soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (maximum if hard == resource.RLIM_INFINITY else min(maximum, hard), hard))


def restore_limits() -> None:
    """Restore the limits from before :func:`lower_limits`."""
    for kind in LIMITS:
        _soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (hard, hard))


def read_tree(listing: int) -> Iterator[bytes]:
    """Yield the entries of a tree from a pipe with the output of ``git ls-tree -z``.

    :raises PushError: when a path is too long.
    """
    rest = b""
    while part := os.read(listing, 1 << 16):
        *complete, rest = (rest + part).split(b"\0")
        yield from complete
        if len(rest) > MAX_PATH_LENGTH + 200:  # mode, type, hash and size precede it
            raise _path_too_long(rest)


def require_bounds(listed: Iterable[bytes]) -> None:
    """Check that the files of a commit can be built; a few objects can represent any number of files.

    :arg listed: all directories and files of the commit, as listed by ``git ls-tree -r -t -l``.
    :raises PushError: when there are too many files, too many bytes, or names that a source cannot have.
    """
    size = 0
    for number, entry in enumerate(listed, start=1):
        attributes, _tab, path = entry.partition(b"\t")
        mode, _kind, _hash, length = attributes.split()
        size += int(length) if length.isdigit() else 0
        if mode == SUBMODULE_MODE:
            raise PushError("the commit has submodules, which a push does not include; use source.git")
        if len(path) > MAX_PATH_LENGTH:
            raise _path_too_long(path)
        if re.search(rb"[\x00-\x1f\x7f]", path):
            raise PushError(f"the commit has a file name with control characters: {_printable_path(path)}")
        if number > MAX_FILES:
            raise PushError(f"the commit has more than {MAX_FILES} files and directories")
        if size > MAX_BYTES:
            raise PushError(f"the files of the commit are more than {MAX_BYTES >> 20} MiB")


def _path_too_long(path: bytes) -> PushError:
    return PushError(f"the commit has a path of more than {MAX_PATH_LENGTH} bytes: {_printable_path(path[-60:])}")


def _printable_path(path: bytes) -> str:
    return printable(path.decode(errors="replace"), line=True)
