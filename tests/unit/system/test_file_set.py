from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import connection_loader
from ansible.template import Templar

from ansible_collections.funnel.tornado.plugins.action.file_set import ActionModule
from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.system import file_set, systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_entries import parse_files
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import (
    File,
    FileSet,
    FileSetError,
    Transaction,
    converge,
    is_read_by_service,
)

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name

#: Checker of a daemon: reads all files of a directory and rejects the first line with "broken".
CHECKER = """
import pathlib, sys
root = pathlib.Path(sys.argv[1])
for path in sorted(root.rglob("*.conf")):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if "broken" in line:
            sys.exit(f"[emerg] broken directive in {path}:{number}\\nconfiguration file {root}/main.conf test failed")
"""
CHECK = [sys.executable, "-c", CHECKER, "{root}"]


def file(path: str, text: str, *, mode: int = 0o644, secret: bool = False, label: str = "") -> File:
    return File(path, text.encode(), mode, USER, GROUP, secret, label)


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "etc"
    (root / "sites").mkdir(parents=True)
    (root / "main.conf").write_text("old\n")
    (root / "sites/mine.old.conf").write_text("mine\n")
    (root / "sites/theirs.conf").write_text("theirs\n")
    return root


def test_files_from_before_the_clock_was_set_back_are_replaced_once(root: Path) -> None:
    os.utime(root / "main.conf", (time.time() + 86_400,) * 2)
    desired = FileSet(root, [file("main.conf", "old\n")])
    assert converge(desired).files == [str(root / "main.conf")]
    assert not converge(desired).changed


def test_applying_files_is_idempotent(root: Path) -> None:
    desired = FileSet(root, [file("main.conf", "new\n"), file("new/deep/a.conf", "a\n", mode=0o640)], owns=["sites/mine.*.conf"])
    result = converge(desired, check=CHECK)
    assert result.changed
    assert result.files == [str(root / "main.conf"), str(root / "new/deep/a.conf")]
    assert result.removed == [str(root / "sites/mine.old.conf")]
    assert tree(root) == {"main.conf": "new\n", "new/deep/a.conf": "a\n", "sites/theirs.conf": "theirs\n"}
    assert (root / "new/deep/a.conf").stat().st_mode & 0o7777 == 0o640
    assert (root / "new").stat().st_mode & 0o7777 == 0o755
    assert not converge(desired, check=["/does/not/exist"]).changed, "without differences, the check is skipped"


def test_links_replace_files_and_files_replace_links(root: Path) -> None:
    link = File("main.conf", b"sites/theirs.conf", is_link=True)
    assert converge(FileSet(root, [link]), check=CHECK).changed
    assert (root / "main.conf").readlink() == Path("sites/theirs.conf")
    assert not converge(FileSet(root, [link])).changed
    other = FileSet(root, [File("main.conf", b"elsewhere", is_link=True)])
    transaction = Transaction(other.changes())
    transaction.apply()
    assert (root / "main.conf").readlink() == Path("elsewhere")
    transaction.roll_back()
    assert (root / "main.conf").readlink() == Path("sites/theirs.conf")
    assert converge(FileSet(root, [file("main.conf", "theirs\n")])).changed, "the same text, but no link"
    assert not (root / "main.conf").is_symlink()


def test_check_mode_predicts_changes_without_making_them(root: Path) -> None:
    before = tree(root)
    desired = FileSet(root, [file("main.conf", "new\n")], absent=["sites/theirs.conf"])
    result = converge(desired, check=CHECK, check_mode=True)
    assert (result.files, result.removed) == ([str(root / "main.conf")], [str(root / "sites/theirs.conf")])
    assert tree(root) == before
    assert sorted(path.name for path in root.parent.iterdir()) == ["etc"], "the staged copy was removed"


def test_check_mode_skips_the_check_if_needed_files_are_missing(root: Path, tmp_path: Path) -> None:
    needed = tmp_path / "certificate"
    desired = FileSet(root, [File("a.conf", b"bad\n", needs=[str(needed)])])
    assert converge(desired, check=["false"], check_mode=True).changed
    needed.touch()
    with pytest.raises(FileSetError):
        converge(desired, check=["false"], check_mode=True)


