"""The dependencies that a source declares, and what they refer to at present."""

from __future__ import annotations

import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.building import locks
from ansible_collections.funnel.tornado.plugins.module_utils.building.dependency_files import (
    MAX_FILE_BYTES,
    PDM_LOCK,
    PIPFILE_LOCK,
    POETRY_LOCK,
    PROJECT,
    PYLOCK,
    REQUIREMENTS,
    SETUP,
    UV_LOCK,
    content,
    has_file,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import Builder, BuildError, as_user, build_environment
from ansible_collections.funnel.tornado.plugins.module_utils.system.pip_configuration import (
    PipConfigurationError,
    uv_environment,
    uv_options,
)

#: Number of files that requirements.txt may include, also indirectly.
MAX_INCLUDES = 50

#: A line that includes a requirements or constraints file.
INCLUDE = re.compile(r"(?:-[rc]\s*=?|--(?:requirement|constraint)[\s=])\s*(\S.*)")

#: A line whose argument is a path or a URL, whatever it looks like.
_PATH_OPTION = re.compile(r"(?:-[fe]|--(?:find-links|editable))[\s=]*(\S.*)")

#: The ends of names of packages: a requirement that has one is a file.
_PACKAGE_SUFFIXES = (".whl", ".tar.gz", ".zip")

#: The URL of a git repository in a requirement (PEP 508).
_GIT_URL = re.compile(r"git\+(\S+)")

#: Limits of the query for the branches of dependencies: repositories, and seconds for each.
MAX_REPOSITORIES = 50
_QUERY_SECONDS = 60

#: Limits of the query for local files of dependencies: paths, and entries of a directory.
MAX_PATHS = 100
_MAX_ENTRIES = 10_000

#: Exceptions of reading a file that has another structure than its format.
_STRUCTURE = (KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Requirements:
    """Dependencies: ``entries`` in the format of a requirements file.

    ``origin`` is the file that declares them, for messages. ``constraints`` limit the versions of further dependencies.
    ``locked``: they are complete, so no versions are resolved. ``local``: some are part of the source, so that other revisions
    cannot share the environment. ``package``: the source is a package that is installed itself. ``state`` is what they refer to
    at present: the commits of branches, and files outside of the source.
    """

    origin: str = ""
    entries: str = ""
    constraints: str = ""
    locked: bool = False
    local: bool = False
    package: bool = False
    state: tuple[str, ...] = ()


def read_requirements(layout: Layout, app: App, source: Path, python: Path) -> Requirements:
    """Return the dependencies that the source declares.

    :raises BuildError: when they cannot be read.
    """
    key = f"{VARIABLE}.{app.name}.source"
    try:
        with as_user(layout.builder):
            found = _declared(app, source)
        if found.origin == UV_LOCK:
            found = replace(found, entries=_export(layout, app, source, python))
        with as_user(layout.builder):
            lines = found.entries.splitlines()
            paths = list_paths(source, lines)
            outside = [path for path in paths if not _is_inside(path, source)]
            states = [state for path in outside for state in file_states(path)]
        references = git_references(lines)
    except (OSError, ValueError, TreeError) as error:
        raise BuildError(f"{key}: {error}") from error
    commits = _commits(layout, app, source, references)
    return replace(found, local=found.local or len(paths) > len(outside), state=(*states, *commits))


def _declared(app: App, source: Path) -> Requirements:
    if app.source.package is not None:
        lines = [f"{app.source.package}=={app.source.version}", *(app.source.requirements or ())]
        return Requirements("package", "\n".join(lines))
    if has_file(source, UV_LOCK) and has_file(source, PROJECT):
        return _uv_project(source)
    return requirements_from_files(source)


def _uv_project(source: Path) -> Requirements:
    """Return the requirements of uv.lock, still without entries.

    :raises ValueError: when pyproject.toml cannot be read.
    """
    try:
        return Requirements(UV_LOCK, locked=True, package=is_package(source, _project(source)))
    except _STRUCTURE as error:
        raise ValueError(f"{PROJECT} has an unknown format: {error!r}") from error


def _export(layout: Layout, app: App, source: Path, python: Path) -> str:
    export = ["export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-editable"]
    options = ["--no-header", "--no-annotate", "--python", str(python)]
    return run_uv(layout, app, source, [*export, *options], f"{VARIABLE}.{app.name}.source: {UV_LOCK} cannot be read")


def requirements_from_files(source: Path) -> Requirements:
    """Return the dependencies from the first file that declares them, other than uv.lock.

    :raises ValueError: when they cannot be read.
    :raises TreeError: when a file is not a regular file of the source, or is too large.
    """
    for name, reader in _READERS.items():
        if has_file(source, name):
            try:
                return replace(reader(source), origin=name)
            except _STRUCTURE as error:
                raise ValueError(f"{name} has an unknown format: {error!r}") from error
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if name not in str(error) else str(error)) from error
    if has_file(source, "Pipfile"):
        raise ValueError(f"the source has a Pipfile without a lock; run `pipenv lock` and add {PIPFILE_LOCK}")
    return Requirements()


def _read_pylock(source: Path) -> Requirements:
    lock = tomllib.loads(content(source, PYLOCK) or "")
    package = any(map(locks.is_project, lock.get("packages", []))) and is_package(source, _project(source))
    return Requirements(entries=_text(locks.pylock_lines(lock)), locked=True, package=package)


def _read_requirements_file(source: Path) -> Requirements:
    return Requirements(entries="\n".join(requirement_lines(source)))


def _read_poetry_lock(source: Path) -> Requirements:
    return _locked_project(source, locks.poetry_packages(tomllib.loads(content(source, POETRY_LOCK) or "")))


def _read_pdm_lock(source: Path) -> Requirements:
    return _locked_project(source, locks.pdm_packages(tomllib.loads(content(source, PDM_LOCK) or "")))


def _locked_project(source: Path, packages: Iterator[locks.LockedPackage]) -> Requirements:
    project = _project(source)
    locked = locks.lock_project(project, packages)
    return Requirements(
        entries=_text(locked.requirements), constraints=_text(locked.constraints), package=is_package(source, project)
    )


def _read_pipfile_lock(source: Path) -> Requirements:
    lock = json.loads(content(source, PIPFILE_LOCK) or "")
    return Requirements(entries=_text(locks.pipfile_lines(lock)), locked=True)


def _read_project(source: Path) -> Requirements:
    """Return the dependencies of a project without a lock, which uv resolves when it creates the environment."""
    project = _project(source)
    declared = project.get("project", {})
    package = is_package(source, project)
    if package and ("dependencies" in declared.get("dynamic", []) or "project" not in project):
        return Requirements(entries=f"-r {PROJECT}", local=True, package=True)  # its build computes them
    sources = project.get("tool", {}).get("uv", {}).get("sources", {})
    lines = [*declared.get("dependencies", []), *_source_lines(sources)]
    return Requirements(entries="\n".join(lines), package=package)


def _source_lines(sources: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sources of dependencies in ``tool.uv.sources`` in the format of requirements."""
    for name, value in sources.items():
        for entry in value if isinstance(value, list) else [value]:
            if "git" in entry:
                reference = next((entry[kind] for kind in ("rev", "tag", "branch") if kind in entry), "")
                yield f"{name} @ git+{entry['git'].removeprefix('git+')}{'@' if reference else ''}{reference}"
            elif "path" in entry:
                yield f"{name} @ ./{entry['path']}" if not entry["path"].startswith("/") else f"{name} @ {entry['path']}"
            else:
                yield f"{name} @ {json.dumps(entry, sort_keys=True)}"


def _read_setup(source: Path) -> Requirements:
    return Requirements(entries=f"-r {SETUP}", local=True, package=has_file(source, SETUP))


#: Readers by the names of files, in the order in which they are looked for.
_READERS = {
    PYLOCK: _read_pylock,
    REQUIREMENTS: _read_requirements_file,
    POETRY_LOCK: _read_poetry_lock,
    PDM_LOCK: _read_pdm_lock,
    PIPFILE_LOCK: _read_pipfile_lock,
    PROJECT: _read_project,
    SETUP: _read_setup,
}


def _project(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(content(source, PROJECT) or "")
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{PROJECT}: {error}") from error


def is_package(source: Path, project: Mapping[str, Any]) -> bool:
    """Return whether the source, whose pyproject.toml is ``project``, is a package according to its tool or its build system."""
    for name, key in (("uv", "package"), ("poetry", "package-mode"), ("pdm", "distribution")):
        value = project.get("tool", {}).get(name, {}).get(key)
        if value is not None:
            return bool(value)
    return "build-system" in project or has_file(source, SETUP)


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def requirement_lines(source: Path) -> list[str]:
    """Return the lines of requirements.txt and the files that it includes, without comments and with continuation lines joined.

    :raises OSError: when a file does not exist.
    :raises ValueError: when a file is outside the source, there are too many, or they are too large together.
    :raises TreeError: when one is not a regular file, or is too large.
    """
    return list(_RequirementsFiles(source).lines(Path(REQUIREMENTS)))


@dataclass
class _RequirementsFiles:
    """The requirements files of a source, with the number of those included and the size of all that have been read."""

    source: Path
    included: int = 0
    size: int = 0

    def lines(self, name: Path) -> Iterator[str]:
        text = tree.read(self.source / name, MAX_FILE_BYTES, trusted=self.source)
        self.size += len(text)
        if self.size > MAX_FILE_BYTES:
            raise ValueError(f"{REQUIREMENTS} and the files that it includes have more than {MAX_FILE_BYTES >> 20} MiB")
        for line in text.decode().replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].split()
            if not words or words[0].startswith("#"):
                continue
            yield " ".join(words)
            match = INCLUDE.fullmatch(" ".join(words))
            if not match or "://" in match[1]:
                continue
            self.included += 1
            if self.included > MAX_INCLUDES:
                raise ValueError(
                    f"{REQUIREMENTS} includes more than {MAX_INCLUDES} files, directly or indirectly, or a file includes itself"
                )
            inner = Path(os.path.normpath(name.parent / match[1]))
            if inner.is_absolute() or ".." in inner.parts:
                raise ValueError(f"{name}: {' '.join(words)}: the file is outside the source")
            yield from self.lines(inner)


def local_paths(directory: Path, line: str) -> Iterator[Path]:
    """Yield the existing files and directories of the host that a line of requirements refers to, other than included files.

    :arg directory: the directory of relative paths.
    """
    if INCLUDE.match(line):
        return
    option = _PATH_OPTION.fullmatch(line)
    for word in (option[1] if option else line).split():
        name = re.sub(r"^file:(//(localhost)?(?=/))?", "", word).partition("[")[0].partition("#")[0]
        is_path = bool(option) or "/" in name or name.startswith(".") or name.endswith(_PACKAGE_SUFFIXES)
        if is_path and name and "://" not in name and os.path.lexists(directory / name):
            yield directory / name


def list_paths(source: Path, lines: list[str]) -> list[Path]:
    """Return the different paths of :func:`local_paths` in all lines, relative to the source or to an included file.

    :raises ValueError: when there are too many.
    """
    included = (source / match[1] for line in lines if (match := INCLUDE.fullmatch(line)) and "://" not in match[1])
    directories = dict.fromkeys([source, *(file.parent for file in included)])
    found = dict.fromkeys(path for line in lines for directory in directories for path in local_paths(directory, line))
    if len(found) > MAX_PATHS:
        raise ValueError(f"the dependencies refer to more than {MAX_PATHS} files and directories of the host")
    return list(found)


def _is_inside(path: Path, source: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(source)


def file_states(path: Path) -> Iterator[str]:
    """Yield the size and time of a file, or those of a directory and its entries."""
    found = path.stat()
    yield f"{path} {found.st_size} {found.st_mtime_ns}"
    if path.is_dir():
        with os.scandir(path) as entries:
            for entry in sorted(itertools.islice(entries, _MAX_ENTRIES), key=lambda entry: entry.name):
                state = entry.stat(follow_symlinks=False)
                yield f"{entry.name} {state.st_size} {state.st_mtime_ns}"


def git_references(lines: list[str]) -> list[tuple[str, str]]:
    """Return the URL and the reference of each git repository in lines of requirements; the reference is empty for HEAD.

    :raises ValueError: when there are too many, or a URL is invalid.
    """
    found: dict[tuple[str, str], None] = {}
    for match in (match for line in lines for match in _GIT_URL.finditer(line)):
        parts = urlsplit(match[1].partition("#")[0].rstrip(";\"'"))
        path, _at, reference = parts.path.rpartition("@") if "@" in parts.path else (parts.path, "", "")
        found[urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), reference] = None
        if len(found) > MAX_REPOSITORIES:
            raise ValueError(f"the dependencies refer to more than {MAX_REPOSITORIES} git repositories")
    return list(found)


def _commits(layout: Layout, app: App, source: Path, references: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the present commit of each branch and tag.

    :raises BuildError: when a repository cannot be reached.
    """
    for url, name in references:
        if re.fullmatch(r"[0-9a-f]{40}", name):
            continue
        failure = f"{VARIABLE}.{app.name}.source: {url}, the git repository of a dependency, cannot be reached from this host"
        listed = Builder(layout).run(
            ["git", "-c", "safe.directory=*", "ls-remote", "--", url, name or "HEAD"],
            failure,
            directory=source,
            environment={"GIT_TERMINAL_PROMPT": "0"} | build_environment(),
            timeout=_QUERY_SECONDS,
        )
        yield f"{url}@{name} {listed}"


def _index_settings(app: App) -> tuple[dict[str, str], list[str]]:
    """Return the environment and the options of uv for its indexes: those of the inventory, or else those of pip on the host.

    :raises BuildError: when the configuration of pip cannot be read.
    """
    configured = build_environment()
    try:
        inherited, options = uv_environment(configured), uv_options(configured)
    except PipConfigurationError as error:
        raise BuildError(str(error)) from error
    own = {name: value for name, value in configured.items() if name not in inherited}
    return inherited | app.build.environment | own, options


def run_uv(layout: Layout, app: App, source: Path, arguments: list[str], failure: str, *, given: int | None = None) -> str:
    """Run uv as the builder user in the directory of the source, whose uv settings apply; return its output."""
    indexes, options = _index_settings(app)
    environment = {
        "UV_CACHE_DIR": str(layout.cache / "uv"),
        "UV_LINK_MODE": "copy",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    return Builder(layout).run(
        ["uv", *arguments, *options],
        failure,
        directory=source,
        environment=indexes | environment,
        stdin=given,
    )
