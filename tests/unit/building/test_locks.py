from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.locks import (
    LockedPackage,
    direct_dependencies,
    is_project,
    lock_project,
    pdm_packages,
    pipfile_lines,
    poetry_packages,
    pylock_lines,
)

WHEEL = {"url": "https://a.test/tornado.whl", "hashes": {"sha256": "aa"}}


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ({"version": "6.6", "wheels": [WHEEL]}, "tornado==6.6 --hash=sha256:aa"),
        ({"version": "6.6", "sdist": WHEEL, "marker": "os_name == 'nt'"}, "tornado==6.6 ; os_name == 'nt' --hash=sha256:aa"),
        ({"archive": WHEEL}, "tornado @ https://a.test/tornado.whl --hash=sha256:aa"),
        ({"directory": {"path": "libs/tornado"}}, "./libs/tornado"),
        ({"vcs": {"type": "git", "url": "https://a.test/t", "commit-id": "c0"}}, "tornado @ git+https://a.test/t@c0"),
    ],
)
def test_pylock_packages_become_requirements(package: dict[str, Any], line: str) -> None:
    assert pylock_lines({"packages": [{"name": "tornado", **package}]}) == [line]


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ({"version": "6.6"}, "tornado has neither files nor a URL"),
        (
            {"version": "6.6", "wheels": [WHEEL], "marker": "'dev' in dependency_groups"},
            "tornado belongs to a dependency group or an extra",
        ),
    ],
)
def test_unsupported_pylock_packages_are_rejected(package: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pylock_lines({"packages": [{"name": "tornado", **package}]})


def test_the_project_of_a_pylock_is_no_requirement() -> None:
    project = {"name": "shop", "directory": {"path": ".", "editable": True}}
    assert is_project(project)
    assert pylock_lines({"packages": [project]}) == []


POETRY_2 = """
[[package]]
name = "tornado"
version = "6.5"
groups = ["main"]
markers = "python_version >= '3.9'"
files = [{file = "tornado.whl", hash = "sha256:aa"}]

[[package]]
name = "pytest"
version = "8.0"
groups = ["dev"]
files = [{file = "pytest.whl", hash = "sha256:bb"}]

[[package]]
name = "lib"
version = "1.0"
groups = ["main", "dev"]
markers = {main = "os_name == 'posix'", dev = "os_name == 'nt'"}
files = []

[package.source]
type = "git"
url = "https://a.test/lib.git"
reference = "main"
resolved_reference = "c0ffee"
subdirectory = "python"
"""


def test_packages_of_the_main_group_of_poetry_are_locked() -> None:
    assert [package.line() for package in poetry_packages(tomllib.loads(POETRY_2))] == [
        "tornado==6.5 ; python_version >= '3.9' --hash=sha256:aa",
        "lib @ git+https://a.test/lib.git@c0ffee#subdirectory=python ; os_name == 'posix'",
    ]


def test_locks_of_poetry_1_are_readable() -> None:
    lock = (
        "[[package]]\nname = 'Tornado'\nversion = '6.5'\ncategory = 'main'\n"
        "[[package]]\nname = 'pytest'\nversion = '8.0'\ncategory = 'dev'\n"
        "[metadata.files]\nTornado = [{file = 'a', hash = 'sha256:aa'}]\n"
    )
    assert [package.line() for package in poetry_packages(tomllib.loads(lock))] == ["Tornado==6.5 --hash=sha256:aa"]


def test_direct_dependencies_are_required_in_their_locked_versions() -> None:
    project = {
        "project": {"dependencies": ["Tornado (>=6.4,<7)", "redis[hiredis]>=5 ; sys_platform == 'linux'"]},
        "tool": {
            "poetry": {
                "dependencies": {
                    "python": "^3.11",
                    "flask": "^3",
                    "celery": {"version": "^5", "extras": ["redis"]},
                    "unused": {"version": "1", "optional": True},
                    "lib": {"path": "libs/lib"},
                }
            }
        },
    }
    packages = [
        LockedPackage("tornado", "6.5", hashes=["sha256:aa"]),
        LockedPackage("redis", "5.0", marker="python_version > '3.8'"),
        LockedPackage("flask", "3.0"),
        LockedPackage("celery", "5.4"),
        LockedPackage("kombu", "5.3"),
        LockedPackage("lib", path="libs/lib"),
    ]
    locked = lock_project(project, packages)
    assert locked.requirements == [
        "tornado==6.5 --hash=sha256:aa",
        "redis[hiredis]==5.0 ; (sys_platform == 'linux') and (python_version > '3.8')",
        "flask==3.0",
        "celery[redis]==5.4",
        "./libs/lib",
    ]
    assert locked.constraints == [
        "tornado==6.5 --hash=sha256:aa",
        "redis==5.0 ; python_version > '3.8'",
        "flask==3.0",
        "celery==5.4",
        "kombu==5.3",
    ]


def test_spaces_in_a_dependency_do_not_delay_the_build() -> None:
    began, spaces = time.monotonic(), " " * 490
    with pytest.raises(ValueError, match="invalid dependency"):
        list(direct_dependencies({"project": {"dependencies": [f"tornado{spaces};{spaces}"]}}))
    assert time.monotonic() - began < 5


def test_a_dependency_that_is_not_in_the_lock_is_reported() -> None:
    with pytest.raises(ValueError, match=r"it does not contain flask, .*; lock again"):
        lock_project({"project": {"dependencies": ["flask"]}}, [])


def test_packages_of_the_default_group_of_pdm_are_locked() -> None:
    lock = (
        "[[package]]\nname = 'tornado'\nversion = '6.5'\ngroups = ['default']\nmarker = \"os_name == 'posix'\"\n"
        "files = [{file = 'a', hash = 'sha256:aa'}]\n"
        "[[package]]\nname = 'lib'\nversion = '1'\ngit = 'git@a.test:me/lib.git'\nref = 'main'\nrevision = 'c0ffee'\n"
        "[[package]]\nname = 'pytest'\nversion = '8'\ngroups = ['test']\n"
    )
    assert [package.line() for package in pdm_packages(tomllib.loads(lock))] == [
        "tornado==6.5 ; os_name == 'posix' --hash=sha256:aa",
        "lib @ git+ssh://git@a.test/me/lib.git@c0ffee",
    ]


def test_default_packages_of_a_pipfile_lock_become_requirements() -> None:
    lock: dict[str, Any] = {
        "default": {
            "tornado": {"version": "==6.5", "hashes": ["sha256:bb", "sha256:aa"], "markers": "python_version >= '3.9'"},
            "celery": {"version": "==5.4", "extras": ["redis"]},
            "lib": {"git": "https://a.test/lib", "ref": "c0ffee"},
            "own": {"path": "./libs/own"},
        },
        "develop": {"pytest": {"version": "==8"}},
    }
    assert pipfile_lines(lock) == [
        "tornado==6.5 ; python_version >= '3.9' --hash=sha256:aa --hash=sha256:bb",
        "celery[redis]==5.4",
        "lib @ git+https://a.test/lib@c0ffee",
        "./libs/own",
    ]
