"""Push to deploy: who may push what to a host, and how far that goes.

sshd hands a pusher, known by a key, to the program ``push``, which runs nothing but ``git receive-pack`` of an app that the
key is for. The repository's hook passes the files of the new commit on to the same program as root, by the one line that
sudo has for it: root reads an archive, and nothing of a repository that others can write.
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

#: Who owns the repositories, and whose name stands in their addresses: git@host:app.
USER = "git"

#: Its home is root's: it can neither let in more keys nor start anything from there.
HOME = Path("/var/lib/funnel/git")

REPOSITORIES = HOME / "repositories"
AUTHORIZED_KEYS = HOME / ".ssh/authorized_keys"

#: The program, a zip file of Python, and the hooks of all repositories.
PROGRAM = Path("/usr/local/lib/funnel/push")
HOOKS = Path("/usr/local/lib/funnel/hooks")

SUDOERS = Path("/etc/sudoers.d")
SUDOERS_FILE = "funnel-push"

#: Bytes that may be pushed at a time, and that the files of a commit may have: far more than code needs.
MAX_BYTES = 1 << 29

#: Bytes that the repository of an app may have; all of them lie on the same disk.
MAX_STORED = 1 << 30

#: Files and directories that a commit may have, and bytes that the path of one may have.
MAX_FILES = 100_000
LONGEST_PATH = 1000

#: Pushes to an app at a time: each keeps what it has received beside the repository until it is accepted.
AT_ONCE = 4

#: Seconds that a push may take until all of it is received, and that the listing of its files may take.
RECEIVING = 900.0
LISTING = 60.0

#: Seconds that root waits for all of the files.
HANDING_OVER = 300.0

#: Seconds that another push, or another deploy, is waited for.
WAIT = 60

#: Seconds after which what a push that was broken off has left is removed: none takes as long.
BROKEN_OFF = 86_400.0

#: What each process of git may take in a push: bytes of memory and of a file, seconds of a CPU.
LIMITS = {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_FSIZE: MAX_STORED, resource.RLIMIT_CPU: 300}

#: The mode that a submodule has in a tree.
SUBMODULE_MODE = b"160000"

#: What a branch is at that is not there.
NOTHING = re.compile("0+")


class PushError(Exception):
    """A push is refused. The message is for the one who pushes."""


def ensure_user(*, check_mode: bool) -> bool:
    """Make the user git and its directories; return whether something was, or would be, made.

    :raises PushError: when the host has another user of that name, or none can be made.
    """
    made = False
    try:
        home = pwd.getpwnam(USER).pw_dir
    except KeyError:
        made = True
        # sshd starts what a key is for by the user's shell; * is no password, but no lock either, which some sshd heed.
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(HOME), "--shell", "/bin/sh"]
        if not check_mode:
            try:
                run([*command, "--password", "*", USER])
            except CommandError as error:
                raise PushError(f"no user can be made for what is pushed: {error}") from error
    else:
        if home != str(HOME):
            raise PushError(f"this host has a user {USER} already, whose home is {home}; what is pushed needs that name")
    if not REPOSITORIES.exists():
        made = True
        if not check_mode:
            REPOSITORIES.mkdir(parents=True, mode=0o755)
            shutil.chown(REPOSITORIES, USER, USER)
            REPOSITORIES.chmod(0o700)
    return made


def files(entries: Mapping[str, object], keys: str, program: bytes) -> list[File]:
    """Return the files that let ``keys``, the lines of `authorized_keys`, push to the apps of ``entries``."""
    return [
        *(File(str(entry(app)), json.dumps(data).encode(), 0o600, secret=True) for app, data in entries.items()),
        File(str(PROGRAM), program, 0o755),
        File(str(HOOKS / "pre-receive"), hook().encode(), 0o755),
        File(SUDOERS_FILE, sudoers().encode(), 0o440),
        File(str(AUTHORIZED_KEYS), keys.encode(), 0o640, group=USER),
    ]


def repository(app: str) -> Path:
    """Return the bare repository that is pushed to."""
    return REPOSITORIES / f"{app}.git"


def entry(app: str) -> Path:
    """Return the file that holds an app's entry of ``tornado_apps``, as JSON."""
    return PUSH_ENTRIES / f"{app}.json"


def authorized_keys(apps: Mapping[str, App]) -> str:
    """Return the lines by which sshd lets in who may push, a key each with all apps that it is for."""
    names: dict[str, str] = {}
    branches: dict[str, list[str]] = {}
    for app in apps.values():
        for key in app.source.keys or ():
            kind, blob, *comment = key.split()
            public = f"{kind} {blob}"
            names.setdefault(public, pusher(blob, " ".join(comment)))
            branches.setdefault(public, []).append(f"{app.name}={app.source.push}")
    lines = (f'restrict,command="{PROGRAM} serve {names[key]} {" ".join(words)}" {key}\n' for key, words in branches.items())
    return "".join(lines)


def pusher(blob: str, comment: str) -> str:
    """Return what the owner of a key is called: as its comment says, or else by its fingerprint (SHA-256, as ssh shows it)."""
    called = re.sub(r"[^A-Za-z0-9@._+-]+", "_", comment).strip("_")[:64]
    return called or base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode().rstrip("=")


def sudoers() -> str:
    """Return what sudo lets the user git do: this program, with an app and a name. Without a terminal between it and the hook."""
    words = r"^deploy [a-z][a-z0-9_-]* [A-Za-z0-9@._+/-]+$"
    return f"Defaults!{PROGRAM} !use_pty\n{USER} ALL=(root) NOPASSWD: {PROGRAM} {words}\n"


