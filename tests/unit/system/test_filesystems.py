"""File systems that the collection cannot use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.filesystems import (
    APP_DIRECTORIES,
    SERVICE_DIRECTORIES,
    filesystem_problem,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in APP_DIRECTORIES:
        (tmp_path / name.lstrip("/")).mkdir(parents=True)
    return tmp_path


def problem(root: Path, **flags: int) -> str:
    return filesystem_problem(APP_DIRECTORIES, root, lambda path: flags.get(path.name, 0))


def test_ordinary_file_systems_are_no_problem(root: Path) -> None:
    assert problem(root, log=os.ST_NOEXEC, etc=os.ST_NOSUID) == ""
    assert filesystem_problem(APP_DIRECTORIES, root) == ""


def test_a_service_requires_no_file_system_for_apps(root: Path) -> None:
    flags = {"opt": os.ST_RDONLY, "srv": os.ST_RDONLY, "log": os.ST_RDONLY}
    found = filesystem_problem(SERVICE_DIRECTORIES, root, lambda path: flags.get(path.name, 0))
    assert found == "/var/log is on a file system that is mounted read-only: mount it with rw"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"etc": os.ST_RDONLY}, "/etc is on a file system that is mounted read-only: mount it with rw"),
        ({"srv": os.ST_NOEXEC}, "/srv is on a file system that is mounted with noexec, and apps are started there"),
        ({"opt": os.ST_RDONLY | os.ST_NOEXEC}, "/opt is on a file system that is mounted read-only"),
    ],
)
def test_unusable_file_systems_are_reported(root: Path, flags: dict[str, int], message: str) -> None:
    assert problem(root, **flags).startswith(message)


def test_a_missing_directory_is_created_in_its_parent(root: Path) -> None:
    (root / "srv").rmdir()
    assert problem(root) == ""
    assert "/srv is on a file system" in problem(root, **{root.name: os.ST_RDONLY})


def test_a_link_without_its_target_is_reported(root: Path) -> None:
    (root / "srv").rmdir()
    (root / "srv").symlink_to("/nowhere/srv")
    assert problem(root) == "/srv is a link to /nowhere/srv, which does not exist: create it, or mount its file system"
