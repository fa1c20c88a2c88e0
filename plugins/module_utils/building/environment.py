"""Virtual environments: which dependencies a source names, and an environment of them, built once for all its releases.

uv, and with it the build code of every dependency, runs as the user that builds the app; what it made becomes root's as a copy.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import re
import stat
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import (
    BUILD_SECONDS,
    Builder,
    BuildError,
    as_user,
    build_environment,
)

#: The distribution's Python, whose security updates reach every app: the one that this runs with, as on Ubuntu 22.04 python3 is
#: too old.
SYSTEM_PYTHON = Path(sys.executable)

#: Where uv installs others: root's, and the same for all apps.
PYTHONS = Path("/opt/python")

#: What names the dependencies, in the source's top directory; the first that is there counts.
UV_LOCK, PYLOCK, REQUIREMENTS, PROJECT = "uv.lock", "pylock.toml", "requirements.txt", "pyproject.toml"

#: Most bytes of a file that names dependencies, and how many files such a file may include, those of its includes included.
MAX_FILE_BYTES = 8 << 20
MAX_INCLUDES = 50

#: A line that includes another file, or restricts versions by one.
INCLUDE = re.compile(r"(?:-[rc]\s*=?|--(?:requirement|constraint)[\s=])\s*(\S.*)")

#: Written last into an environment: one without it was broken off.
COMPLETE = ".complete"

#: Digits of an environment's hash.
HASH_DIGITS = 12


@dataclass(frozen=True)
class Requirements:
    """Dependencies as lines of a requirements file.

    ``origin`` is what names them, for messages. ``locked``: they are complete, so nothing is resolved. ``local``: some
    are part of the source, so an environment of them is of no use to another revision.
    """

    origin: str = ""
    text: str = ""
    locked: bool = False
    local: bool = False


@dataclass(frozen=True)
class Environment:
    """A virtual environment on this host; ``built``: just now."""

    path: Path
    built: bool

    @property
    def packages(self) -> Path:
        """The directory that packages are installed to."""
        return next(self.path.glob("lib/python3*/site-packages"))


def ensure_environment(layout: Layout, app: App, source: Path, revision: str) -> Environment:
    """Return the environment for the source, building it if there is none of the same dependencies and Python.

    :raises BuildError: when its Python or a dependency cannot be had.
    """
    python = ensure_interpreter(app)
    requirements = read_requirements(layout, app, source, python)
    version = platform.python_version() if python == SYSTEM_PYTHON else str(python)
    inputs = [version, requirements.text, requirements.locked, revision if requirements.local else ""]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:HASH_DIGITS]
    path = layout.environments / digest
    if _is_complete(path):
        return Environment(path, built=False)
    builder = Builder(layout)
    tree.remove(path)
    builder.make_directory(path)
    try:
        failure = f"{VARIABLE}.{app.name}.python: its environment cannot be made"
        uv(layout, source, ["venv", "--quiet", "--allow-existing", "--python", str(python), str(path)], failure)
        if requirements.text:
            _install(layout, app, source, path, requirements)
        builder.take_ownership(path, f"{VARIABLE}.{app.name}.source", allow=lambda outside: _is_interpreter(outside, python))
        _mark_complete(path)
    except BaseException:
        tree.remove(path)
        raise
    return Environment(path, built=True)


def _is_interpreter(path: Path, python: Path) -> bool:
    """Say whether a path is that of a Python of root's, which an environment links to."""
    return path.is_relative_to(PYTHONS) or (path.parent == python.parent and path.name.startswith("python"))


def directory_revision(app: App, directory: Path) -> str:
    """Return the hash of the files that name the dependencies of a directory that is run where it lies.

    :raises BuildError: when there is no such directory, or one of the files cannot be read.
    """
    key = f"{VARIABLE}.{app.name}.source.directory"
    if not directory.is_dir():
        raise BuildError(f"{key}: this host has no directory {directory}")
    digest = hashlib.sha256(str(directory).encode())
    try:
        for name in (UV_LOCK, PYLOCK, PROJECT):
            digest.update((_content(directory, name) or "").encode())
        if has_file(directory, REQUIREMENTS):
            digest.update("\n".join(requirement_lines(directory)).encode())
    except (OSError, ValueError, TreeError) as error:
        raise BuildError(f"{key}: {error}") from error
    return digest.hexdigest()


