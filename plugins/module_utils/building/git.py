"""Git sources on a host: a cached mirror, the commit of a version, and the files of a commit including its submodules.

ssh reads the deploy key and the known hosts of a source from files in memory (memfd_create(2)), which are never written to disk
and end with this process.
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

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.source import Source
from ansible_collections.funnel.tornado.plugins.module_utils.core import private, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import last_lines
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BUILD_SECONDS, BuildError
from ansible_collections.funnel.tornado.plugins.module_utils.system.isolation_unit import OOM_SCORE

#: Reference of a mirror to the HEAD of its repository.
DEFAULT_BRANCH = "refs/funnel/default"

COMMIT = re.compile(r"[0-9a-f]{40}")

#: An abbreviated commit id: git itself prints at least seven digits.
ABBREVIATED_COMMIT = re.compile(r"[0-9a-f]{7,39}")

#: Mode of a submodule in a git tree.
SUBMODULE_MODE = "160000"

#: Limits: bytes that git may print, such as the file names of a commit; bytes of .gitmodules; submodules, including nested ones.
MAX_OUTPUT = 64 << 20
MAX_GITMODULES = 1 << 20
MAX_SUBMODULES = 100

#: Resource limits of each git process: bytes of memory, because a small object can expand to any size, and of a file. git loads
#: no file above the threshold into memory. Its index-pack caches 96 MiB of objects for each thread, and starts up to 20 on hosts
#: with many CPUs.
MAX_MEMORY = 1 << 30
MAX_FILE = 16 << 30
BIG_FILE = "64m"
MAX_THREADS = 4

#: Unpacks a tar archive from a file descriptor into a subdirectory of the source.
Unpack = Callable[[int, str], None]

#: Verify fetched objects, except for harmless faults of old versions of git.
_FSCK_CONFIG = [
    "fetch.fsckObjects=true",
    *(
        f"fetch.fsck.{harmless}=ignore"
        for harmless in ("badTimezone", "missingSpaceBeforeDate", "missingTaggerEntry", "zeroPaddedFilemode")
    ),
]

#: Fetch from a shallow repository, too: git otherwise only warns that it rejects the references of one.
_FETCH = ["fetch", "--quiet", "--update-shallow"]

#: Keep the contents of a repository from starting programs or referring to files of this host.
_CONFIG = [
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "protocol.ext.allow=never",
    f"core.bigFileThreshold={BIG_FILE}",
    f"pack.threads={MAX_THREADS}",
    *_FSCK_CONFIG,
]

#: Disable filters, and the programs that verify signatures for `export-subst`, which the attributes of a commit could start.
_ARCHIVE_CONFIG = ["core.attributesFile=/dev/null", *(f"gpg.{kind}program=false" for kind in ("", "ssh.", "x509."))]

#: Ignore the configuration of root and of the host.
_NO_CONFIG = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_COUNT": "0"}

#: Fetch submodules, whose URLs committers choose, without credentials of root: those in its configuration and in ~/.netrc, and
#: those of programs that ask. Like git itself, allow no repository of this host. :func:`_submodule_ssh` does the same for SSH.
_SUBMODULE_ENVIRONMENT = {**_NO_CONFIG, "HOME": "/nonexistent", "GIT_ASKPASS": "", "GIT_PROTOCOL_FROM_USER": "0"}


def fetch_commit(layout: Layout, app: App) -> str:
    """Fetch the repository and return the commit of ``source.version``.

    :raises BuildError: when the repository or the version does not exist.
    """
    with _repository(layout, app) as repository:
        version = app.source.git_ref
        if not (version and COMMIT.fullmatch(version) and repository.has(version)):
            repository.fetch(version)
        names = [f"refs/tags/{version}", f"refs/heads/{version}"] if version else [DEFAULT_BRANCH]
        if version and COMMIT.fullmatch(version):
            names = [version]
        elif version and ABBREVIATED_COMMIT.fullmatch(version):
            names.append(version)  # a branch or tag of the same name takes precedence
        for name in names:
            found = repository.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if found.returncode == 0:
                return found.stdout.strip()
    raise BuildError(f"{repository.key}.version: {repository.url} has no branch, tag or commit {version or 'HEAD'}")


def query_commit(layout: Layout, app: App) -> str | None:
    """Return the commit that :func:`fetch_commit` would return, without writing anything.

    Return None if the host does not have git yet, or an abbreviated commit can be resolved only by a fetch.

    :raises BuildError: when the repository or the version does not exist.
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
    if found is None and version and ABBREVIATED_COMMIT.fullmatch(version):
        if not repository.mirror.exists():
            return None
        return repository.run("rev-parse", "--verify", "--quiet", f"{version}^{{commit}}").stdout.strip() or None
    if found is None:
        raise BuildError(f"{repository.key}.version: {repository.url} has no branch or tag {version or 'HEAD'}")
    return found


