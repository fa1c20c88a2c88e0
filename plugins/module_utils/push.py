"""Push to deploy: who may push what to a host, and how far that goes.

sshd hands a pusher, known by a key, to the program ``push``, which runs nothing but ``git receive-pack`` of an app that the
key is for. The repository's hook passes the files of the new commit on to the same program as root, by the one line that
sudo has for it: root reads an archive, and nothing of a repository that others can write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pwd
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import App
from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.file_set import File
from ansible_collections.funnel.tornado.plugins.module_utils.layout import PUSH_ENTRIES

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
MOST_BYTES = 1 << 29

#: Seconds that another push, or another deploy, is waited for.
WAIT = 60

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


def receive_pack(app: str) -> Iterator[str]:
    """Yield the command that takes a push; the repository needs no settings of its own."""
    settings = {
        "core.hooksPath": HOOKS,
        "receive.maxInputSize": MOST_BYTES,
        "gc.autoDetach": "false",  # what runs on in the background would hold the lock of the push
    }
    yield "git"
    for name, value in settings.items():
        yield from ("-c", f"{name}={value}")
    yield from ("receive-pack", str(repository(app)))
