from __future__ import annotations

import fcntl
import os
import platform
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.interpreter import (
    LAST_BUILD,
    SYSTEM_PYTHON,
    UNUSED_SECONDS,
    Interpreter,
    PythonRequest,
    ensure_interpreter,
    fits,
    remove_unused_pythons,
    requested_python,
    require_supported_python,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

MINOR = ".".join(platform.python_version_tuple()[:2])


def app(**keys: Any) -> App:
    return load({"shop": {"source": {"path": "."}, "run": {"app": "web:app"}, **keys}})["shop"]


@pytest.mark.parametrize(
    ("files", "version", "origin"),
    [
        ({}, "system", "tornado_apps.shop.python.version"),
        ({".python-version": "3.12\n"}, "3.12", ".python-version"),
        ({".python-version": "# pyenv\n\n3.12.4\n3.11.9\n"}, "3.12.4", ".python-version"),
        ({".python-version": "cpython-3.12\n"}, "3.12", ".python-version"),
        ({".python-version": "system\n"}, "system", ".python-version"),
        ({"runtime.txt": "python-3.11.9"}, "3.11.9", "runtime.txt"),
        ({"runtime.txt": "python-3.11.9", ".python-version": "3.12"}, "3.12", ".python-version"),
        ({".python-version": "\n"}, "system", "tornado_apps.shop.python.version"),
    ],
)
def test_files_of_the_source_select_the_version(tmp_path: Path, files: dict[str, str], version: str, origin: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert requested_python(app(), tmp_path) == PythonRequest(version, origin)


def test_the_key_takes_precedence_over_files(tmp_path: Path) -> None:
    (tmp_path / ".python-version").write_text("pypy3.10\n")
    assert requested_python(app(python={"version": "3.12"}), tmp_path).version == "3.12"


@pytest.mark.parametrize("text", ["pypy3.10-7.3.12", "python-2.7.18", "3.13t", "shop-env", "3.x"])
def test_other_versions_are_refused_with_the_cure(tmp_path: Path, text: str) -> None:
    (tmp_path / ".python-version").write_text(f"{text}\n")
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.python\.version: .*\.python-version asks for .*overrides"):
        requested_python(app(), tmp_path)


def test_the_python_of_the_system_serves_a_file_that_it_satisfies() -> None:
    for version, origin in ((MINOR, ".python-version"), ("system", "tornado_apps.shop.python.version")):
        assert ensure_interpreter(app(), PythonRequest(version, origin)) == Interpreter(SYSTEM_PYTHON, platform.python_version())


@pytest.mark.parametrize(
    ("specifiers", "expected"),
    [
        ("", True),
        (">=3.9", True),
        (">=3.12", False),
        (">=3.9, <3.11", False),
        (">=3.9,<4,!=3.11.*", False),
        ("==3.11.*", True),
        ("~=3.11", True),
        ("~=3.10.1", False),
        ("!=3.11.2", False),
        ("<=3.11", False),
        ("^3.12", True),
    ],
)
def test_versions_are_compared_with_requires_python(specifiers: str, *, expected: bool) -> None:
    assert fits("3.11.2", specifiers) is expected


def test_a_python_that_the_project_excludes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'shop'\nrequires-python = '>=3.12'\n")
    with pytest.raises(BuildError, match=r"python\.version: pyproject.toml requires Python >=3.12; this is 3.11.2"):
        require_supported_python(app(), tmp_path, Interpreter(SYSTEM_PYTHON, "3.11.2"))
    require_supported_python(app(), tmp_path, Interpreter(SYSTEM_PYTHON, "3.13.0"))


@pytest.fixture
def pythons(tmp_path: Path) -> Path:
    """Create Pythons, each with a link of its minor version: used by an environment, unused, used just now, not by a build."""
    for number, name in enumerate(("used", "unused", "recent", "manual")):
        (tmp_path / f"pythons/cpython-3.{number}.1/bin").mkdir(parents=True)
        (tmp_path / f"pythons/cpython-3.{number}.1/bin/python3").write_text(name)
        (tmp_path / f"pythons/cpython-3.{number}").symlink_to(f"cpython-3.{number}.1")
        if name != "manual":
            marker = tmp_path / f"pythons/cpython-3.{number}.1" / LAST_BUILD
            marker.touch()
            age = 0 if name == "recent" else UNUSED_SECONDS + 60
            os.utime(marker, (time.time() - age,) * 2)
    environment = tmp_path / "apps/shop/environments/e1/bin"
    environment.mkdir(parents=True)
    (environment / "python").symlink_to(tmp_path / "pythons/cpython-3.0/bin/python3")
    return tmp_path / "pythons"


def test_unused_pythons_are_removed(pythons: Path, tmp_path: Path) -> None:
    remove_unused_pythons(tmp_path / "apps", pythons)
    kept = {f"cpython-3.{number}{patch}" for number in (0, 2, 3) for patch in ("", ".1")}
    assert {path.name for path in pythons.iterdir() if path.name.startswith("cpython")} == kept


def test_pythons_in_a_directory_that_was_moved_stay(pythons: Path, tmp_path: Path) -> None:
    moved = pythons.rename(tmp_path / "moved")
    pythons.symlink_to(moved)
    later = tmp_path / "apps/blog/environments/e2/bin/python"
    later.parent.mkdir(parents=True)
    later.symlink_to(moved / "cpython-3.1.1/bin/python3")
    remove_unused_pythons(tmp_path / "apps", pythons)
    assert (moved / "cpython-3.0.1").exists()
    assert (moved / "cpython-3.1.1").exists()


def test_links_of_builders_do_not_break_the_removal_of_pythons(pythons: Path, tmp_path: Path) -> None:
    targets = (str(pythons), f"{pythons}/../..", f"{pythons}/cpython-3.1.1/../..", "python", "a" * 200)
    for number, target in enumerate(targets):
        link = tmp_path / f"apps/evil/environments/e{number}/bin/python"
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
    remove_unused_pythons(tmp_path / "apps", pythons)
    assert not (pythons / "cpython-3.1.1").exists()


def test_pythons_stay_while_a_build_installs_one(pythons: Path, tmp_path: Path) -> None:
    with (pythons / ".funnel.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_unused_pythons(tmp_path / "apps", pythons)
    assert (pythons / "cpython-3.1.1").exists()


def test_no_other_user_can_hold_the_locks_of_the_pythons(pythons: Path, tmp_path: Path) -> None:
    """The lock of uv has mode 0666, so that any app could block the builds of all others."""
    (pythons / ".lock").touch()
    (pythons / ".lock").chmod(0o666)
    with (pythons / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_unused_pythons(tmp_path / "apps", pythons)
        with (pythons / ".lock").open() as of_root:
            fcntl.flock(of_root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [stat.S_IMODE((pythons / name).stat().st_mode) for name in (".lock", ".funnel.lock")] == [0o600] * 2
