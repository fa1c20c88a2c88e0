"""Git sources on a host: a cached mirror, which commit a version is, and the files of a commit, submodules included.

The deploy key and known hosts that come with a source are given to ssh as files in memory (memfd_create(2)): they are
on no disk, and gone with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, Source
from ansible_collections.funnel.tornado.plugins.module_utils.core import private, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import last_lines
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BUILD_SECONDS, BuildError

#: Where a mirror keeps what HEAD is in its repository.
DEFAULT_BRANCH = "refs/funnel/default"

COMMIT = re.compile(r"[0-9a-f]{40}")

#: An abbreviated commit: git itself shows at least seven digits.
ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")

#: The mode that a submodule has in a tree.
SUBMODULE_MODE = "160000"

#: Most bytes that git may print, such as the names of a commit's files; most bytes of .gitmodules, and most submodules of all
#: submodules.
MAX_OUTPUT = 64 << 20
MAX_SETTINGS = 1 << 20
MAX_SUBMODULES = 100

#: Unpacks a tar file, given by a file descriptor, into a place in the source's directory.
Unpack = Callable[[int, str], None]

#: What an object is checked for when it is fetched, but for mistakes that old versions of git made, and that harm nothing.
_CHECKS = [
    "fetch.fsckObjects=true",
    *(
        f"fetch.fsck.{harmless}=ignore"
        for harmless in ("badTimezone", "missingSpaceBeforeDate", "missingTaggerEntry", "zeroPaddedFilemode")
    ),
]

#: Nothing that a repository contains may start a program, or name a file of this host.
_SETTINGS = ["safe.directory=*", "core.hooksPath=/dev/null", "protocol.ext.allow=never", *_CHECKS]

#: What reads a commit's attributes gets no filters, and no programs that check signatures for `export-subst`.
_ARCHIVE_SETTINGS = ["core.attributesFile=/dev/null", *(f"gpg.{kind}program=false" for kind in ("", "ssh.", "x509."))]
_ARCHIVE_ENVIRONMENT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}


def fetch_commit(layout: Layout, app: App) -> str:
    """Return the commit that ``source.version`` is now, fetching what is new.

    :raises BuildError: when the repository or the version is not there.
    """
    with _repository(layout, app) as repository:
        version = app.source.git_ref
        if not (version and COMMIT.fullmatch(version) and repository.has(version)):
            repository.fetch(version)
        names = [f"refs/tags/{version}", f"refs/heads/{version}"] if version else [DEFAULT_BRANCH]
        if version and COMMIT.fullmatch(version):
            names = [version]
        elif version and ABBREVIATED.fullmatch(version):
            names.append(version)  # a branch or a tag of that name comes first
        for name in names:
            found = repository.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if found.returncode == 0:
                return found.stdout.strip()
    raise BuildError(f"{repository.key}.version: {repository.url} has no branch, tag or commit {version or 'HEAD'}")


def query_commit(layout: Layout, app: App) -> str | None:
    """Return what :func:`fetch_commit` would, without writing anything.

    None when the host has no git yet, or nothing but a fetch could tell which commit an abbreviated one is.

    :raises BuildError: when the repository or the version is not there.
    """
    version = app.source.git_ref
    if version and COMMIT.fullmatch(version):
        return version
    if not shutil.which("git"):
        return None
    with _repository(layout, app, remember=False) as repository:
        listed = repository.git("ls-remote", "--", repository.url)
    if listed.returncode != 0:
        raise BuildError(f"{repository.key}.git: {repository.url} cannot be reached from this host: {last_lines(listed.stderr)}")
    commits = {name: commit for commit, name in (line.split("\t") for line in listed.stdout.splitlines())}
    names = (f"refs/tags/{version}^{{}}", f"refs/tags/{version}", f"refs/heads/{version}") if version else ("HEAD",)
    found = next((commits[name] for name in names if name in commits), None)
    if found is None and version and ABBREVIATED.fullmatch(version):
        known = (
            repository.run("rev-parse", "--verify", "--quiet", f"{version}^{{commit}}") if repository.mirror.exists() else None
        )
        return known.stdout.strip() or None if known else None
    if found is None:
        raise BuildError(f"{repository.key}.version: {repository.url} has no branch or tag {version or 'HEAD'}")
    return found


def export_commit(layout: Layout, app: App, commit: str, unpack: Unpack) -> None:
    """Have the files of a commit that :func:`fetch_commit` has returned, and of its submodules, unpacked.

    :raises BuildError: when a submodule cannot be fetched.
    """
    with _repository(layout, app) as repository:
        repository.export(commit, unpack, ".", itertools.count(1))


def submodule_url(url: str, base: str) -> str:
    """Return the URL that a submodule's ``url`` is in a repository that came from ``base`` (gitmodules(5))."""
    if not url.startswith(("./", "../")):
        return url
    base, separator = base.rstrip("/"), "/"
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            separator = "/" if "/" in base else ":"  # host:repository.git
            base = base.rpartition(separator)[0]
        url = url.partition("/")[2]
    return f"{base}{separator}{url}"


