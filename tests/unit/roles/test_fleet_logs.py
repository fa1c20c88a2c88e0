from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.programs import load

enforce = load("fleet_logs", "logs").enforce


def write(path: Path, *, age: int, size: int = 8192) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def left(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Return a directory of logs whose active files are the oldest."""
    write(tmp_path / "other.log", age=9)
    write(tmp_path / "web1/shop.log", age=8)
    write(tmp_path / "web1/shop.log.1", age=3)
    write(tmp_path / "web1/shop.log.2.gz", age=4)
    write(tmp_path / "web2/stray", age=5)
    return tmp_path


def test_nothing_is_removed_within_the_limits(logs: Path) -> None:
    assert enforce(logs, 5 * 8192, 5) == []
    assert len(left(logs)) == 5


@pytest.mark.parametrize(
    ("count", "kept"),
    [
        (4, {"other.log", "web1/shop.log", "web1/shop.log.1", "web1/shop.log.2.gz"}),
        (2, {"other.log", "web1/shop.log"}),
        (1, {"web1/shop.log"}),
        (0, set()),
    ],
)
def test_the_oldest_files_are_removed_first_and_active_ones_last(logs: Path, count: int, kept: set[str]) -> None:
    enforce(logs, 10**9, count)
    assert left(logs) == kept


def test_files_count_by_disk_usage(logs: Path) -> None:
    for number in range(10):
        write(logs / f"web3/{number}.log.1", age=100 + number, size=1)
    enforce(logs, 5 * 8192 + 2 * 4096, 100)
    assert {name for name in left(logs) if name.startswith("web3/")} == {"web3/0.log.1", "web3/1.log.1"}


def test_links_are_removed_and_not_followed(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = write(tmp_path_factory.mktemp("outside") / "kept", age=0)
    (logs / "web2/link").symlink_to(outside)
    (logs / "web4").symlink_to(outside.parent)
    enforce(logs, 0, 0)
    assert outside.exists()


def test_empty_directories_are_removed_unless_they_are_new(logs: Path) -> None:
    for name in ("new", "old"):
        (logs / name).mkdir()
    os.utime(logs / "old", (10**9, 10**9))
    enforce(logs, 10**9, 100)
    assert {path.name for path in logs.iterdir() if path.is_dir()} == {"web1", "web2", "new"}
