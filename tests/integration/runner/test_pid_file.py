"""The pid file and its lock."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.support.runner import is_locked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Serve


def test_pid_file_is_locked_and_removed_at_exit(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    process = serve("--pid-file", path)
    assert path.read_text() == f"{process.pid}\n"
    assert is_locked(path)
    assert process.stop() == 0
    assert not path.exists()


def test_stale_pid_file_is_replaced(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()}, which runs but holds no lock\n")
    process = serve("--pid-file", tmp_path / "pid")
    assert (tmp_path / "pid").read_text() == f"{process.pid}\n"


def test_locked_pid_file_is_refused(serve: Serve, spawn: Serve, tmp_path: Path) -> None:
    first = serve("--pid-file", tmp_path / "pid")
    second = spawn("--port", "0", "--pid-file", tmp_path / "pid")
    assert second.wait() == 1
    assert f"already running: pid {first.pid} holds the lock on {tmp_path}/pid" in second.log
    assert (tmp_path / "pid").read_text() == f"{first.pid}\n"


def test_process_starts_again_after_a_kill(serve: Serve, tmp_path: Path) -> None:
    options = ("--pid-file", tmp_path / "pid", "--socket", tmp_path / "s")
    first = serve(*options)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = serve(*options)
    assert (tmp_path / "pid").read_text() == f"{second.pid}\n"
    assert second.fetch("/whoami").json["pid"] == second.pid


def test_missing_pid_file_directory_is_reported(spawn: Serve, tmp_path: Path) -> None:
    process = spawn("--port", "0", "--pid-file", tmp_path / "none" / "pid")
    assert process.wait() == 1
    assert f"cannot use the pid file {tmp_path}/none/pid: No such file or directory" in process.log
