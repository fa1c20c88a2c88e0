"""A developer's repository of an app, and commits to push from it."""

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

#: The app's build runs as long as this file exists.
HOLD = "/srv/shout/shared/hold"
BUILD = f"while [ -e {HOLD} ]; do sleep 0.1; done\n"


@dataclass
class Repository:
    """A developer's repository."""

    directory: Path
    key: Path

    def git(self, *arguments: str) -> str:
        return self.start(*arguments).communicate(timeout=90)[0]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start git in its own process group, with its output and that of the host on one pipe."""
        identity = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "commit.gpgSign=false"]
        return subprocess.Popen(
            ["git", "-C", str(self.directory), *identity, *arguments],
            env=os.environ | {"GIT_SSH_COMMAND": " ".join(self.ssh), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,  # ssh would set a shared standard input to non-blocking, which Ansible rejects
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def ssh(self) -> list[str]:
        trust_options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return ["ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", *trust_options]

    def commit(self, words: str, **files: str) -> str:
        """Commit an app that responds with ``words`` and other ``files`` (``_`` stands for a dot); return the commit."""
        for name, text in ({"web_py": WEB.format(words=words), "build_sh": BUILD} | files).items():
            (self.directory / name.replace("_", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", words)
        return self.git("rev-parse", "HEAD").strip()

    def push(self, host: Host, app: str = "shout", *refspecs: str) -> tuple[int, str]:
        """Push and return git's exit status and the output of git and the host."""
        with self.start("push", f"git@{address(host)}:{app}", *(refspecs or ("main",))) as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def clone(self, directory: Path) -> Repository:
        self.git("clone", "--quiet", str(self.directory), str(directory))
        return Repository(directory, self.key)

    def tree(self, *lines: str) -> str:
        """Create a tree from lines in the format of ``git ls-tree`` and return its ID."""
        listed = "".join(f"{line}\0" for line in lines).encode()
        return self.write("mktree", "-z", "--missing", content=listed)

    def write(self, *command: str, content: bytes) -> str:
        """Pass ``content`` to a git command and return the ID of the object that it creates."""
        completed = subprocess.run(["git", "-C", str(self.directory), *command], input=content, check=True, capture_output=True)
        return completed.stdout.decode().strip()

    def bomb(self, levels: int, width: int) -> str:
        """Create a commit of nested trees, ``levels`` deep, each with ``width`` entries of the next; return the commit."""
        found, kind = self.write("hash-object", "-w", "--stdin", content=b"boom"), "100644 blob"
        for _ in range(levels):
            found = self.tree(*(f"{kind} {found}\t{number}" for number in range(width)))
            kind = "040000 tree"
        return self.commit_of(found)

    def commit_of(self, tree: str) -> str:
        """Create a child commit of HEAD with a tree and return it."""
        return self.git("commit-tree", "-p", "HEAD", "-m", "a", tree).strip()
