"""The Python of a virtual environment: the version that the entry or the source asks for, its installation and its removal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.program import PYTHON_VERSION
from ansible_collections.funnel.tornado.plugins.module_utils.building.dependency_files import PROJECT, VERSION_FILES, content
from ansible_collections.funnel.tornado.plugins.module_utils.core import private, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BUILD_SECONDS, BuildError, build_environment

#: The Python of the distribution, which runs this module: python3 of Ubuntu 22.04 would be too old.
SYSTEM_PYTHON = Path(sys.executable)

#: Directory of the Pythons that uv installs, owned by root and shared by all apps.
UV_PYTHONS = Path("/opt/python")

#: File in each of them with the time of the last build that chose it, and the seconds after which an unused one is removed: more
#: than a build takes until its environment exists.
LAST_BUILD = ".funnel-last-build"
UNUSED_SECONDS = 24 * 60 * 60

#: Lines of uv's output that show the reason of a failure.
_REASON_LINES = 8


@dataclass(frozen=True)
class PythonRequest:
    """The version of Python that an app asks for, and the key or the file that says so."""

    version: str
    origin: str


@dataclass(frozen=True)
class Interpreter:
    """A Python on this host."""

    path: Path
    version: str


def requested_python(app: App, source: Path) -> PythonRequest:
    """Return the Python of ``python.version``, or else of a file in the source, or else the system's.

    :raises BuildError: when the file asks for something else than a version of CPython.
    :raises OSError: when the file cannot be read.
    :raises TreeError: when it is not a regular file.
    """
    key = f"{VARIABLE}.{app.name}.python.version"
    if app.python.version is not None:
        return PythonRequest(app.python.version, key)
    for name in VERSION_FILES if app.source.package is None else ():
        lines = (line.partition("#")[0].strip() for line in (content(source, name) or "").splitlines())
        first = "".join(line for line in list(filter(None, lines))[:1])
        if not first:
            continue
        version = re.sub(r"^(cpython|python)[-@]?(?=3)", "", first)
        if not re.fullmatch(PYTHON_VERSION, version):
            raise BuildError(
                f"{key}: the source's {name} asks for {first[:50]!r}; only versions of CPython 3 such as 3.12 are supported. Set "
                f'this key, for instance to "system", which overrides {name}'
            )
        return PythonRequest(version, name)
    return PythonRequest("system", key)


def ensure_interpreter(app: App, request: PythonRequest) -> Interpreter:
    """Return the requested Python; have uv install it if it is missing.

    The system's Python serves a file of the source that its version satisfies; the key ``python.version`` is taken literally.

    :raises BuildError: when uv cannot install it.
    """
    system = Interpreter(SYSTEM_PYTHON, platform.python_version())
    if request.version == "system" or (request.origin in VERSION_FILES and is_version(system.version, request.version)):
        return system
    # `manual` allows this download only; uv.toml forbids all others.
    environment = build_environment() | {
        "UV_PYTHON_INSTALL_DIR": str(UV_PYTHONS),
        "UV_PYTHON_DOWNLOADS": "manual",
        "UV_NO_CACHE": "1",
        "UV_NO_PROGRESS": "1",
    }
    commands = (
        ["uv", "python", "install", "--no-config", "--no-bin", request.version],
        ["uv", "python", "find", "--no-config", "--no-project", "--managed-python", request.version],
    )
    output = ""
    with _locked(UV_PYTHONS):
        for command in commands:
            try:
                done = run(command, timeout=BUILD_SECONDS, environment=environment, check=False)
            except CommandError as error:
                raise BuildError(f"{VARIABLE}.{app.name}.python.version: {error}") from error
            output = done.output
            if done.status != 0:
                asked = "" if request.origin not in VERSION_FILES else f", for which the source's {request.origin} asks,"
                raise BuildError(
                    f"{VARIABLE}.{app.name}.python.version: Python {request.version}{asked} cannot be installed; this host has "
                    f"{system.version} as system. uv reports: {last_lines(output, _REASON_LINES)}"
                )
        # The link of a minor version moves with each patch release; an environment keeps the version that it was built with.
        path = Path(output.splitlines()[-1]).resolve()
        pythons = UV_PYTHONS.resolve()  # an administrator may have moved it to another disk
        if path.is_relative_to(pythons):
            (pythons / path.relative_to(pythons).parts[0] / LAST_BUILD).touch()
    found = re.search(r"cpython-(\d+\.\d+\.\d+)", str(path))
    return Interpreter(path, found[1] if found else request.version)


@contextlib.contextmanager
def _locked(pythons: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on the directory of Pythons, which only root can take.

    uv's own lock is a file that it makes writable for all users: a user who locked it would block all builds.

    :raises BlockingIOError: when another process holds the lock, without ``wait``.
    """
    pythons.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        lock = private.open_file(pythons / ".funnel.lock")
        opened.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        of_uv = pythons / ".lock"
        if of_uv.exists() and of_uv.stat().st_mode & 0o077:
            of_uv.unlink()
        os.close(private.open_file(of_uv))
        yield


