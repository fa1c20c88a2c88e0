"""Virtual environments: the dependencies of a source, and environments of them that releases share.

uv, and with it the build code of each dependency, runs as the app's builder user. The result is copied to files owned by root.
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
from ansible_collections.funnel.tornado.plugins.module_utils.building.runner_packages import runner_packages
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

#: The Python of the distribution, which runs this module: python3 of Ubuntu 22.04 would be too old.
SYSTEM_PYTHON = Path(sys.executable)

#: Directory of the Pythons that uv installs, owned by root and shared by all apps.
UV_PYTHONS = Path("/opt/python")

#: Files in the top-level directory of a source that declare its dependencies; the first one that exists is used.
UV_LOCK, PYLOCK, REQUIREMENTS, PROJECT = "uv.lock", "pylock.toml", "requirements.txt", "pyproject.toml"

#: Maximum size of a file with dependencies in bytes, and number of files that requirements.txt may include, also indirectly.
MAX_FILE_BYTES = 8 << 20
MAX_INCLUDES = 50

#: A line that includes a requirements or constraints file.
INCLUDE = re.compile(r"(?:-[rc]\s*=?|--(?:requirement|constraint)[\s=])\s*(\S.*)")

#: File that marks an environment as complete; without it the build was interrupted.
COMPLETE = ".complete"

#: Length of the hash that names an environment, in hex digits.
HASH_DIGITS = 12


@dataclass(frozen=True)
class Requirements:
    """Dependencies in the format of a requirements file.

    ``origin`` is the file that declares them, for messages. ``locked``: they are complete, so no versions are resolved.
    ``local``: some are part of the source, so that other revisions cannot share the environment.
    """

    origin: str = ""
    text: str = ""
    locked: bool = False
    local: bool = False


@dataclass(frozen=True)
class Environment:
    """A virtual environment on this host, and whether it was built just now."""

    path: Path
    built: bool

    @property
    def packages(self) -> Path:
        """The site-packages directory."""
        return next(self.path.glob("lib/python3*/site-packages"))


def ensure_environment(layout: Layout, app: App, source: Path, revision: str) -> Environment:
    """Return the environment for the source; build it unless one with the same dependencies and Python exists.

    :raises BuildError: when its Python or a dependency cannot be installed.
    """
    python = ensure_interpreter(app)
    requirements = read_requirements(layout, app, source, python)
    version = platform.python_version() if python == SYSTEM_PYTHON else str(python)
    served_by = list(runner_packages(app).values())
    inputs = [version, requirements.text, requirements.locked, revision if requirements.local else "", served_by]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:HASH_DIGITS]
    path = layout.environments / digest
    if _is_complete(path):
        return Environment(path, built=False)
    builder = Builder(layout)
    tree.remove(path)
    builder.make_directory(path)
    try:
        failure = f"{VARIABLE}.{app.name}.python: cannot create the virtual environment"
        uv(layout, source, ["venv", "--quiet", "--allow-existing", "--python", str(python), str(path)], failure)
        if requirements.text:
            _install(layout, app, source, path, requirements)
        _install_runner_packages(layout, app, source, path)
        builder.take_ownership(path, f"{VARIABLE}.{app.name}.source", allow=lambda outside: _is_interpreter(outside, python))
        _mark_complete(path)
    except BaseException:
        tree.remove(path)
        raise
    return Environment(path, built=True)


def _is_interpreter(path: Path, python: Path) -> bool:
    """Return whether ``path`` is an interpreter owned by root, which an environment may link to."""
    return path.is_relative_to(UV_PYTHONS) or (path.parent == python.parent and path.name.startswith("python"))


def directory_revision(app: App, directory: Path) -> str:
    """Return the revision of a source that runs in place: the hash of the files with its dependencies.

    :raises BuildError: when the directory does not exist, or one of the files cannot be read.
    """
    key = f"{VARIABLE}.{app.name}.source.directory"
    if not directory.is_dir():
        raise BuildError(f"{key}: {directory} is not a directory on this host")
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
    """Return whether root has marked the environment as complete; the builder could create a file of the same name."""
    try:
        marker = (path / COMPLETE).lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(marker.st_mode) and marker.st_uid == path.lstat().st_uid == os.geteuid()


def _mark_complete(path: Path) -> None:
    (path / COMPLETE).unlink(missing_ok=True)
    os.close(os.open(path / COMPLETE, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))


def ensure_interpreter(app: App) -> Path:
    """Return the Python interpreter of the app's ``python.version``; have uv install it if it is missing.

    :raises BuildError: when uv cannot install it.
    """
    version = app.python.version
    if version == "system":
        return SYSTEM_PYTHON
    # `manual` allows this download only; uv.toml forbids all others.
    environment = build_environment() | {
        "UV_PYTHON_INSTALL_DIR": str(UV_PYTHONS),
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
    # The link of a minor version moves with each patch release; an environment keeps the version that it was built with.
    return Path(found.output.splitlines()[-1]).resolve()


def read_requirements(layout: Layout, app: App, source: Path, python: Path) -> Requirements:
    """Return the dependencies that the source declares.

    :raises BuildError: when their versions are not pinned, or they cannot be read.
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
    """Return the dependencies from any file other than uv.lock.

    :raises ValueError: when they cannot be read, or only pyproject.toml declares them, without pinned versions.
    :raises TreeError: when a file is not a regular file of the source, or is too large.
    """
    if (lock := _content(source, PYLOCK)) is not None:
        return Requirements(PYLOCK, requirements_from_pylock(tomllib.loads(lock)), locked=True)
    if has_file(source, REQUIREMENTS):
        lines = requirement_lines(source)
        return Requirements(REQUIREMENTS, "\n".join(lines), local=any(_is_local(source, line) for line in lines))
    project = tomllib.loads(_content(source, PROJECT) or "")
    if project.get("project", {}).get("dependencies"):
        raise ValueError(f"{PROJECT} has dependencies, but no file pins their versions; run `uv lock` and add {UV_LOCK}")
    return Requirements()


