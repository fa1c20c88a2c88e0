"""Virtual environments: the dependencies of a source, and environments of them that releases share.

uv, and with it the build code of each dependency, runs as the app's builder user. The result is copied to files owned by root.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.building.dependency_files import (
    PDM_LOCK,
    PIPFILE_LOCK,
    POETRY_LOCK,
    PROJECT,
    PYLOCK,
    REQUIREMENTS,
    SETUP,
    UV_LOCK,
    VERSION_FILES,
    content,
    has_file,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.integrity import MAX_REPAIRS, is_intact, seal
from ansible_collections.funnel.tornado.plugins.module_utils.building.interpreter import (
    SYSTEM_PYTHON,
    UV_PYTHONS,
    Interpreter,
    ensure_interpreter,
    requested_python,
    require_supported_python,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.requirements import (
    Requirements,
    file_states,
    list_paths,
    read_requirements,
    requirement_lines,
    run_uv,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.runner_packages import runner_packages
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import time_limit
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import READ_SECONDS, Builder, BuildError, as_user

#: File that marks an environment as complete; without it the build was interrupted.
COMPLETE = ".complete"

#: Length of the hash that names an environment, in hex digits.
HASH_DIGITS = 12


@dataclass(frozen=True)
class Environment:
    """A virtual environment on this host, and whether it was built just now.

    ``package``: the source is a package that is installed itself, in each release.
    """

    path: Path
    built: bool
    package: bool = False

    @property
    def packages(self) -> Path:
        """The site-packages directory."""
        return next(self.path.glob("lib/python3*/site-packages"))


def ensure_environment(layout: Layout, app: App, source: Path, revision: str) -> Environment:
    """Return the environment for the source; build it unless one with the same dependencies and Python exists.

    :raises BuildError: when its Python or a dependency cannot be installed.
    """
    interpreter = _choose_interpreter(layout, app, source)
    requirements = read_requirements(layout, app, source, interpreter.path)
    path = _choose_path(layout, _digest(app, interpreter, requirements, revision))
    if _is_complete(path):
        return Environment(path, built=False, package=requirements.package)
    builder = Builder(layout)
    tree.remove(path)
    builder.make_directory(path)
    try:
        failure = f"{VARIABLE}.{app.name}.python: cannot create the virtual environment"
        create = ["venv", "--quiet", "--allow-existing", "--python", str(interpreter.path), str(path)]
        run_uv(layout, app, source, create, failure)
        if requirements.entries:
            _install(layout, app, source, path, requirements)
        _install_runner_packages(layout, app, source, path)
        builder.take_ownership(
            path, f"{VARIABLE}.{app.name}.source", allow=lambda outside: _is_interpreter(outside, interpreter.path)
        )
        _mark_complete(path)
        seal(path)
    except BaseException:
        tree.remove(path)
        raise
    return Environment(path, built=True, package=requirements.package)


def _choose_path(layout: Layout, digest: str) -> Path:
    """Return the path of an environment; not that of a damaged one, which processes of the live release still use."""
    paths = [layout.environments / f"{digest}{f'.{count}' if count else ''}" for count in range(MAX_REPAIRS)]
    return next((path for path in paths if not _is_complete(path) or is_intact(path)), paths[0])


def _choose_interpreter(layout: Layout, app: App, source: Path) -> Interpreter:
    try:
        with as_user(layout.builder):
            request = requested_python(app, source)
        interpreter = ensure_interpreter(app, request)
        with as_user(layout.builder):
            require_supported_python(app, source, interpreter)
    except (OSError, ValueError, TreeError) as error:
        raise BuildError(f"{VARIABLE}.{app.name}.source: {error}") from error
    return interpreter


def _digest(app: App, interpreter: Interpreter, requirements: Requirements, revision: str) -> str:
    """Return the hash of everything that determines the content of an environment."""
    inputs = [
        interpreter.version if interpreter.path == SYSTEM_PYTHON else str(interpreter.path),
        requirements.entries,
        requirements.constraints,
        requirements.locked,
        revision if requirements.local else "",
        requirements.state,
        list(runner_packages(app).values()),
        app.build.environment,
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]


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
        with time_limit(READ_SECONDS, f"its requirements cannot be read within {READ_SECONDS} s"):
            for name in (UV_LOCK, PYLOCK, POETRY_LOCK, PDM_LOCK, PIPFILE_LOCK, PROJECT, SETUP, *VERSION_FILES):
                digest.update((content(directory, name) or "").encode())
            if has_file(directory, REQUIREMENTS):
                lines = requirement_lines(directory)
                states = (state for path in list_paths(directory, lines) for state in file_states(path))
                digest.update("\n".join([*lines, *states]).encode())
    except (OSError, ValueError, TreeError) as error:
        raise BuildError(f"{key}: {error}") from error
    return digest.hexdigest()


def _is_complete(path: Path) -> bool:
    """Return whether root has marked the environment as complete; the builder could create a file of the same name."""
    marker = tree.state(path / COMPLETE, trusted=path.parent)
    return marker is not None and stat.S_ISREG(marker.st_mode) and marker.st_uid == path.lstat().st_uid == os.geteuid()


def _mark_complete(owned: Path) -> None:
    """Mark an environment that belongs to root as complete."""
    (owned / COMPLETE).unlink(missing_ok=True)
    os.close(os.open(owned / COMPLETE, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))


def _install(layout: Layout, app: App, source: Path, path: Path, requirements: Requirements) -> None:
    options = ["--quiet", "--compile-bytecode", "--no-editable", "--python", str(path / "bin/python")]
    lines = f"{requirements.entries}\n{requirements.constraints}".splitlines()
    if requirements.locked:
        options.append("--no-deps")  # a lock may differ from what dependencies declare, as with uv's overrides
    elif requirements.constraints:
        options.append("--prerelease=allow")  # where the lock has one
        if all("--hash=" in line for line in lines if line):
            options.append("--require-hashes")  # a package that is not in the lock has none
    elif "--hash" in requirements.entries:
        options.append("--require-hashes")  # as pip does: one hash requires hashes for all
    failure = f"{VARIABLE}.{app.name}.source: {requirements.origin} cannot be installed"
    install = ["pip", "install", *options]
    if requirements.origin in (REQUIREMENTS, PROJECT, SETUP):  # read in place, as it may refer to other files
        run_uv(layout, app, source, [*install, "--requirement", requirements.origin], failure)
        return
    if requirements.constraints:
        constraints = path / "constraints.txt"
        with as_user(layout.builder):
            constraints.write_text(requirements.constraints, encoding="utf-8")
        install += ["--constraint", str(constraints)]
    with tempfile.TemporaryFile() as file:
        file.write(requirements.entries.encode())
        file.seek(0)
        run_uv(layout, app, source, [*install, "--requirement", "-"], failure, given=file.fileno())


def _install_runner_packages(layout: Layout, app: App, source: Path, path: Path) -> None:
    """Install the packages of the runner that the app does not depend on; versions that are installed already stay."""
    with as_user(layout.builder):
        packages = Environment(path, built=True).packages
        missing = [requirement for name, requirement in runner_packages(app).items() if not (packages / name).is_dir()]
    if missing:
        failure = f"{VARIABLE}.{app.name}.run: {', '.join(missing)}, which the runner needs, cannot be installed"
        install = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(path / "bin/python"), *missing]
        run_uv(layout, app, source, install, failure)


def install_package(layout: Layout, app: App, source: Path, target: Path, environment: Environment) -> None:
    """Install a source that is a package into ``target``, with its metadata and commands but without its dependencies.

    The builder user owns the result, which ``hooks.build`` may use.

    :raises BuildError: when its build fails.
    """
    key = f"{VARIABLE}.{app.name}.source"
    Builder(layout).make_directory(target)
    options = ["--quiet", "--no-deps", "--compile-bytecode", "--python", str(environment.path / "bin/python")]
    failure = (
        f"{key}: the source is a package, because its {PROJECT} has a build system, and cannot be installed. If it is none, set "
        "package = false in [tool.uv], or package-mode = false in [tool.poetry]"
    )
    run_uv(layout, app, source, ["pip", "install", *options, "--target", str(target), "."], failure)
