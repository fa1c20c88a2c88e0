from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.system import accounts
from ansible_collections.funnel.tornado.plugins.module_utils.system.accounts import AccountError

ME = os.getuid()
#: An id without files or processes.
OTHER = 59_998


def test_files_of_a_user_are_removed_at_any_depth_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/file").touch()
    (top / "link").symlink_to(outside)
    os.mkfifo(top / "pipe")
    accounts.remove_owned(top, ME)
    assert list(top.iterdir()) == []
    assert outside.read_text() == "kept"


def test_files_of_other_users_are_kept(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/file").touch()
    accounts.remove_owned(tmp_path, OTHER)
    assert (tmp_path / "directory/file").exists()


def test_missing_directories_are_skipped(tmp_path: Path) -> None:
    accounts.remove_owned(tmp_path / "missing", ME)


def test_trash_of_an_interrupted_removal_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".removing-{OTHER}-1f2e/.removing-tree/deeper").mkdir(parents=True)
    accounts.remove_owned(tmp_path, OTHER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uid", [0, -1])
def test_processes_of_root_and_of_all_users_are_never_killed(uid: int) -> None:
    with pytest.raises(AccountError, match="is not the user of an app"):
        accounts._kill_all(uid, Deadline(0))


def test_killing_the_processes_of_a_user_without_any_succeeds() -> None:
    accounts.kill_processes(OTHER, 0)


def test_ipc_objects_are_found_by_owner_and_creator(tmp_path: Path) -> None:
    table = tmp_path / "shm"
    table.write_text(
        "       key      shmid perms size  cpid  lpid nattch   uid   gid  cuid  cgid\n"
        "         0          7  1600 4096    12    12      0   997   996   997   996\n"
        "         0          8  1600 4096    12    12      0     0     0   997   996\n"
        "         0          9  1600  997    12    12      0     0     0     0     0\n"
    )
    assert list(accounts._ipc_objects(table, 997)) == [7, 8]
    assert list(accounts._ipc_objects(tmp_path / "missing", 997)) == []


def test_an_exited_process_does_not_count_for_its_user() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in proc.pids_of_user(ME)
        assert child.pid not in proc.pids_of_user(OTHER)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it becomes a zombie
        assert child.pid not in proc.pids_of_user(ME)


def test_active_and_missing_accounts_are_not_locked() -> None:
    assert not accounts.is_locked("root")
    assert not accounts.is_locked("nobody-has-this-name")