def test_check_mode_works_on_a_bare_host(tmp_path: Path) -> None:
    nobody = File("a.conf", b"a\n", owner="no-such-user", group="no-such-group")
    desired = FileSet(tmp_path / "not/there", [nobody], owns=["*.conf"], absent=["b.conf"])
    result = converge(desired, check=["/no/such/daemon", "{root}"], check_mode=True)
    assert result.files == [str(tmp_path / "not/there/a.conf")]
    assert list(tmp_path.iterdir()) == []


def test_rejected_files_change_nothing_and_are_reported_with_line_and_variable(root: Path) -> None:
    before = tree(root)
    files = [file("main.conf", "new\n"), file("sites/shop.conf", "fine\n  broken on;\n", label="sites.shop.extra")]
    with pytest.raises(FileSetError) as caught:
        converge(FileSet(root, files), check=CHECK)
    message = str(caught.value)
    assert message.splitlines()[0] == "sites.shop.extra is refused, line 2: broken on;"
    assert f"[emerg] broken directive in {root}/sites/shop.conf:2" in message
    assert ".staged" not in message
    assert tree(root) == before


def test_damaged_files_of_a_later_task_do_not_prevent_the_repair_of_others(root: Path) -> None:
    (root / "sites/mine.old.conf").write_text("broken\n")
    desired = FileSet(root, [file("main.conf", "new\n")], later=["sites/mine.*"])
    result = converge(desired, check=CHECK)
    assert (root / "main.conf").read_text() == "new\n"
    assert f"[emerg] broken directive in {root}/sites/mine.old.conf:1" in result.warnings[0]
    (root / "sites/theirs.conf").write_text("broken\n")
    (root / "sites/mine.old.conf").write_text("fine\n")
    with pytest.raises(FileSetError, match=r"broken directive in .*theirs"):
        converge(FileSet(root, [file("main.conf", "newer\n")], later=["sites/mine.*"]), check=CHECK)


def test_rejected_secrets_are_not_quoted(root: Path) -> None:
    with pytest.raises(FileSetError) as caught:
        converge(FileSet(root, [file("a.conf", "broken hunter2\n", secret=True)]), check=CHECK)
    assert str(caught.value).splitlines()[0] == f"{root}/a.conf is refused"
    assert "hunter2" not in str(caught.value)


def test_the_check_runs_on_all_files_without_removed_ones(root: Path) -> None:
    (root / "sites/mine.old.conf").write_text("broken\n")
    converge(FileSet(root, [file("main.conf", "new\n")], owns=["sites/mine.*"]), check=CHECK)
    assert "sites/mine.old.conf" not in tree(root)


def test_rollback_restores_contents_modes_timestamps_links_and_directories(root: Path) -> None:
    (root / "link.conf").symlink_to("main.conf")
    os.utime(root / "main.conf", (1000, 1000))
    (root / "main.conf").chmod(0o604)
    files = [file("main.conf", "new\n"), file("link.conf", "own\n"), file("new/a.conf", "a\n")]
    before = tree(root)
    transaction = Transaction(FileSet(root, files, absent=["sites/theirs.conf"]).changes())
    transaction.apply()
    assert tree(root)["link.conf"] == "own\n"
    assert not (root / "link.conf").is_symlink()
    assert "sites/theirs.conf" not in tree(root)
    transaction.roll_back()
    assert tree(root) == before
    assert (root / "link.conf").readlink() == Path("main.conf")
    status = (root / "main.conf").stat()
    assert (status.st_mtime, status.st_mode & 0o7777) == (1000, 0o604)
    assert not (root / "new").exists()


def test_an_unknown_owner_fails_before_anything_is_live(root: Path) -> None:
    before = tree(root)
    files = [file("main.conf", "new\n"), File("new/b.conf", b"b\n", owner=USER, group="no-such-group")]
    with pytest.raises(FileSetError, match="group no-such-group, which does not exist"):
        converge(FileSet(root, files))
    assert tree(root) == before
    assert not (root / "new").exists()


