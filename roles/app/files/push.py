"""Receive a push and deploy it before it is accepted.

``push serve BY APP=BRANCH...``  run by sshd as the user git, for the owner of a key
``push receive``                 the pre-receive hook of git, run as the same user
``push deploy APP BY``           run by sudo as root: builds the files on stdin and switches to them

The collection's code is packed with this program into one file, so it deploys with the same functions as deploy.yml.
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
"""The lock in a repository that a push holds while it updates the branch."""

SLOT_FILE = "push.{}.lock"
"""The locks in a repository that limit concurrent pushes: each holds one from its start."""

INTERVAL = 0.1
"""Seconds between two attempts to take the lock."""


def serve(by: str, words: list[str]) -> int:
    """Run git to receive a push to one app; return its exit status.

    The hook takes the lock; git holds it until the branch is updated, since both share the open file. The hook also signals that
    everything was received, which must happen in limited time.

    :raises PushError: when the request is not a push to an app of the key, or the repository is full.
    """
    allowed = dict(word.split("=", 1) for word in words)
    app = policy.requested_app(os.environ.get("SSH_ORIGINAL_COMMAND", ""), allowed)
    repository = policy.repository(app)
    if not (repository / "HEAD").exists():
        subprocess.run(["git", "init", "--quiet", "--bare", f"--initial-branch={allowed[app]}", str(repository)], check=True)
    slot = take_slot(repository, app)
    command = list(policy.receive_pack(app, policy.available_size(app)))
    lock = os.open(repository / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    received, signal_received = os.pipe()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"PUSH_APP": app, "PUSH_BRANCH": allowed[app], "PUSH_BY": by}
    environment |= {"PUSH_LOCK": str(lock), "PUSH_RECEIVED": str(signal_received)}
    policy.lower_limits()
    with subprocess.Popen(command, env=environment, pass_fds=[slot, lock, signal_received], process_group=0) as process:
        os.close(signal_received)  # git has inherited it
        if not select.select([received], [], [], policy.RECEIVE_TIMEOUT)[0]:
            os.killpg(process.pid, signal.SIGKILL)
            raise PushError(f"{app}: the push did not arrive within {policy.RECEIVE_TIMEOUT:g} s; push again")
        return abs(process.wait())


def take_slot(repository: Path, app: str) -> int:
    """Lock one of the slots for concurrent pushes to an app; return its open file.

    :raises PushError: when all slots are taken.
    """
    for number in range(policy.MAX_CONCURRENT_PUSHES):
        slot = os.open(repository / SLOT_FILE.format(number), os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return slot
        os.close(slot)
    raise PushError(
        f"{app}: {policy.MAX_CONCURRENT_PUSHES} pushes are in progress on this host, the maximum; try again when one has ended"
    )


def receive() -> int:
    """Deploy the new commit of the branch as root; return 0 once it is live, so that git updates the branch.

    :raises PushError: when the push updates anything else, the branch was updated meanwhile, or the commit cannot be built.
    """
    os.write(int(os.environ["PUSH_RECEIVED"]), b".")
    branch, app = os.environ["PUSH_BRANCH"], os.environ["PUSH_APP"]
    old, new = policy.parse_update(list(itertools.islice(sys.stdin, 2)), branch)
    if (kind := git("cat-file", "-t", new).strip()) != "commit":  # git would reject it only after the deployment
        raise PushError(
            f"{branch} must point to a commit, but this is a {kind}; for a tag: git push <remote> <tag>^{{commit}}:{branch}"
        )
    require_bounds(new)
    take_lock(int(os.environ["PUSH_LOCK"]), app)
    current = git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}").strip()
    if current != ("" if policy.NO_COMMIT.fullmatch(old) else old):
        raise PushError(f"another push has updated {branch} meanwhile; fetch it first, or push again")
    with subprocess.Popen(["git", "archive", "--format=tar", new], stdout=subprocess.PIPE) as packed:
        command = ["sudo", "--non-interactive", str(policy.PROGRAM), "deploy", app, os.environ["PUSH_BY"]]
        status = subprocess.run(command, stdin=packed.stdout, check=False).returncode
        packed.kill()  # root has read all of it, or has failed
    return status


def require_bounds(commit: str) -> None:
    """Check that the files of a commit can be built, before reading them; the listing stops beyond a bound.

    :raises PushError: when they cannot.
    """
    with subprocess.Popen(["git", "ls-tree", "-r", "-t", "-l", "-z", "--full-tree", commit], stdout=subprocess.PIPE) as listing:
        timer = threading.Timer(policy.LIST_TIMEOUT, listing.kill)
        timer.start()
        try:
            policy.require_bounds(policy.read_tree(cast(BinaryIO, listing.stdout).fileno()))
            listing.wait()
        finally:
            listing.kill()
            timer.cancel()
    if listing.returncode:
        raise PushError(f"cannot list the files of the commit within {policy.LIST_TIMEOUT:g} s")


def take_lock(lock: int, app: str) -> None:
    """Wait until no other push updates the branch.

    :raises PushError: when that takes too long.
    """
    deadline = time.monotonic() + policy.LOCK_TIMEOUT
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() >= deadline:
            raise PushError(f"{app}: another push is in progress on this host; try again when it has ended")
        time.sleep(INTERVAL)


def git(*arguments: str) -> str:
    """Return the output of git in the repository of the hook."""
    return subprocess.run(["git", *arguments], stdout=subprocess.PIPE, encoding="utf-8", errors="replace", check=True).stdout


def deploy(name: str, by: str) -> None:
    """Build the archive on stdin and switch to it.

    :raises PushError: when it does not go live.
    """
    # Importing these takes time, and only this part of the program needs them.
    from ansible_collections.funnel.tornado.plugins.module_utils.building.release import Programs
    from ansible_collections.funnel.tornado.plugins.module_utils.deploy import lock, supervisord, switch
    from ansible_collections.funnel.tornado.plugins.module_utils.push import receiving
    from ansible_collections.funnel.tornado.plugins.module_utils.system import home, systemd

    entry = policy.entry_file(name)
    if not entry.exists():
        raise PushError(f"{name}: this host no longer accepts pushes to it")
    policy.restore_limits()
    os.umask(0o022)  # nginx must be able to traverse the created directories
    os.environ.update(home.build_environment())  # certificates and proxy for downloads
    app = load({name: json.loads(entry.read_text(encoding="utf-8"))}, complete=False)[name]
    layout, programs = Layout(name), Programs(packed_file("launch.py"), json.loads(packed_file("runner.json")))
    errors = (home.BuildError, lock.LockedError, OSError, systemd.ServiceError, supervisord.SupervisorError, switch.SwitchError)
    try:
        result, source = receiving.deploy(layout, app, programs, sys.stdin.fileno(), by, print_line)
    except errors as error:
        message = str(error)
        for secret in app.sensitive_values:  # a build may print them
            message = message.replace(secret, "********")
        raise PushError(message) from error
    steps = ", ".join(f"{step['name']} {step['seconds']:.2f} s" for step in result.steps) or "already live"
    print_line(f"{name} is release {result.release} of commit {source.revision[:12]} in slot {result.slot}: {steps}")


def packed_file(name: str) -> str:
    """Return a file that is packed with this program."""
    return (pkgutil.get_data(__name__, name) or b"").decode()


def print_line(line: str) -> None:
    """Print a line for the pusher; a disconnected pusher does not stop a deployment."""
    with contextlib.suppress(OSError):
        os.write(2, f"{printable(line)}\n".encode())


def main(arguments: list[str]) -> int:
    """Run one of the three commands; return the exit status."""
    try:
        match arguments:
            case ["serve", by, *words]:
                return serve(by, words)
            case ["receive"]:
                return receive()
            case ["deploy", app, by]:
                deploy(app, by)
            case _:
                print_line(str(__doc__))
                return 2
    except PushError as error:
        print_line(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