@dataclass(frozen=True)
class _Repository:
    """A repository and its mirror; ``key`` is the source's place in the inventory, for messages."""

    url: str
    mirror: Path
    key: str
    environment: Mapping[str, str]

    def git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile() as errors:
            return self._git(errors, *arguments)

    def _git(self, errors: IO[bytes], *arguments: str) -> subprocess.CompletedProcess[str]:
        with self._started(errors, _SETTINGS, {}, *arguments) as process:
            output = _pipe(process).read(MAX_OUTPUT + 1)
            if len(output) > MAX_OUTPUT:
                raise BuildError(f"{self.key}.git: {self.url} has too many names: more than {MAX_OUTPUT >> 20} MiB")
        text = output.decode(errors="surrogateescape")  # file names are bytes
        return subprocess.CompletedProcess(arguments, process.returncode, text, _words(errors))

    @contextlib.contextmanager
    def _started(
        self, errors: IO[bytes], settings: list[str], environment: Mapping[str, str], *arguments: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Give git while it runs, which writes to ``errors``; at the end of the block, or of its time, all of it has ended."""
        command = ["git", *(word for setting in settings for word in ("-c", setting)), *arguments]
        asked = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **self.environment, **asked, **environment},
                process_group=0,
            )
        except OSError as error:
            raise BuildError(f"{self.key}.git: {error}") from error
        timer = threading.Timer(BUILD_SECONDS, _kill, [process])
        timer.start()
        try:
            with process:
                try:
                    yield process
                except BaseException:
                    _kill(process)
                    raise
        finally:
            timer.cancel()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.git("--git-dir", str(self.mirror), *arguments)

    def has(self, commit: str) -> bool:
        return self.mirror.exists() and self.run("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0

    def fetch(self, version: str | None) -> None:
        """Fetch all branches and tags, and a commit that none of them leads to by itself, if the server gives it."""
        fetched = self._fetch_all()
        if fetched.returncode != 0 and self.git("ls-remote", "--", self.url).returncode == 0:
            # A fetch that was killed may have left half a mirror, or a lock in it. Nobody else uses it now.
            tree.remove(self.mirror)
            fetched = self._fetch_all()
        if fetched.returncode != 0:
            raise BuildError(f"{self.key}.git: {self.url} cannot be fetched from this host: {last_lines(fetched.stderr)}")
        if version and COMMIT.fullmatch(version) and not self.has(version):
            self.run("fetch", "--quiet", "--", self.url, version)

    def _fetch_all(self) -> subprocess.CompletedProcess[str]:
        if not self.mirror.exists():
            self.mirror.parent.mkdir(parents=True, exist_ok=True)
            self.git("init", "--quiet", "--bare", str(self.mirror))
            private.set_owner(self.mirror, os.geteuid(), os.getegid(), 0o700)
        references = [f"+HEAD:{DEFAULT_BRANCH}", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        return self.run("fetch", "--quiet", "--prune", "--force", "--", self.url, *references)

    def export(self, commit: str, unpack: Unpack, place: str, exported: Iterator[int]) -> None:
        """Have a commit unpacked into a place, then its submodules, each by itself; ``exported`` counts them all."""
        submodules = list(self.submodules(commit))
        self._archive(commit, lambda stream: unpack(stream, place))
        for path, submodule, wanted in submodules:
            if next(exported) > MAX_SUBMODULES:
                raise BuildError(f"{self.key}.git: the source has more than {MAX_SUBMODULES} submodules")
            if not submodule.has(wanted):
                submodule.fetch(wanted)
            if not submodule.has(wanted):
                raise BuildError(f"{self.key}.git: the submodule {path} is at {wanted}, which {submodule.url} does not have")
            submodule.export(wanted, unpack, f"{place}/{path}", exported)

    def _archive(self, commit: str, unpack: Callable[[int], None]) -> None:
        """Have the tar file of a commit unpacked while git writes it: it is in no directory that somebody else can change."""
        archive = ("--git-dir", str(self.mirror), "archive", "--format=tar", commit)
        refused: BuildError | None = None
        with tempfile.TemporaryFile() as errors:
            settings = [*_SETTINGS, *_ARCHIVE_SETTINGS]
            with self._started(errors, settings, _ARCHIVE_ENVIRONMENT, *archive) as process:
                try:
                    unpack(_pipe(process).fileno())
                except BuildError as error:
                    refused = error
            if process.returncode not in (0, -signal.SIGPIPE):
                raise BuildError(f"{self.key}.git: {last_lines(_words(errors))}")
        if refused:
            raise refused

    def submodules(self, commit: str) -> Iterator[tuple[str, _Repository, str]]:
        """Yield the path, the repository and the commit of each submodule that .gitmodules names."""
        listed = self.run("ls-tree", "-r", "-z", "--full-tree", commit).stdout
        entries = (entry.partition("\t") for entry in listed.split("\0"))
        commits = {path: meta.split()[2] for meta, _tab, path in entries if meta.startswith(SUBMODULE_MODE)}
        size = self.run("cat-file", "-s", f"{commit}:.gitmodules").stdout.strip()
        if not commits or not size:
            return
        if int(size) > MAX_SETTINGS:
            raise BuildError(f"{self.key}.git: .gitmodules has more than {MAX_SETTINGS >> 20} MiB")
        found: dict[str, dict[str, str]] = {}
        for setting in self.run("config", "--blob", f"{commit}:.gitmodules", "--null", "--list").stdout.split("\0"):
            if match := re.fullmatch(r"submodule\.(.+)\.(path|url)\n(.*)", setting, re.DOTALL):
                found.setdefault(match[1], {})[match[2]] = match[3]
        for entry in found.values():
            path, url = entry.get("path", ""), submodule_url(entry.get("url", ""), self.url)
            if path in commits:
                mirror = self.mirror / "modules" / hashlib.sha256(url.encode()).hexdigest()[:12]
                # As git itself does, so that a repository cannot name one of this host's own files as a submodule.
                environment = {**self.environment, "GIT_PROTOCOL_FROM_USER": "0"}
                yield path, replace(self, url=url, mirror=mirror, environment=environment), commits[path]


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise TypeError("git was started without a pipe")
    return process.stdout


def _words(errors: IO[bytes]) -> str:
    """Return the beginning of what git said on stderr."""
    return os.pread(errors.fileno(), 1 << 16, 0).decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill git with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _repository(layout: Layout, app: App, *, remember: bool = True) -> Iterator[_Repository]:
    """Give the repository of an app's source while its key is readable; ``remember`` as in :func:`_ssh_command`."""
    with _ssh_command(layout, app.source, remember=remember) as command:
        key = f"{VARIABLE}.{app.name}.source"
        yield _Repository(str(app.source.git), layout.mirror, key, {"GIT_SSH_COMMAND": command})


@contextlib.contextmanager
def _ssh_command(layout: Layout, source: Source, *, remember: bool) -> Iterator[str]:
    """Give the ssh that git has to use: one that asks nobody anything.

    :arg remember: whether the key of a server that is met for the first time is written down in the app's directory.
    """
    options = ["BatchMode=yes", "UpdateHostKeys=no"]
    known = layout.home / "known_hosts"
    with contextlib.ExitStack() as opened:
        if source.host_key is not None:
            trusted = opened.enter_context(_in_memory(source.host_key))
            options += ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={trusted}", "GlobalKnownHostsFile=/dev/null"]
        else:
            copy = known if remember else opened.enter_context(_in_memory(known.read_text() if known.exists() else ""))
            options += ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={copy}"]
        if source.deploy_key is not None:
            options += ["IdentitiesOnly=yes", f"IdentityFile={opened.enter_context(_in_memory(source.deploy_key))}"]
        yield shlex.join(["ssh", *(word for option in options for word in ("-o", option))])


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[Path]:
    """Give a file that only this user's processes can open, and that ends with this process."""
    descriptor = os.memfd_create("ssh")
    try:
        os.fchmod(descriptor, 0o600)  # ssh takes no key that others may read
        os.write(descriptor, f"{text.strip()}\n".encode())
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)