def hook() -> str:
    """Return the hook of all repositories, which git runs before a branch moves."""
    return f"#!/bin/sh\nexec {PROGRAM} receive\n"


def asked_for(command: str, allowed: Mapping[str, str]) -> str:
    """Return the app that a pusher's ``command``, as sshd passes it on, wants to push to.

    :arg allowed: the apps that the key is for, with their branches.
    :raises PushError: when it is anything but a push to one of these.
    """
    known = ", ".join(f"{app} (branch {branch})" for app, branch in sorted(allowed.items()))
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if len(words) != 2 or words[0] != "git-receive-pack":
        raise PushError(f"this key is for git push to {known}, and for nothing else")
    app = words[1].strip("/").removesuffix(".git")
    if app not in allowed:
        raise PushError(f"this key may not push to {words[1]}; it is for {known}")
    return app


def update(lines: Sequence[str], branch: str) -> tuple[str, str]:
    """Return the commits that ``branch`` goes from and to.

    :arg lines: what git tells a pre-receive hook (githooks(5)): ``<old> <new> <reference>``.
    :raises PushError: when it is not the branch, and nothing else, that is to move.
    """
    updates = [line.split(maxsplit=2) for line in lines]
    for reference in (reference.strip() for _old, _new, reference in updates if reference.strip() != f"refs/heads/{branch}"):
        name = re.sub("^refs/(heads|tags)/", "", reference)
        raise PushError(f"{name} is not what is served from here; {branch} is: git push <remote> HEAD:{branch}")
    old, new, _reference = updates[0]
    if NOTHING.fullmatch(new):
        raise PushError(f"{branch} is what is served, and cannot be deleted; the playbook remove.yml takes an app off its hosts")
    return old, new


def receive_pack(app: str, size: int) -> Iterator[str]:
    """Yield the command that takes a push of at most ``size`` bytes; the repository needs no settings of its own.

    What is received is checked by git's own rules and stays packed, however much it would be. The rules that old commits break
    and that harm nobody are left out.
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
        "gc.autoDetach": "false",  # what runs on in the background would hold the lock of the push
    }
    yield "git"
    for name, value in settings.items():
        yield from ("-c", f"{name}={value}")
    yield from ("receive-pack", str(repository(app)))


def room(app: str) -> int:
    """Return how many bytes may still be pushed to an app's repository, after removing what broken-off pushes have left there.

    :raises PushError: when there is no room.
    """
    directory = repository(app)
    for left in directory.glob("objects/*incoming-*"):
        with contextlib.suppress(FileNotFoundError):  # that push has just ended
            if left.lstat().st_mtime < time.time() - BROKEN_OFF:
                shutil.rmtree(left, ignore_errors=True)
    stored = _stored(directory)
    if stored >= MAX_STORED:
        raise PushError(
            f"{app}: its repository on this host has {stored >> 20} MiB, and may have {MAX_STORED >> 20}; "
            f"whoever runs the host can remove {directory}, and the next push begins a new one"
        )
    return min(MAX_BYTES, MAX_STORED - stored)


def _stored(directory: Path) -> int:
    """Return how many bytes a directory has on its disk; what another push removes meanwhile is not counted."""
    size = 0
    for place, _directories, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(Path(place, name)).st_blocks * 512
    return size


def limit() -> None:
    """Let this process, and what it starts, take no more than `LIMITS`; :func:`unlimit` takes that back for root's part."""
    for kind, most in LIMITS.items():
        _soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def unlimit() -> None:
    """Let this process take what it could before :func:`limit`."""
    for kind in LIMITS:
        _soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (hard, hard))


def entries(listing: int) -> Iterator[bytes]:
    """Yield the entries of a tree from a pipe into which ``git ls-tree -z`` lists them.

    :raises PushError: when a path is too long.
    """
    rest = b""
    while part := os.read(listing, 1 << 16):
        *whole, rest = (rest + part).split(b"\0")
        yield from whole
        if len(rest) > LONGEST_PATH + 200:  # the mode, the type, the hash and the size stand before it
            raise _path_too_long(rest)


def require_bounds(listed: Iterable[bytes]) -> None:
    """See that a commit can be built from here; a few objects can make any number of files.

    :arg listed: all its directories and files, as ``git ls-tree -r -t -l`` lists them.
    :raises PushError: when it has too many files, too large ones, or names that no source has.
    """
    size = 0
    for number, one in enumerate(listed, start=1):
        about, _tab, path = one.partition(b"\t")
        mode, _kind, _hash, length = about.split()
        size += int(length) if length.isdigit() else 0
        if mode == SUBMODULE_MODE:
            raise PushError("the commit has submodules, which do not come with a push; use source.git")
        if len(path) > LONGEST_PATH:
            raise _path_too_long(path)
        if re.search(rb"[\x00-\x1f\x7f]", path):
            raise PushError(f"the commit has a file whose name has control characters: {_shown(path)}")
        if number > MAX_FILES:
            raise PushError(f"the commit has more than {MAX_FILES} files and directories")
        if size > MAX_BYTES:
            raise PushError(f"the files of the commit are more than {MAX_BYTES >> 20} MiB")


def _path_too_long(path: bytes) -> PushError:
    return PushError(f"the commit has a path of more than {LONGEST_PATH} bytes: {_shown(path[-60:])}")


def _shown(path: bytes) -> str:
    return printable(path.decode(errors="replace"), line=True)
