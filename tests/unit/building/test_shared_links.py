from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.shared_links import _move
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError


def move(top: Path, *names: str) -> list[str]:
    """Move the paths from the source to the seeds; return the paths of the seeds, with a final slash for directories."""
    seeds = top / "seeds"
    seeds.mkdir()
    for name in names:
        _move(top / "src", seeds, name, f"tornado_apps.shop.shared.{name}")
    return sorted(f"{path.relative_to(seeds)}{'/' if path.is_dir() else ''}" for path in seeds.rglob("*"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src/media").mkdir(parents=True)
    (tmp_path / "src/media/a.txt").touch()
    (tmp_path / "src/web.py").touch()
    return tmp_path / "src"


def test_files_of_the_source_become_seeds_and_missing_directories_are_created(tmp_path: Path, source: Path) -> None:
    names = ("media", "instance", "data/uploads", "data/conf.d/", "db.sqlite3")
    assert move(tmp_path, *names) == ["data/", "data/conf.d/", "data/uploads/", "instance/", "media/", "media/a.txt"]
    assert sorted(path.name for path in source.iterdir()) == ["data", "web.py"], "the parents of the links"


@pytest.mark.parametrize(
    ("target", "name", "problem"),
    [
        ("/etc", "link", "link is a link in the source; remove it there, or share the path that it leads to"),
        ("../../shared", "link/data", "link is a link in the source"),
        ("media", "link/a.txt", "link is a link in the source"),
        ("missing", "link", "link is a link in the source"),
    ],
)
def test_links_of_the_source_are_rejected(tmp_path: Path, source: Path, target: str, name: str, problem: str) -> None:
    (source / "link").symlink_to(target)
    with pytest.raises(BuildError, match=re.escape(f"tornado_apps.shop.shared.{name}: {problem}")):
        move(tmp_path, name)


def test_paths_below_a_file_of_the_source_are_rejected(tmp_path: Path, source: Path) -> None:
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.shared\.web\.py/x: .*/web\.py is a file in the source"):
        move(tmp_path, "web.py/x")
    assert (source / "web.py").is_file()