def _is_complete(path: Path) -> bool:
    """Say whether root has found the environment finished: what is built in it could make a file of that name, too."""
    try:
        mark = (path / COMPLETE).lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mark.st_mode) and mark.st_uid == path.lstat().st_uid == os.geteuid()


def _mark_complete(path: Path) -> None:
    (path / COMPLETE).unlink(missing_ok=True)
    os.close(os.open(path / COMPLETE, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))


def ensure_interpreter(app: App) -> Path:
    """Return the Python that the app asks for, installing it if it is not the system's and not there.

    :raises BuildError: when uv cannot get it.
    """
    version = app.python.version
    if version == "system":
        return SYSTEM_PYTHON
    # `manual` allows exactly this download; uv.toml forbids all others.
    environment = build_environment() | {
        "UV_PYTHON_INSTALL_DIR": str(PYTHONS),
        "UV_PYTHON_DOWNLOADS": "manual",
        "UV_NO_CACHE": "1",
        "UV_NO_PROGRESS": "1",
    }
    try:
        install = ["uv", "python", "install", "--quiet", "--no-config", "--no-bin", version]
        run(install, timeout=BUILD_SECONDS, environment=environment)
        found = run(["uv", "python", "find", "--no-config", "--no-project", "--managed-python", version], environment=environment)
    except CommandError as error:
        raise BuildError(f"{VARIABLE}.{app.name}.python.version: Python {version} cannot be installed: {error}") from error
    # A link of a minor version moves on with the next patch release: environments are of the very one they were built with.
    return Path(found.output.splitlines()[-1]).resolve()


def read_requirements(layout: Layout, app: App, source: Path, python: Path) -> Requirements:
    """Return the dependencies that the source names.

    :raises BuildError: when they are named in a way that is different tomorrow, or cannot be read.
    """
    key = f"{VARIABLE}.{app.name}.source"
    if app.source.package is not None:
        return Requirements("package", f"{app.source.package}=={app.source.version}\n")
    try:
        with as_user(layout.builder):
            locked = has_file(source, UV_LOCK) and has_file(source, PROJECT)
            found = Requirements() if locked else requirements_from_files(source)
        if not locked:
            return found
        export = ["export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-editable"]
        options = ["--no-header", "--no-annotate", "--python", str(python)]
        text = uv(layout, source, [*export, *options], f"{key}: {UV_LOCK} cannot be read")
        with as_user(layout.builder):
            local = any(_is_local(source, line) for line in text.splitlines())
    except (OSError, ValueError, TreeError) as error:
        raise BuildError(f"{key}: {error}") from error
    return Requirements(UV_LOCK, text, locked=True, local=local)


def requirements_from_files(source: Path) -> Requirements:
    """Return the dependencies that are named by anything but a lock of uv.

    :raises ValueError: when they cannot be read, or nothing says in which versions they are meant.
    :raises TreeError: when a file is not a regular one of the source, or is too large.
    """
    if (lock := _content(source, PYLOCK)) is not None:
        return Requirements(PYLOCK, requirements_from_pylock(tomllib.loads(lock)), locked=True)
    if has_file(source, REQUIREMENTS):
        lines = requirement_lines(source)
        return Requirements(REQUIREMENTS, "\n".join(lines), local=any(_is_local(source, line) for line in lines))
    project = tomllib.loads(_content(source, PROJECT) or "")
    if project.get("project", {}).get("dependencies"):
        raise ValueError(f"{PROJECT} has dependencies, and nothing says in which versions; run `uv lock` and add {UV_LOCK}")
    return Requirements()


def has_file(source: Path, name: str) -> bool:
    """Say whether the source's top directory has a file of that name, or anything else in its place."""
    return os.path.lexists(source / name)


def _content(source: Path, name: str) -> str | None:
    try:
        return tree.read(source / name, MAX_FILE_BYTES, trusted=source).decode()
    except FileNotFoundError:
        return None


def requirements_from_pylock(lock: dict[str, Any]) -> str:
    """Return what a lock file (PEP 751) holds as lines of a requirements file.

    Packages of an index by their version and hashes, not by the address they had when they were locked: the host's own
    index, mirror or wheelhouse is asked for them.

    :raises ValueError: for a package that no line can name.
    """
    return "".join(f"{_pylock_line(package)}\n" for package in lock.get("packages", []))