def test_a_directory_at_the_path_of_a_file_is_reported(root: Path) -> None:
    with pytest.raises(FileSetError, match="sites is not a file or symbolic link"):
        converge(FileSet(root, [file("sites", "x\n")]))


def test_absolute_paths_may_be_outside_the_root(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "units/a.conf"
    converge(FileSet(root, [file(str(outside), "broken\n")]), check=CHECK)
    assert outside.read_text() == "broken\n", "the check is of the root only"


def test_diffs_show_contents_or_metadata_but_no_secrets(root: Path) -> None:
    (root / "key").write_text("hunter1\n")
    (root / "key").chmod(0o600)
    (root / "moded").write_text("same\n")
    (root / "moded").chmod(0o600)
    (root / "password").write_text("hunter0\n")
    (root / "password").chmod(0o600)
    (root / "opened").write_text("hunter3\n")
    (root / "opened").chmod(0o600)
    (root / "closed").write_text("old\n")
    (root / "closed").chmod(0o600)
    files = [
        file("key", "hunter2\n", mode=0o600, secret=True),
        file("opened", "new\n"),
        file("closed", "new\n", mode=0o600),
        file("main.conf", "new\n"),
        file("sites/theirs.conf", "theirs\n", mode=0o600),
    ]
    changes = FileSet(root, files, absent=["password"]).changes()
    diffs = {change.path.name: change.diff() for change in changes}
    assert (diffs["main.conf"]["before"], diffs["main.conf"]["after"]) == ("old\n", "new\n")
    assert diffs["closed"]["after"] == "new\n", "others may no more read it than before"
    assert "mode 0644" in diffs["theirs.conf"]["before"]
    assert "mode 0600" in diffs["theirs.conf"]["after"]
    assert "hunter" not in str(diffs), "contents of secret, newly readable and removed private files are hidden"


def test_all_invalid_entries_are_reported_at_once() -> None:
    with pytest.raises(FileSetError) as caught:
        parse_files({"../a": {"content": "x"}, "b": {"contnt": "x"}, "c": {"content": "x", "mode": 420}})
    message = str(caught.value)
    for part in (
        "files.../a: a path",
        "files.b.contnt: unknown key; did you mean content?",
        "files.c.mode: must be octal in quotes",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("on_change", "active", "changed", "action"),
    [
        ("reload", True, True, "reload"),
        ("reload", True, False, ""),
        ("reload", False, False, "start"),
        ("none", True, True, ""),
        ("restart_if_idle", True, False, ""),
        ("restart_if_idle", True, True, "deferred"),
    ],
)
def test_required_action_of_a_service(on_change: systemd.OnChange, *, active: bool, changed: bool, action: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        state = systemd.ServiceState(
            exists=True, active=active, enabled=True, main_pid=os.getpid(), started_at=0.0, loaded_at=0.0
        )
        assert child.pid in proc.children(os.getpid())
        required = systemd.required_action(systemd.ServiceSpec("x", on_change), state, changed=changed)
        child.kill()
    assert required == action


@pytest.mark.parametrize(
    ("on_change", "read"), [("restart", True), ("restart_if_idle", True), ("reload", False), ("none", False)]
)
def test_unit_files_take_effect_at_a_restart_only(on_change: systemd.OnChange, *, read: bool) -> None:
    assert is_read_by_service(Path("/etc/systemd/system/x.service.d/50-funnel.conf"), on_change) == read
    assert is_read_by_service(Path("/etc/nginx/nginx.conf"), on_change)


def test_a_changed_socket_unit_requires_a_restart() -> None:
    state = systemd.ServiceState(exists=True, active=True, enabled=True, main_pid=0, started_at=0.0, loaded_at=0.0)
    desired = systemd.ServiceSpec("x", "reload", listener="x.socket")
    assert systemd.required_action(desired, state, changed=True, listener_changed=True) == "restart"
    assert systemd.required_action(desired, state, changed=True) == "reload"


def test_a_supervisor_without_child_processes_is_restarted() -> None:
    with subprocess.Popen(["sleep", "60"]) as idle:
        state = systemd.ServiceState(exists=True, active=True, enabled=True, main_pid=idle.pid, started_at=0.0, loaded_at=0.0)
        required = systemd.required_action(systemd.ServiceSpec("x", "restart_if_idle"), state, changed=True)
        idle.kill()
    assert required == "restart"


def rendered(directory: Path, template: str, entry: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    (directory / "a.j2").write_text(template)
    loader = DataLoader()
    action = ActionModule(
        task=Task(),
        connection=connection_loader.get("ansible.builtin.local", PlayContext(), os.devnull),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    return action.render("a.conf", {"template": str(directory / "a.j2"), **entry}, variables)


def test_templates_are_rendered_with_the_variables_of_the_entry(tmp_path: Path) -> None:
    template = "# {{ ansible_managed }}\n{% for name in names %}\n  {% if name %}\n{{ name }};\n  {% endif %}\n{% endfor %}\n"
    entry = {"vars": {"names": ["a", "", "b"]}, "mode": "0600"}
    assert rendered(tmp_path, template, entry, {"names": ["not these"]}) == {
        "content": "# Ansible managed\na;\nb;\n",
        "mode": "0600",
    }


def test_an_undefined_variable_is_reported_with_file_and_template(tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match=r"files\.a\.conf: template .*a\.j2: 'missing' is undefined"):
        rendered(tmp_path, "{{ missing }}\n", {}, {})
    with pytest.raises(AnsibleActionFail, match="set either template or content, not both"):
        rendered(tmp_path, "x\n", {"content": "y"}, {})


def test_the_start_timeout_of_a_service_is_configurable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl = tmp_path / "systemctl"
    shown = "LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nMainPID=0\\n"
    shown += "ActiveEnterTimestampMonotonic=0\\nStateChangeTimestampMonotonic=0\\n"
    systemctl.write_text(f"#!/bin/sh\ncase $1 in show) printf '{shown}' ;; *) sleep 0.5 ;; esac\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    before = systemd.query("x")
    with pytest.raises(systemd.ServiceError, match=r"did not end within 0\.1 s"):
        systemd.activate(systemd.ServiceSpec("x", timeout=0.1), before, "restart")
    systemd.activate(systemd.ServiceSpec("x", timeout=30), before, "restart")


def test_files_that_break_what_worked_before_are_restored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_set, "VERIFICATION_SECONDS", 0.3)

    def find_problems() -> dict[str, str]:
        text = (root / "main.conf").read_text()
        return {"other": "was broken before"} | ({"shop": "not served"} if "broken" in text else {})

    before = tree(root)
    with pytest.raises(FileSetError, match=r"^shop: not served\n.*restored"):
        converge(FileSet(root, [file("main.conf", "broken\n")]), find_problems=find_problems)
    assert tree(root) == before
    assert converge(FileSet(root, [file("main.conf", "new\n")]), find_problems=find_problems).changed
    assert tree(root)["main.conf"] == "new\n"


def test_failed_roll_back_leaves_no_staged_file(root: Path) -> None:
    transaction = Transaction(FileSet(root, [file("main.conf", "new\n")]).changes())
    transaction.apply()
    (root / "main.conf").unlink()
    (root / "main.conf").mkdir()  # a directory that something else has put there
    with pytest.raises(IsADirectoryError):
        transaction.roll_back()
    assert [path.name for path in root.glob(".*")] == []


def test_a_disabled_service_is_enabled_before_its_restart_is_deferred() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        state = systemd.ServiceState(exists=True, active=True, enabled=False, main_pid=os.getpid(), started_at=0.0, loaded_at=0.0)
        required = systemd.required_action(systemd.ServiceSpec("x", "restart_if_idle"), state, changed=True)
        child.kill()
    assert required == "enable"