def has_file(source: Path, name: str) -> bool:
    """Return whether the source has an entry of any type called ``name`` in its top-level directory."""
    return os.path.lexists(source / name)


def _content(source: Path, name: str) -> str | None:
    try:
        return tree.read(source / name, MAX_FILE_BYTES, trusted=source).decode()
    except FileNotFoundError:
        return None


def requirements_from_pylock(lock: dict[str, Any]) -> str:
    """Convert a lock file (PEP 751) to lines of a requirements file.

    Packages from an index are specified by version and hashes rather than by URL, so that the host uses its own index, mirror or
    wheelhouse.

    :raises ValueError: for a package that a requirements file cannot specify.
    """
    return "".join(f"{_pylock_line(package)}\n" for package in lock.get("packages", []))


def _pylock_line(package: dict[str, Any]) -> str:
    name, archive, vcs = package["name"], package.get("archive", {}), package.get("vcs", {})
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else []), *([archive] if archive else [])]
    marker = package.get("marker", "")
    if "dependency_groups" in marker or "extras" in marker:
        raise ValueError(
            f"{PYLOCK}: {name} belongs to a dependency group or an extra ({marker}); lock only the runtime dependencies"
        )
    if vcs.get("url"):
        line = f"{name} @ {vcs['type']}+{vcs['url']}@{vcs['commit-id']}"
    elif archive.get("url"):
        line = f"{name} @ {archive['url']}"
    elif package.get("version") and files:
        line = f"{name}=={package['version']}"
    else:
        raise ValueError(f"{PYLOCK}: {name} is a local directory or file; lock a version from an index")
    hashes = sorted({f"--hash={kind}:{value}" for file in files for kind, value in file.get("hashes", {}).items()})
    return " ".join([f"{line} ; {marker}" if marker else line, *hashes])


def requirement_lines(source: Path) -> list[str]:
    """Return the lines of requirements.txt and the files that it includes, without comments and with continuation lines joined.

    :raises OSError: when a file does not exist.
    :raises ValueError: when a file is outside the source, or there are too many.
    :raises TreeError: when one is not a regular file, or is too large.
    """
    return list(_included_lines(source, Path(REQUIREMENTS), itertools.count(1)))


def _included_lines(source: Path, name: Path, included: Iterator[int]) -> Iterator[str]:
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
                f"{REQUIREMENTS} includes more than {MAX_INCLUDES} files, directly or indirectly, or a file includes itself"
            )
        inner = Path(os.path.normpath(name.parent / match[1]))
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{name}: {' '.join(words)}: the file is outside the source")
        yield from _included_lines(source, inner, included)


def _is_local(source: Path, line: str) -> bool:
    """Return whether a line of requirements refers to a file or directory of the source."""
    if line.startswith(("-r", "--requirement", "-c", "--constraint")):
        return False
    words = (word.removeprefix("--find-links=").removeprefix("file:").partition("[")[0] for word in line.split())
    return any(("/" in word or word.startswith(".")) and "://" not in word and (source / word).exists() for word in words)


def _install(layout: Layout, app: App, source: Path, path: Path, requirements: Requirements) -> None:
    options = ["--quiet", "--compile-bytecode", "--no-editable", "--python", str(path / "bin/python")]
    if requirements.locked:
        options.append("--no-deps")  # a lock may differ from what dependencies declare, as with uv's overrides
    elif "--hash" in requirements.text:
        options.append("--require-hashes")  # as pip does: one hash requires hashes for all
    failure = f"{VARIABLE}.{app.name}.source: {requirements.origin} cannot be installed"
    install = ["pip", "install", *options, "--requirement"]
    if requirements.origin == REQUIREMENTS:  # read in place, as it may refer to other files
        uv(layout, source, [*install, REQUIREMENTS], failure)
        return
    with tempfile.TemporaryFile() as file:
        file.write(requirements.text.encode())
        file.seek(0)
        uv(layout, source, [*install, "-"], failure, given=file.fileno())


def _install_runner_packages(layout: Layout, app: App, source: Path, path: Path) -> None:
    """Install the packages of the runner that the app does not depend on; versions that are installed already stay."""
    with as_user(layout.builder):
        [packages] = path.glob("lib/python3*/site-packages")
        missing = [requirement for name, requirement in runner_packages(app).items() if not (packages / name).is_dir()]
    if missing:
        failure = f"{VARIABLE}.{app.name}.run: {', '.join(missing)}, which the runner needs, cannot be installed"
        install = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(path / "bin/python"), "--", *missing]
        uv(layout, source, install, failure)


def uv(layout: Layout, source: Path, arguments: list[str], failure: str, *, given: int | None = None) -> str:
    """Run uv as the builder user in the directory of the source, whose uv settings apply; return its output."""
    environment = {
        "UV_CACHE_DIR": str(layout.cache / "uv"),
        "UV_LINK_MODE": "copy",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    return Builder(layout).run(
        ["uv", *arguments], failure, directory=source, environment=environment | build_environment(), stdin=given
    )
