"""Take a push, and bring it live before it is accepted.

``push serve BY APP=BRANCH...``  from sshd, as the user git, for the owner of a key
``push receive``                 git's hook before a branch moves, as the same user
``push deploy APP BY``           builds the files on stdin and switches to them, as root, from sudo

Packed with the collection's own code into one file, it builds and switches by the same functions as deploy.yml.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pkgutil
import subprocess
import sys
import time
from typing import NoReturn

from ansible_collections.funnel.tornado.plugins.module_utils import push
from ansible_collections.funnel.tornado.plugins.module_utils.app_model import load_one
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.push import PushError

LOCK_FILE = "push.lock"
"""In a repository: held by the push that moves the branch."""

INTERVAL = 0.1
"""Seconds between two tries to take the lock."""


def serve(by: str, words: list[str]) -> NoReturn:
    """Become git, which takes a push to one app.

    The hook takes the lock, and git holds it until the branch has moved, as both have the same open file.

    :raises PushError: when something else is asked for, or the app is not one of the key's.
    """
    allowed = dict(word.split("=", 1) for word in words)
    app = push.asked_for(os.environ.get("SSH_ORIGINAL_COMMAND", ""), allowed)
    repository = push.repository(app)
    if not (repository / "HEAD").exists():
        subprocess.run(["git", "init", "--quiet", "--bare", f"--initial-branch={allowed[app]}", str(repository)], check=True)
    lock = os.open(repository / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.fcntl(lock, fcntl.F_SETFD, 0)  # git has it, too
    about = {"PUSH_APP": app, "PUSH_BRANCH": allowed[app], "PUSH_BY": by, "PUSH_LOCK": str(lock)}
    os.execvpe("git", list(push.receive_pack(app)), os.environ | about)


def receive() -> int:
    """Let root deploy the commit that the branch is to move to; return 0 when it is live, and the branch may move.

    :raises PushError: when something else is to be moved, or was meanwhile.
    """
    branch, app = os.environ["PUSH_BRANCH"], os.environ["PUSH_APP"]
    old, new = push.update(list(sys.stdin), branch)
    take_lock(int(os.environ["PUSH_LOCK"]), app)
    now = git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}").strip()
    if now != ("" if push.NOTHING.fullmatch(old) else old):
        raise PushError(f"another push has moved {branch} meanwhile; push again, or fetch that first")
    if (kind := git("cat-file", "-t", new).strip()) != "commit":  # git would refuse it only when it is live
        raise PushError(
            f"{branch} has to be at a commit, and this is a {kind}; push a tag's: git push <remote> <tag>^{{commit}}:{branch}"
        )
    if any(line.startswith("160000 ") for line in git("ls-tree", "-r", new).splitlines()):
        raise PushError("the commit has submodules, which do not come with a push; use source.git")
    with subprocess.Popen(["git", "archive", "--format=tar", new], stdout=subprocess.PIPE) as packed:
        deploying = ["sudo", "--non-interactive", str(push.PROGRAM), "deploy", app, os.environ["PUSH_BY"]]
        status = subprocess.run(deploying, stdin=packed.stdout, check=False).returncode
    return status or packed.returncode


def take_lock(lock: int, app: str) -> None:
    """Wait until no other push is about to move the branch.

    :raises PushError: when that takes too long.
    """
    deadline = time.monotonic() + push.WAIT
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
    from ansible_collections.funnel.tornado.plugins.module_utils import home, lock, pushed, service, supervisord, switch
    from ansible_collections.funnel.tornado.plugins.module_utils.release import Programs

    entry = push.entry(name)
    if not entry.exists():
        raise PushError(f"{name}: nothing is pushed to that on this host any more")
    os.umask(0o022)  # whatever sudo's is: nginx has to pass through what is made
    os.environ.update(home.build_environment())  # the certificates and the proxy for whatever is fetched
    app = load_one(name, json.loads(entry.read_text()))
    layout, programs = Layout(name), Programs(text("launch.py"), text("runner.py"))
    refusals = (home.BuildError, lock.LockedError, OSError, service.ServiceError, supervisord.SupervisorError, switch.SwitchError)
    try:
        outcome, source = pushed.deploy(layout, app, programs, sys.stdin.buffer, by, say)
    except refusals as error:
        words = str(error)
        for secret in app.hidden_texts:  # a build may print what it was given
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
        os.write(2, f"{line}\n".encode())


def main(arguments: list[str]) -> int:
    """Do one of the three parts; return the exit status."""
    try:
        match arguments:
            case ["serve", by, *words]:
                serve(by, words)
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
