from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.wheelhouse import (
    WheelhouseError,
    converge,
    pack,
    package_hashes,
)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    directory = tmp_path / "wheels"
    directory.mkdir()
    for name in ("a-1-py3-none-any.whl", "b-1.tar.gz"):
        (directory / name).write_text(name)
    (directory / "README.md").touch()
    return directory


def test_only_packages_are_part_of_it(wheels: Path, tmp_path: Path) -> None:
    assert list(package_hashes(wheels)) == ["a-1-py3-none-any.whl", "b-1.tar.gz"]
    assert package_hashes(tmp_path / "nowhere") == {}


def test_it_contains_exactly_the_desired_packages(wheels: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "old-1-py3-none-any.whl").touch()
    desired = package_hashes(wheels)
    pack(wheels, desired, tmp_path / "packages.tar")
    converge(desired, tmp_path / "packages.tar", home)
    assert package_hashes(home) == desired
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "packages.tar", "wheels"]


def test_damaged_packages_change_nothing(wheels: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    desired = package_hashes(wheels)
    (wheels / "b-1.tar.gz").write_text("other")
    pack(wheels, desired, tmp_path / "packages.tar")
    with pytest.raises(WheelhouseError, match=r"b-1\.tar\.gz did not arrive as sent"):
        converge(desired, tmp_path / "packages.tar", home)
    assert package_hashes(home) == {}