def export_commit(layout: Layout, app: App, commit: str, unpack: Unpack) -> None:
    """Unpack the files of a commit that :func:`fetch_commit` returned, including those of its submodules.

    :raises BuildError: when a submodule cannot be fetched.
    """
    with _repository(layout, app) as repository:
        repository.export(commit, unpack, ".", itertools.count(1))


def submodule_url(url: str, base: str) -> str:
    """Resolve the URL of a submodule, which may be relative to the URL ``base`` of its repository (gitmodules(5))."""
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
    """A repository and its local mirror; ``key`` is the path of the source in the inventory, for messages.

    Git runs with ``environment``, for submodules with ``submodule_environment``.
    """

    url: str
    mirror: Path
    key: str
    environment: Mapping[str, str]
    submodule_environment: Mapping[str, str]

    def git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile() as errors:
            return self._git(errors, *arguments)

    def _git(self, errors: IO[bytes], *arguments: str) -> subprocess.CompletedProcess[str]:
        with self._running(errors, _CONFIG, {}, *arguments) as process:
            output = _pipe(process).read(MAX_OUTPUT + 1)
            if len(output) > MAX_OUTPUT:
                raise BuildError(f"{self.key}.git: {self.url} has too many file names: more than {MAX_OUTPUT >> 20} MiB")
        text = output.decode(errors="surrogateescape")  # file names are bytes
        return subprocess.CompletedProcess(arguments, process.returncode, text, _error_output(errors))

    @contextlib.contextmanager
    def _running(
        self, errors: IO[bytes], config: list[str], environment: Mapping[str, str], *arguments: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run git, with stderr in ``errors``, during the block; kill all its processes on an error or timeout."""
        limits = ["choom", f"--adjust={OOM_SCORE}", "--", "prlimit", f"--data={MAX_MEMORY}", f"--fsize={MAX_FILE}", "--"]
        command = [*limits, "git", *(word for setting in config for word in ("-c", setting)), *arguments]
        batch = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **self.environment, **batch, **environment},
                start_new_session=True,
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
        """Fetch all branches and tags, and the commit ``version`` if none of them contains it and the server allows it.

        Without ``version``, fetch the default branch, too; HEAD of a repository may name a branch that does not exist.
        """
        default = [] if version else [f"+HEAD:{DEFAULT_BRANCH}"]
        fetched = self._fetch_all(default)
        if fetched.returncode != 0 and self.git("ls-remote", "--", self.url).returncode == 0:
            # A killed fetch may have left an incomplete mirror or a lock. No other process uses the mirror now.
            tree.remove(self.mirror)
            fetched = self._fetch_all(default)
        if fetched.returncode != 0:
            only = ", as a submodule with no credentials but deploy_key" if self.environment == self.submodule_environment else ""
            raise BuildError(f"{self.key}.git: {self.url} cannot be fetched from this host{only}: {last_lines(fetched.stderr)}")
        if version and COMMIT.fullmatch(version) and not self.has(version):
            self.run(*_FETCH, "--", self.url, version)

    def _fetch_all(self, default: list[str]) -> subprocess.CompletedProcess[str]:
        if not self.mirror.exists():
            self.mirror.parent.mkdir(parents=True, exist_ok=True)
            self.git("init", "--quiet", "--bare", str(self.mirror))
            private.set_owner(self.mirror, os.geteuid(), os.getegid(), 0o700)
        references = [*default, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        return self.run(*_FETCH, "--prune", "--force", "--", self.url, *references)

    def export(self, commit: str, unpack: Unpack, directory: str, counter: Iterator[int]) -> None:
        """Unpack a commit into ``directory``, then each of its submodules; ``counter`` counts all submodules."""
        submodules = list(self.submodules(commit))
        self._archive(commit, lambda stream: unpack(stream, directory))
        for path, submodule, pinned in submodules:
            if next(counter) > MAX_SUBMODULES:
                raise BuildError(f"{self.key}.git: the source has more than {MAX_SUBMODULES} submodules")
            if not submodule.has(pinned):
                submodule.fetch(pinned)
            if not submodule.has(pinned):
                raise BuildError(f"{self.key}.git: the submodule {path} is at {pinned}, which {submodule.url} does not have")
            submodule.export(pinned, unpack, f"{directory}/{path}", counter)

    def _archive(self, commit: str, unpack: Callable[[int], None]) -> None:
        """Unpack the tar archive of a commit as git writes it: no file exists that other users could change."""
        archive = ("--git-dir", str(self.mirror), "archive", "--format=tar", commit)
        failure: BuildError | None = None
        with tempfile.TemporaryFile() as errors:
            config = [*_CONFIG, *_ARCHIVE_CONFIG]
            with self._running(errors, config, _NO_CONFIG, *archive) as process:
                try:
                    unpack(_pipe(process).fileno())
                except BuildError as error:
                    failure = error
            if process.returncode not in (0, -signal.SIGPIPE):
                raise BuildError(f"{self.key}.git: {last_lines(_error_output(errors))}")
        if failure:
            raise failure

    def submodules(self, commit: str) -> Iterator[tuple[str, _Repository, str]]:
        """Yield the path, the repository and the commit of each submodule in .gitmodules."""
        listed = self.run("ls-tree", "-r", "-z", "--full-tree", commit).stdout
        entries = (entry.partition("\t") for entry in listed.split("\0"))
        commits = {path: meta.split()[2] for meta, _tab, path in entries if meta.startswith(SUBMODULE_MODE)}
        size = self.run("cat-file", "-s", f"{commit}:.gitmodules").stdout.strip()
        if not commits or not size:
            return
        if int(size) > MAX_GITMODULES:
            raise BuildError(f"{self.key}.git: .gitmodules has more than {MAX_GITMODULES >> 20} MiB")
        found: dict[str, dict[str, str]] = {}
        for setting in self.run("config", "--blob", f"{commit}:.gitmodules", "--null", "--list").stdout.split("\0"):
            if match := re.fullmatch(r"submodule\.(.+)\.(path|url)\n(.*)", setting, re.DOTALL):
                found.setdefault(match[1], {})[match[2]] = match[3]
        for entry in found.values():
            path, url = entry.get("path", ""), submodule_url(entry.get("url", ""), self.url)
            if path in commits:
                mirror = self.mirror / "modules" / hashlib.sha256(url.encode()).hexdigest()[:12]
                yield path, replace(self, url=url, mirror=mirror, environment=self.submodule_environment), commits[path]


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise TypeError("git was started without a pipe")
    return process.stdout


def _error_output(errors: IO[bytes]) -> str:
    """Return the beginning of git's stderr."""
    return os.pread(errors.fileno(), 1 << 16, 0).decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill git and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _repository(layout: Layout, app: App, *, remember: bool = True) -> Iterator[_Repository]:
    """Yield the repository of an app's source, with the deploy key readable; ``remember`` as in :func:`_ssh_command`."""
    with _ssh_command(layout, app.source, remember=remember) as command:
        key = f"{VARIABLE}.{app.name}.source"
        of_submodules = {**_SUBMODULE_ENVIRONMENT, "GIT_SSH_COMMAND": _submodule_ssh(command, app.source)}
        yield _Repository(str(app.source.git), layout.mirror, key, {"GIT_SSH_COMMAND": command}, of_submodules)


def _submodule_ssh(command: str, source: Source) -> str:
    """Return the ssh command for submodules: without root's configuration, which may name keys, and with the deploy key only."""
    without_key = ["-o", "PubkeyAuthentication=no"] if source.deploy_key is None else []
    return shlex.join(["ssh", "-F", "/dev/null", *shlex.split(command)[1:], *without_key])


@contextlib.contextmanager
def _ssh_command(layout: Layout, source: Source, *, remember: bool) -> Iterator[str]:
    """Yield the ssh command for git, which never prompts.

    :arg remember: whether the host key of a new server is stored in the app's directory.
    """
    options = ["BatchMode=yes", "UpdateHostKeys=no"]
    known_hosts = layout.home / "known_hosts"
    with contextlib.ExitStack() as opened:
        if source.host_key is not None:
            given = opened.enter_context(_in_memory(source.host_key))
            options += ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={given}", "GlobalKnownHostsFile=/dev/null"]
        else:
            if not remember:
                known_hosts = opened.enter_context(
                    _in_memory(known_hosts.read_text(encoding="utf-8") if known_hosts.exists() else "")
                )
            options += ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={known_hosts}"]
        if source.deploy_key is not None:
            options += ["IdentitiesOnly=yes", f"IdentityFile={opened.enter_context(_in_memory(source.deploy_key))}"]
        yield shlex.join(["ssh", *(word for option in options for word in ("-o", option))])


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[Path]:
    """Yield a file in memory that only processes of this user can open, and that ends with this process."""
    descriptor = os.memfd_create("ssh")
    try:
        os.fchmod(descriptor, 0o600)  # ssh rejects keys that others may read
        os.write(descriptor, f"{text.strip()}\n".encode())
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)
