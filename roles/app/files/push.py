"""Take a push, and bring it live before it is accepted.

``push serve BY APP=BRANCH...``  from sshd, as the user git, for the owner of a key
``push receive``                 git's hook before a branch moves, as the same user
``push deploy APP BY``           builds the files on stdin and switches to them, as root, from sudo

Packed with the collection's own code into one file, it builds and switches by the same functions as deploy.yml.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, cast

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.module_utils.push.policy import PushError

LOCK_FILE = "push.lock"
"""In a repository: held by the push that moves the branch."""

PLACE_FILE = "push.{}.lock"
"""In a repository: held by a push from its beginning, one of some."""

INTERVAL = 0.1
"""Seconds between two tries to take the lock."""


def serve(by: str, words: list[str]) -> int:
    """Let git take a push to one app; return its exit status.

    The hook takes the lock, and git holds it until the branch has moved, as both have the same open file. It also says when
    all has been received: until then git has a limited time.

    :raises PushError: when something else is asked for, the app is not one of the key's, or it has no room for more.
    """
    allowed = dict(word.split("=", 1) for word in words)
    app = policy.asked_for(os.environ.get("SSH_ORIGINAL_COMMAND", ""), allowed)
    repository = policy.repository(app)
    if not (repository / "HEAD").exists():
        subprocess.run(["git", "init", "--quiet", "--bare", f"--initial-branch={allowed[app]}", str(repository)], check=True)
    place = take_place(repository, app)
    command = list(policy.receive_pack(app, policy.room(app)))
    lock = os.open(repository / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    received, receives = os.pipe()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    about = {"PUSH_APP": app, "PUSH_BRANCH": allowed[app], "PUSH_BY": by, "PUSH_LOCK": str(lock), "PUSH_RECEIVES": str(receives)}
    policy.limit()
    with subprocess.Popen(command, env=environment | about, pass_fds=[place, lock, receives], process_group=0) as process:
        os.close(receives)  # git has it
        if not select.select([received], [], [], policy.RECEIVING)[0]:
            os.killpg(process.pid, signal.SIGKILL)
            raise PushError(f"{app}: what was pushed did not come within {policy.RECEIVING:g} s; push again")
        return abs(process.wait())


def take_place(repository: Path, app: str) -> int:
    """Return the open file of one of the places for pushes to an app.

    :raises PushError: when all are taken.
    """
    for number in range(policy.AT_ONCE):
        place = os.open(repository / PLACE_FILE.format(number), os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return place
        os.close(place)
    raise PushError(f"{app}: {policy.AT_ONCE} pushes run on this host already; try again when one has ended")


def receive() -> int:
    """Let root deploy the commit that the branch is to move to; return 0 when it is live, and the branch may move.

    :raises PushError: when something else is to be moved, or was meanwhile, or the commit is not one to build from.
    """
    os.write(int(os.environ["PUSH_RECEIVES"]), b".")
    branch, app = os.environ["PUSH_BRANCH"], os.environ["PUSH_APP"]
    old, new = policy.update(list(itertools.islice(sys.stdin, 2)), branch)
    if (kind := git("cat-file", "-t", new).strip()) != "commit":  # git would refuse it only when it is live
        raise PushError(
            f"{branch} has to be at a commit, and this is a {kind}; push a tag's: git push <remote> <tag>^{{commit}}:{branch}"
        )
    require_bounds(new)
    take_lock(int(os.environ["PUSH_LOCK"]), app)
    now = git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}").strip()
    if now != ("" if policy.NOTHING.fullmatch(old) else old):
        raise PushError(f"another push has moved {branch} meanwhile; push again, or fetch that first")
    with subprocess.Popen(["git", "archive", "--format=tar", new], stdout=subprocess.PIPE) as packed:
        deploying = ["sudo", "--non-interactive", str(policy.PROGRAM), "deploy", app, os.environ["PUSH_BY"]]
        status = subprocess.run(deploying, stdin=packed.stdout, check=False).returncode
        packed.kill()  # root has had all of it, or wants no more
    return status


def require_bounds(commit: str) -> None:
    """See that the commit's files can be built from, before all of them are read; listing them is broken off beyond a bound.

    :raises PushError: when they cannot.
    """
    with subprocess.Popen(["git", "ls-tree", "-r", "-t", "-l", "-z", "--full-tree", commit], stdout=subprocess.PIPE) as listing:
        bound = threading.Timer(policy.LISTING, listing.kill)
        bound.start()
        try:
            policy.require_bounds(policy.entries(cast(BinaryIO, listing.stdout).fileno()))
            listing.wait()
        finally:
            listing.kill()
            bound.cancel()
    if listing.returncode:
        raise PushError(f"the files of the commit cannot be listed within {policy.LISTING:g} s")


def take_lock(lock: int, app: str) -> None:
    """Wait until no other push is about to move the branch.

    :raises PushError: when that takes too long.
    """
    deadline = time.monotonic() + policy.WAIT
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() >= deadline:
            raise PushError(f"{app}: another push runs on this host; try again when it has ended")
        time.sleep(INTERVAL)


def git(*arguments: str) -> str:
    """Return what git says of the repository that this is the hook of."""
    return subprocess.run(["git", *arguments], stdout=subprocess.PIPE, text=True, errors="replace", check=True).stdout


def deploy(name: str, by: str) -> None:
    """Build what stdin brings, and switch to it.

    :raises PushError: when it does not go live.
    """
    # Only root's part needs, and has the time for, all that follows.
    from ansible_collections.funnel.tornado.plugins.module_utils.building.release import Programs
    from ansible_collections.funnel.tornado.plugins.module_utils.deploy import lock, supervisord, switch
    from ansible_collections.funnel.tornado.plugins.module_utils.push import receiving
    from ansible_collections.funnel.tornado.plugins.module_utils.system import home, systemd

    entry = policy.entry(name)
    if not entry.exists():
        raise PushError(f"{name}: nothing is pushed to that on this host any more")
    policy.unlimit()
    os.umask(0o022)  # whatever sudo's is: nginx has to pass through what is made
    os.environ.update(home.build_environment())  # the certificates and the proxy for whatever is fetched
    [app] = load({name: json.loads(entry.read_text())}, complete=False).values()
    layout, programs = Layout(name), Programs(text("launch.py"), json.loads(text("runner.json")))
    refusals = (home.BuildError, lock.LockedError, OSError, systemd.ServiceError, supervisord.SupervisorError, switch.SwitchError)
    try:
        outcome, source = receiving.deploy(layout, app, programs, sys.stdin.fileno(), by, say)
    except refusals as error:
        words = str(error)
        for secret in app.sensitive_values:  # a build may print what it was given
            words = words.replace(secret, "********")
        raise PushError(words) from error
    steps = ", ".join(f"{step['name']} {step['seconds']:.2f} s" for step in outcome.steps) or "it was live already"
    say(f"{name} is release {outcome.release} of commit {source.revision[:12]} in slot {outcome.slot}: {steps}")


def text(name: str) -> str:
    """Return a file that was packed with this one."""
    return (pkgutil.get_data(__name__, name) or b"").decode()


def say(line: str) -> None:
    """Tell the one who pushes, if still there: a release that has begun to go live does so without an audience, too."""
    with contextlib.suppress(OSError):
        os.write(2, f"{printable(line)}\n".encode())


def main(arguments: list[str]) -> int:
    """Do one of the three parts; return the exit status."""
    try:
        match arguments:
            case ["serve", by, *words]:
                return serve(by, words)
            case ["receive"]:
                return receive()
            case ["deploy", app, by]:
                deploy(app, by)
            case _:
                say(str(__doc__))
                return 2
    except PushError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