def _pylock_line(package: dict[str, Any]) -> str:
    name, archive, vcs = package["name"], package.get("archive", {}), package.get("vcs", {})
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else []), *([archive] if archive else [])]
    marker = package.get("marker", "")
    if "dependency_groups" in marker or "extras" in marker:
        raise ValueError(f"{PYLOCK}: {name} is of a group or an extra ({marker}); lock only what the app runs with")
    if vcs.get("url"):
        line = f"{name} @ {vcs['type']}+{vcs['url']}@{vcs['commit-id']}"
    elif archive.get("url"):
        line = f"{name} @ {archive['url']}"
    elif package.get("version") and files:
        line = f"{name}=={package['version']}"
    else:
        raise ValueError(f"{PYLOCK}: {name} is of a directory or a file beside it; lock a version of an index")
    hashes = sorted({f"--hash={kind}:{value}" for file in files for kind, value in file.get("hashes", {}).items()})
    return " ".join([f"{line} ; {marker}" if marker else line, *hashes])


def requirement_lines(source: Path) -> list[str]:
    """Return the lines of a source's requirements file and of those it includes, comments and line breaks in them resolved.

    :raises OSError: when one is not there.
    :raises ValueError: when one lies outside of the source, or they are too many.
    :raises TreeError: when one is not a regular file, or is too large.
    """
    return list(_lines(source, Path(REQUIREMENTS), itertools.count(1)))


def _lines(source: Path, name: Path, included: Iterator[int]) -> Iterator[str]:
    for line in tree.read(source / name, MAX_FILE_BYTES, trusted=source).decode().replace("\\\n", " ").splitlines():
        words = line.partition(" #")[0].split()
        if not words or words[0].startswith("#"):
            continue
        yield " ".join(words)
        match = INCLUDE.fullmatch(" ".join(words))
        if not match or "://" in match[1]:
            continue
        if next(included, MAX_INCLUDES + 1) > MAX_INCLUDES:
            raise ValueError(
                f"{REQUIREMENTS} and what it includes include more than {MAX_INCLUDES} files, or one includes itself"
            )
        inner = Path(os.path.normpath(name.parent / match[1]))
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{name}: {' '.join(words)}: the file lies outside of the source")
        yield from _lines(source, inner, included)


def _is_local(source: Path, line: str) -> bool:
    """Say whether a line of requirements names a file or a directory of the source."""
    if line.startswith(("-r", "--requirement", "-c", "--constraint")):
        return False
    words = (word.removeprefix("--find-links=").removeprefix("file:").partition("[")[0] for word in line.split())
    return any(("/" in word or word.startswith(".")) and "://" not in word and (source / word).exists() for word in words)


def _install(layout: Layout, app: App, source: Path, path: Path, requirements: Requirements) -> None:
    options = ["--quiet", "--compile-bytecode", "--no-editable", "--python", str(path / "bin/python")]
    if requirements.locked:
        options.append("--no-deps")  # a lock may hold what dependencies do not ask for, as with uv's overrides
    elif "--hash" in requirements.text:
        options.append("--require-hashes")  # as pip does: one hash means that all are meant to have some
    failure = f"{VARIABLE}.{app.name}.source: {requirements.origin} cannot be installed"
    install = ["pip", "install", *options, "--requirement"]
    if requirements.origin == REQUIREMENTS:  # which is read where it lies, as it may refer to others beside it
        uv(layout, source, [*install, REQUIREMENTS], failure)
        return
    with tempfile.TemporaryFile() as lines:
        lines.write(requirements.text.encode())
        lines.seek(0)
        uv(layout, source, [*install, "-"], failure, given=lines.fileno())


def uv(layout: Layout, source: Path, arguments: list[str], failure: str, *, given: int | None = None) -> str:
    """Run uv as the builder in the source's directory, whose own settings of uv hold; return what it printed."""
    environment = {
        "UV_CACHE_DIR": str(layout.cache / "uv"),
        "UV_LINK_MODE": "copy",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    return Builder(layout).run(
        ["uv", *arguments], failure, directory=source, environment=environment | build_environment(), stdin=given
    )
