"""Errors of full file systems."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def measured(blocks: int, inodes: int) -> Any:
    return lambda _directory: SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_files=10, f_favail=inodes)


@pytest.mark.parametrize(("blocks", "inodes"), [(0, 5), (10**6, 0)])
def test_a_full_file_system_is_named(tmp_path: Path, blocks: int, inodes: int) -> None:
    text = error_text(FULL, [str(tmp_path), str(tmp_path / "missing")], measured(blocks, inodes))
    assert text == f"{FULL}; full: {tmp_path}; free some space, then run this again"


def test_other_errors_and_other_file_systems_are_not_named(tmp_path: Path) -> None:
    assert error_text(FULL, [str(tmp_path)], measured(10**6, 5)) == str(FULL)
    assert error_text(OSError("other"), [str(tmp_path)], measured(0, 0)) == "other"
