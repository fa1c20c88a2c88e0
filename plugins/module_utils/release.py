"""Building a release on a host: beside what is served, complete or not at all, and never twice from the same inputs."""

from __future__ import annotations

import compileall
import datetime
import grp
import hashlib
import json
import os
import platform
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import VARIABLE, App
from ansible_collections.funnel.tornado.plugins.module_utils.command import last_lines
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.uv import build_environment

#: nginx's group on Debian: it reaches the sockets, and nothing else of an app.
NGINX_GROUP = "www-data"

#: Python that environments are made of: the distribution's, whose security updates reach every app.
PYTHON = "/usr/bin/python3"

#: Digits of a release's id: 48 bits, so that two releases of an app do not meet in its lifetime.
ID_DIGITS = 12

#: What an environment is made of, in the source's top directory.
REQUIREMENTS = "requirements.txt"

#: Written last into an environment: one without it was broken off.
COMPLETE = ".complete"

#: Where the mirror of a git source keeps what HEAD is there.
DEFAULT_BRANCH = "refs/funnel/default"


class BuildError(Exception):
    """A release cannot be built. The message names the key of the entry that the mistake is in."""


@dataclass(frozen=True)
class Programs:
    """The texts of the two programs that every release carries."""

    launcher: str
    runner: str


@dataclass(frozen=True)
class Plan:
    """A release that may or may not exist yet: ``id`` says what it is, ``description`` is its ``release.json``."""

    id: str
    revision: str
    description: dict[str, Any]


def plan(app: App, revision: str, programs: Programs) -> Plan:
    """Return the release that ``app`` is at ``revision``, on this host.

    The id is a hash of all that makes the release behave as it does, secrets and the host's Python included.
    """
    cpus = len(os.sched_getaffinity(0))
    running = {
        "app": app.name,
        "argv": argv(app),
        "environment": app.environment,
        "processes": app.process_count(cpus),
        "port": app.port,
        "open_files": app.open_files,
        "drain": app.drain,
        "health": {"path": app.health.path, "timeout": app.health.timeout},
        "host": app.domains[0].removeprefix("*.") if app.domains else "localhost",
        "static": app.static.path if app.static else None,
        "runner": app.run.app is not None or app.run.wsgi is not None,
        "workers": {},
        "hooks": {step: shlex.split(command) for step, command in app.hooks.commands().items()},
        "hooks_once": app.hooks.once,
        "hooks_timeout": app.hooks.timeout,
        "soak": app.soak,
        "soak_errors": app.soak_errors,
    }
    inputs = [running, app.secret_environment, revision, programs.launcher, programs.runner, platform.python_version()]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
    return Plan(digest, revision, {"id": digest, "revision": revision, **running})


def argv(app: App) -> list[str]:
    """Return the command of one process, with the words in braces that the launcher replaces."""
    if app.run.command is not None:
        return shlex.split(app.run.command)
    listen = ["--socket", "{socket}"] if app.socket else ["--port", "{port}"]
    options = [*listen, "--xheaders", "--max-body-size", app.upload_size, "--drain", str(app.drain)]
    return ["python", "../runner.py", str(app.run.app), *options, "--pid-file", "{run}/{process}.pid"]


def is_built(layout: Layout, release: str) -> bool:
    """Say whether the release is there; what was broken off is not, as a release appears by a rename."""
    return (layout.release(release) / "release.json").exists()


