from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.environment import (
    COMPLETE,
    _digest,
    _is_complete,
    _is_interpreter,
    _mark_complete,
    directory_revision,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.interpreter import SYSTEM_PYTHON, UV_PYTHONS, Interpreter
from ansible_collections.funnel.tornado.plugins.module_utils.building.requirements import Requirements
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError


def test_complete_marker_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("empty", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / COMPLETE).symlink_to(outside)
    assert [_is_complete(tmp_path / name) for name in ("missing", "empty", "link")] == [False, False, False]
    for name in ("empty", "link"):
        _mark_complete(tmp_path / name)
        assert _is_complete(tmp_path / name)
    assert not outside.exists()


def development_app(directory: Path) -> App:
    return load({"shop": {"source": {"directory": str(directory)}, "run": {"app": "shop:app"}, "debug": True}})["shop"]


def digest(
    revision: str = "r1", version: str = "3.13.5", path: Path = SYSTEM_PYTHON, build: dict[str, Any] | None = None, **changes: Any
) -> str:
    """Return the digest of an environment that differs in the arguments from that of other calls."""
    entry = {"source": {"git": "https://a.test/shop"}, "run": {"app": "shop:app"}, "build": build or {"env": {"CFLAGS": "-O2"}}}
    requirements = Requirements("poetry.lock", "tornado", "tornado==6.6", state=("/srv/a.whl 10 1",))
    return _digest(load({"shop": entry})["shop"], Interpreter(path, version), replace(requirements, **changes), revision)


@pytest.mark.parametrize(
    "changed",
    [
        {"entries": "tornado>=6"},
        {"constraints": "tornado==6.5"},
        {"locked": True},
        {"local": True},
        {"state": ("/srv/a.whl 10 2",)},
        {"state": ("/srv/a.whl 10 1", "https://a.test/lib@main 8f2b")},
        {"build": {"env": {"CFLAGS": "-O3"}}},
        {"build": {"env": {"CFLAGS": "-O2", "CC": "clang"}}},
        {"version": "3.13.6"},
        {"path": UV_PYTHONS / "cpython-3.13.5/bin/python3.13"},
    ],
    ids=lambda changed: str(next(iter(changed))),
)
def test_an_environment_is_shared_only_by_releases_with_equal_inputs(changed: dict[str, Any]) -> None:
    assert digest(**changed) == digest(**changed)
    assert digest(**changed) != digest()


def test_revisions_share_an_environment_unless_a_dependency_is_part_of_the_source() -> None:
    assert digest("r1") == digest("r2")
    assert digest("r1", local=True) != digest("r2", local=True)


def test_directory_revision_covers_only_the_dependencies(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r more.txt\n")
    (tmp_path / "more.txt").write_text("tornado==6.6.1\n")
    found = [directory_revision(development_app(tmp_path), tmp_path)]
    (tmp_path / "shop.py").write_text("app = None\n")
    assert directory_revision(development_app(tmp_path), tmp_path) == found[0], "a release does not contain the code"
    files = {"more.txt": "tornado==6.5\n", "uv.lock": "a", "pylock.toml": "b", "poetry.lock": "c", ".python-version": "3.12"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        found.append(directory_revision(development_app(tmp_path), tmp_path))
    assert len(set(found)) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-r requirements.txt\n", "or a file includes itself"),
        ("-r none.txt\n", "No such file"),
        ("-r /dev/zero\n", "-r /dev/zero: the file is outside the source"),
        ("-r/dev/zero\n", "-r/dev/zero: the file is outside the source"),
        ("--requirement=a/../../zero\n", "outside the source"),
        ("-c ../zero\n", "outside the source"),
        ("-r pipe\n", "pipe is not a regular file"),
        ("-r link\n", "link is not a regular file"),
    ],
)
def test_unreadable_requirements_are_reported(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BuildError, match=rf"tornado_apps\.shop\.source\.directory: .*{expected}"):
        directory_revision(development_app(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["pyproject.toml", "uv.lock", "requirements.txt", ".python-version"])
@pytest.mark.parametrize("create", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "link"])
def test_pipes_and_links_are_not_read_as_files_of_a_source(tmp_path: Path, name: str, create: Callable[[Path], None]) -> None:
    create(tmp_path / name)
    with pytest.raises(BuildError, match=rf"shop\.source\.directory: .*{re.escape(name)} is not a regular file"):
        directory_revision(development_app(tmp_path), tmp_path)


def test_missing_source_directories_are_reported(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(BuildError, match=r"directory: /\S+ is not a directory on this host"):
        directory_revision(development_app(missing), missing)


def test_only_interpreters_owned_by_root_are_linked() -> None:
    python = Path("/usr/bin/python3")
    allowed = ["/usr/bin/python3.11", "/usr/bin/python3", "/opt/python/cpython-3.12/bin/python3.12"]
    assert [_is_interpreter(Path(path), python) for path in allowed] == [True] * 3
    refused = ["/usr/bin/sh", "/srv/shop/shared/python3", "/usr/local/bin/python3"]
    assert [_is_interpreter(Path(path), python) for path in refused] == [False] * 3