def remove_unused_pythons(apps: Path, pythons: Path = UV_PYTHONS) -> None:
    """Remove the Pythons that a build has installed, and that no environment below ``apps`` and no recent build uses.

    Those of an administrator stay, as no build has used them.
    """
    markers = [marker for marker in pythons.glob(f"*/{LAST_BUILD}") if not marker.parent.is_symlink()]
    if not markers:
        return
    # Another process holds the lock, or the directory is read-only: the next switch removes them.
    with contextlib.suppress(OSError), _locked(pythons, wait=False):
        used = [target for link in apps.glob("*/environments/*/bin/python") if (target := _target(link, pythons))]
        for directory in (marker.parent for marker in markers if time.time() - marker.stat().st_mtime > UNUSED_SECONDS):
            if not any(target.is_relative_to(directory.resolve()) for target in used):
                tree.remove(directory)
        for link in pythons.iterdir():
            if link.is_symlink() and not link.exists():  # of a minor version
                link.unlink()


def _target(link: Path, pythons: Path) -> Path | None:
    """Return the file in ``pythons`` that the Python of an environment links to; follow no link that its builder may change."""
    try:
        target = Path(os.path.normpath(link.readlink()))
    except OSError:
        return None
    return target.resolve() if target.is_relative_to(pythons) or target.is_relative_to(pythons.resolve()) else None


def require_supported_python(app: App, source: Path, interpreter: Interpreter) -> None:
    """Verify that the project in the source supports the interpreter.

    :raises BuildError: when ``requires-python`` in its pyproject.toml excludes it.
    """
    try:
        required = tomllib.loads(content(source, PROJECT) or "").get("project", {}).get("requires-python", "")
        supported = fits(interpreter.version, required)
    except (ValueError, AttributeError, RecursionError):
        return  # the reader of the dependencies reports it
    if not supported:
        raise BuildError(
            f"{VARIABLE}.{app.name}.python.version: {PROJECT} requires Python {required}; this is {interpreter.version}. Set a "
            "version that fits"
        )


def is_version(version: str, prefix: str) -> bool:
    """Return whether ``version`` begins with the components of ``prefix``, as 3.11.2 does with 3.11."""
    components = prefix.split(".")
    return version.split(".")[: len(components)] == components


def fits(version: str, specifiers: str) -> bool:
    """Return whether a version satisfies version specifiers (PEP 440); those in another syntax are left to uv."""
    return all(_fits(version, specifier.strip()) for specifier in specifiers.split(",") if specifier.strip())


def _fits(version: str, specifier: str) -> bool:
    match = re.fullmatch(r"(~=|==|!=|<=|>=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?", specifier)
    if not match:
        return True
    operator, wanted, wildcard = match.groups()
    mine, other = ([*map(int, text.split(".")), 0, 0, 0][:3] for text in (version, wanted))
    equal = is_version(version, wanted) if wildcard else mine == other
    compare: dict[str, Callable[[], bool]] = {
        "~=": lambda: mine >= other and is_version(version, wanted.rpartition(".")[0]),
        "==": lambda: equal,
        "!=": lambda: not equal,
        "<=": lambda: mine <= other,
        ">=": lambda: mine >= other,
        "<": lambda: mine < other,
        ">": lambda: mine > other,
    }
    return compare[operator]()