def resolve(layout: Layout, app: App) -> str:
    """Return the commit that ``source.version`` of a git source is now, fetching what is new.

    :raises BuildError: when the repository or the version is not there.
    """
    version, url = app.source.version or "HEAD", str(app.source.git)
    path = f"{VARIABLE}.{app.name}.source"
    if not re.fullmatch(r"[0-9a-f]{40}", version) or not _has_commit(layout, version):
        _fetch(layout, url, f"{path}.git")
    for name in (DEFAULT_BRANCH,) if version == "HEAD" else (version, f"refs/heads/{version}", f"refs/tags/{version}"):
        found = _git(layout, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if found.returncode == 0:
            return found.stdout.strip()
    raise BuildError(f"{path}.version: {url} has no branch, tag or commit {version}")


def look_up(app: App) -> str | None:
    """Return what :func:`resolve` would, without fetching anything; None when the host has no git yet.

    :raises BuildError: when the repository or the version is not there.
    """
    version, url = app.source.version or "HEAD", str(app.source.git)
    if re.fullmatch(r"[0-9a-f]{40}", version):
        return version
    if not shutil.which("git"):
        return None
    listed = _git_command("ls-remote", "--", url)
    path = f"{VARIABLE}.{app.name}.source"
    if listed.returncode != 0:
        raise BuildError(f"{path}.git: {url} cannot be reached from this host: {last_lines(listed.stderr)}")
    commits = {name: commit for commit, name in (line.split("\t") for line in listed.stdout.splitlines())}
    names = (f"refs/tags/{version}^{{}}", f"refs/tags/{version}", f"refs/heads/{version}", version)
    found = next((commits[name] for name in names if name in commits), None)
    if found is None:
        raise BuildError(f"{path}.version: {url} has no branch or tag {version}")
    return found


def _has_commit(layout: Layout, commit: str) -> bool:
    return layout.mirror.exists() and _git(layout, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def _fetch(layout: Layout, url: str, path: str) -> None:
    if not layout.mirror.exists():
        layout.home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "init", "--quiet", "--bare", str(layout.mirror)], check=True, capture_output=True)
        layout.mirror.chmod(0o700)
    references = [f"+HEAD:{DEFAULT_BRANCH}", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
    fetched = _git(layout, "fetch", "--quiet", "--prune", "--force", "--", url, *references)
    if fetched.returncode != 0:
        raise BuildError(f"{path}: {url} cannot be fetched from this host: {last_lines(fetched.stderr)}")


def _git(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _git_command("--git-dir", str(layout.mirror), *arguments)


def _git_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-c", "safe.directory=*", *arguments]
    environment = os.environ | build_environment() | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


def build(layout: Layout, app: App, planned: Plan, programs: Programs, archive: Path | None, builder: str) -> None:
    """Build the release; it appears in one rename, or what was begun is removed.

    :arg archive: the packed source; None for a git source, which comes from the mirror.
    :arg builder: who asked for it, for ``release.json``.
    :raises BuildError: when something in the app's entry or its source makes it impossible.
    """
    ensure_home(layout)
    work = layout.releases / f".building-{planned.id}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(mode=0o711)
        source = work / "src"
        source.mkdir()
        _unpack(layout, planned, archive, source)
        _give(source, "root", layout.user, 0o750)
        (work / "shared").symlink_to("../../shared")
        environment = _environment(layout, app, source)
        (work / "venv").symlink_to(os.path.relpath(environment, layout.release(planned.id)))
        _publish_static(app, work)
        compileall.compile_dir(source, quiet=2, workers=1)
        _write(layout, work, planned, app, programs, builder)
        shutil.rmtree(layout.release(planned.id), ignore_errors=True)
        work.rename(layout.release(planned.id))
    except OSError as error:
        raise BuildError(f"{VARIABLE}.{app.name}: release {planned.id} cannot be built: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def ensure_home(layout: Layout) -> bool:
    """Make the app's user and directories; return whether something was missing.

    :raises BuildError: when the name belongs to another user of the host.
    """
    made = _ensure_user(layout)
    directories = {
        layout.home: (0o711, "root", "root"),
        layout.releases: (0o711, "root", "root"),
        layout.environments: (0o711, "root", "root"),
        layout.slots: (0o711, "root", "root"),
        layout.cache: (0o700, layout.user, layout.user),
        layout.shared: (0o750, layout.user, layout.user),
        layout.logs: (0o750, "root", layout.user),
    }
    for path, (mode, owner, group) in directories.items():
        made |= _ensure_directory(path, mode, owner, group)
    return made


def _ensure_user(layout: Layout) -> bool:
    try:
        home = pwd.getpwnam(layout.user).pw_dir
    except KeyError:
        home = ""
    if home == str(layout.home):
        return False
    if home:
        raise BuildError(f"{VARIABLE}.{layout.app}: the host has a user {layout.user} already ({home}); rename the app")
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(layout.home)]
    _run([*command, "--shell", "/usr/sbin/nologin", layout.user], f"{VARIABLE}.{layout.app}: no user can be made")
    return True


def _ensure_directory(path: Path, mode: int, owner: str, group: str) -> bool:
    """Make ``path`` or mend it; its owner is set before anything that the mode would let others do."""
    uid, gid = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    if path.is_dir() and not path.is_symlink():
        state = path.stat()
        if (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (mode, uid, gid):
            return False
    path.mkdir(mode=0o700, exist_ok=True)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return True


def _unpack(layout: Layout, planned: Plan, archive: Path | None, source: Path) -> None:
    packed = archive or source.parent / "source.tar"
    if archive is None:
        exported = _git(layout, "archive", "--format=tar", "--output", str(packed), planned.revision)
        if exported.returncode != 0:
            raise BuildError(f"{VARIABLE}.{layout.app}.source.git: {last_lines(exported.stderr)}")
    # tar itself refuses paths that leave the directory; Python's tarfile learnt that after Debian 12's 3.11.2 only.
    extract = ["tar", "--extract", "--no-same-owner", "--file", str(packed), "--directory", str(source)]
    _run(extract, f"{VARIABLE}.{layout.app}.source: cannot be unpacked")
    if archive is None:
        packed.unlink()


def _environment(layout: Layout, app: App, source: Path) -> Path:
    """Return the virtual environment for the source's requirements, building it when there is none yet.

    uv, and with it the build code of every dependency, runs as the app's user; what it made becomes root's afterwards.
    """
    requirements = source / REQUIREMENTS
    digest = hashlib.sha256(platform.python_version().encode())
    # One file can refer to others: whichever lie where they usually do make another environment when they change.
    for path in sorted([*source.glob("*.txt"), *source.glob("requirements/*.txt")]) if requirements.exists() else []:
        digest.update(b"\0" + path.read_bytes())
    environment = layout.environments / digest.hexdigest()[:ID_DIGITS]
    if (environment / COMPLETE).exists():
        return environment
    shutil.rmtree(environment, ignore_errors=True)
    environment.mkdir()
    try:
        _give(environment, layout.user, layout.user, 0o755)
        failure = f"{VARIABLE}.{app.name}.source: its environment cannot be made"
        _uv(layout, source, ["venv", "--quiet", "--allow-existing", "--python", PYTHON, str(environment)], failure)
        if requirements.exists():
            failure = f"{VARIABLE}.{app.name}.source: {REQUIREMENTS} cannot be installed"
            install = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(environment / "bin/python")]
            _uv(layout, source, [*install, "--requirement", REQUIREMENTS], failure)
        _give(environment, "root", "root", 0o755)
        (environment / COMPLETE).touch()
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    return environment


def _uv(layout: Layout, source: Path, arguments: list[str], failure: str) -> None:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(layout.cache),
        "UV_CACHE_DIR": str(layout.cache / "uv"),
        "UV_LINK_MODE": "copy",  # a hard link into the cache would stay the app's user's to write
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    _run(["uv", *arguments], failure, user=layout.user, environment=environment | build_environment(), directory=source)


def _run(
    command: list[str],
    failure: str,
    user: str | None = None,
    environment: dict[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a program, as ``user`` if one is named; its last words follow ``failure`` in the error."""
    options: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=directory,
            timeout=1800,
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{failure}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{failure}: {last_lines(done.stderr or done.stdout)}")


def _publish_static(app: App, work: Path) -> None:
    """Make the static files, and nothing else of the source, readable by nginx; hard links cost no space."""
    if not app.static:
        return
    files = work / "src" / app.static.path
    if not files.is_dir():
        raise BuildError(f"{VARIABLE}.{app.name}.static.path: the source has no directory {app.static.path}")
    for path in _plain_files(files):
        target = work / "static" / path.relative_to(files)
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.link(path, target)


def _plain_files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink())


def _give(tree: Path, user: str, group: str, mode: int) -> None:
    """Give ``tree`` to ``user``, its top with ``mode``: its owner may write, who reaches it may read; programs stay programs.

    From the top down: nobody but the new owner can exchange a file for a link once its directory has been given.
    """
    uid, gid = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    os.chown(tree, uid, gid)
    tree.chmod(mode)
    for root, directories, names in os.walk(tree):
        for name in [*directories, *names]:
            path = Path(root) / name
            os.chown(path, uid, gid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _write(layout: Layout, work: Path, planned: Plan, app: App, programs: Programs, builder: str) -> None:
    """Write the release's own files; ``release.json`` and the secrets are for the app's user alone."""
    built = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    description = planned.description | {"built": built, "by": builder}
    private = {"release.json": json.dumps(description, indent=1), "secrets.json": json.dumps(app.secret_environment)}
    gid = grp.getgrnam(layout.user).gr_gid
    for name, text in (private | {"launch.py": programs.launcher, "runner.py": programs.runner}).items():
        path = work / name
        path.touch(mode=0o600)
        path.write_text(text)
        os.chown(path, 0, gid)
        path.chmod(0o640 if name in private else 0o755)


def prune(layout: Layout, keep: set[str], count: int) -> list[str]:
    """Remove all but the ``count`` newest releases and those in ``keep``, and environments that none uses; name them."""
    found = sorted(
        (path for path in layout.releases.iterdir() if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    gone = [path for path in found[count:] if path.name not in keep]
    for path in gone:
        shutil.rmtree(path)
    used = {(path / "venv").resolve() for path in layout.releases.iterdir()}
    for environment in layout.environments.iterdir():
        if environment not in used:
            shutil.rmtree(environment)
    return [path.name for path in gone]
