"""Directories that only root may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.protected_directories import protect


@pytest.mark.parametrize(("mode", "expected"), [(0o777, 0o755), (0o770, 0o750), (0o1733, 0o1711)])
def test_access_of_others_to_change_a_directory_is_taken(tmp_path: Path, mode: int, expected: int) -> None:
    damaged = tmp_path / "sites"
    damaged.mkdir()
    damaged.chmod(mode)
    assert protect([damaged], check_mode=True) == [str(damaged)]
    assert damaged.stat().st_mode & 0o7777 == mode
    assert protect([damaged], check_mode=False) == [str(damaged)]
    assert damaged.stat().st_mode & 0o7777 == expected
    assert protect([damaged], check_mode=False) == []


def test_missing_directories_and_links_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target").chmod(0o777)
    (tmp_path / "link").symlink_to("target")
    assert protect([tmp_path / "link", tmp_path / "missing"], check_mode=False) == []
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o777
