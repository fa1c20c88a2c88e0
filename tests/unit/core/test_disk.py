"""Errors of full file systems."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text, full_problem

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def measured(blocks: int, inodes: int, flags: int = 0) -> Any:
    return lambda _directory: SimpleNamespace(
        f_blocks=10**6, f_bavail=blocks, f_frsize=4096, f_files=10**6, f_favail=inodes, f_flag=flags
    )


@pytest.mark.parametrize(("blocks", "inodes"), [(0, 500), (10**6, 0)])
def test_a_full_file_system_is_named(tmp_path: Path, blocks: int, inodes: int) -> None:
    text = error_text(FULL, [str(tmp_path), str(tmp_path / "missing")], measured(blocks, inodes))
    assert text == f"{FULL}; full: {tmp_path}; free some space, then run this again"


@pytest.mark.parametrize(("blocks", "inodes"), [(0, 500), (10**6, 0)])
def test_a_full_file_system_is_found_before_it_fails(tmp_path: Path, blocks: int, inodes: int) -> None:
    free = f"{blocks * 4} KiB, {inodes} inodes free"
    cure = "free some space, then run this again"
    problem = full_problem([tmp_path, tmp_path / "missing"], measured(blocks, inodes))
    assert problem == f"the disk is full at {tmp_path} ({free}); {cure}"
    assert full_problem([tmp_path], measured(10**6, 500)) == ""
    assert error_text(OSError(f"{FULL}: {problem}")) == f"{FULL}: {problem}"
    assert full_problem([tmp_path], measured(blocks, inodes, os.ST_RDONLY)) == "", "an image has no free space"


def test_other_errors_and_other_file_systems_are_not_named(tmp_path: Path) -> None:
    assert error_text(FULL, [str(tmp_path)], measured(10**6, 500)) == str(FULL)
    assert error_text(OSError("other"), [str(tmp_path)], measured(0, 0)) == "other"
