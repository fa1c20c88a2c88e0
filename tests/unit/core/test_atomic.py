from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import atomic


def test_staged_file_is_hidden_beside_its_target_with_content_and_mode(tmp_path: Path) -> None:
    staged = atomic.stage_file(tmp_path / "site.conf", b"text", mode=0o640, uid=-1, gid=-1)
    assert staged.parent == tmp_path
    assert (staged.name[0], staged.suffix) == (".", ".new")
    assert (staged.read_bytes(), stat.S_IMODE(staged.stat().st_mode)) == (b"text", 0o640)


def test_failed_staging_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        atomic.stage_file(tmp_path / "site.conf", b"text", mode=0o640, uid=1 << 40, gid=-1)
    assert list(tmp_path.iterdir()) == []


def test_replaced_link_points_to_its_new_target_despite_an_interrupted_run(tmp_path: Path) -> None:
    link = tmp_path / "live"
    link.symlink_to("slots/a")
    atomic.stage_link(link, "slots/a")
    atomic.replace_link(link, "slots/b")
    assert str(link.readlink()) == "slots/b"
    assert list(tmp_path.iterdir()) == [link]


def test_failed_replacement_leaves_no_link(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.replace_link(tmp_path / "live", "slots/b")
    assert [path.name for path in tmp_path.iterdir()] == ["live"]
