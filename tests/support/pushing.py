"""A developer's clone of an app that is pushed, and what can be pushed from it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from testinfra.host import Host

from tests.support.remote import address

WEB = """
import os
import tornado.web


class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write({{"words": "{words}", "theme": os.environ["THEME"], "secret": len(os.environ["SECRET"])}})


def make_app():
    return tornado.web.Application([("/", Handler)])
"""

#: While this file of the app is there its build lasts, for tests of what happens meanwhile.
HOLD = "/srv/shout/shared/hold"
BUILD = f"while [ -e {HOLD} ]; do sleep 0.1; done\n"


@dataclass
class Repository:
    """A developer's clone."""

    directory: Path
    key: Path

    def git(self, *arguments: str) -> str:
        return self.start(*arguments).communicate(timeout=90)[0]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start git, with what it and the host say on one pipe, in a process group of its own."""
        identity = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "commit.gpgSign=false"]
        return subprocess.Popen(
            ["git", "-C", str(self.directory), *identity, *arguments],
            env=os.environ | {"GIT_SSH_COMMAND": " ".join(self.ssh), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,  # ssh would leave ours in a state that Ansible does not like
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def ssh(self) -> list[str]:
        trusting = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return ["ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", *trusting]

    def commit(self, words: str, **files: str) -> str:
        """Let the app say ``words``; ``_`` in the name of another file is a point. Return the commit."""
        for name, text in ({"web_py": WEB.format(words=words), "build_sh": BUILD} | files).items():
            (self.directory / name.replace("_", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", words)
        return self.git("rev-parse", "HEAD").strip()

    def push(self, host: Host, app: str = "shout", *what: str) -> tuple[int, str]:
        """Push; return git's exit status, and what it and the host have said."""
        with self.start("push", f"git@{address(host)}:{app}", *(what or ("main",))) as process:
            words, _ = process.communicate(timeout=120)
        return process.returncode, words

    def clone(self, directory: Path) -> Repository:
        self.git("clone", "--quiet", str(self.directory), str(directory))
        return Repository(directory, self.key)

    def tree(self, *lines: str) -> str:
        """Make a tree of lines as git has them; return its id."""
        listed = "".join(f"{line}\0" for line in lines).encode()
        return self.write("mktree", "-z", "--missing", content=listed)

    def write(self, *command: str, content: bytes) -> str:
        """Give something to git, and return the id of what it makes of it."""
        made = subprocess.run(["git", "-C", str(self.directory), *command], input=content, check=True, capture_output=True)
        return made.stdout.decode().strip()

    def bomb(self, levels: int, width: int) -> str:
        """Make a commit of ``levels`` trees, each of which holds the next one ``width`` times, and a file; return it."""
        found, kind = self.write("hash-object", "-w", "--stdin", content=b"boom"), "100644 blob"
        for _ in range(levels):
            found = self.tree(*(f"{kind} {found}\t{number}" for number in range(width)))
            kind = "040000 tree"
        return self.commit_of(found)

    def commit_of(self, tree: str) -> str:
        """Make a commit of a tree after the last one; return it."""
        return self.git("commit-tree", "-p", "HEAD", "-m", "a", tree).strip()
