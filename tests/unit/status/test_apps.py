from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import ProcessInfo
from ansible_collections.funnel.tornado.plugins.module_utils.status.apps import (
    AppStatus,
    CertificateStatus,
    Failure,
    ProcessStatus,
    _process_status,
    _restarts,
    app_status,
    app_statuses,
)


def process(**changes: Any) -> ProcessStatus:
    fields: dict[str, Any] = {
        "app": "shop",
        "slot": "a",
        "live": True,
        "worker": "",
        "process": 0,
        "release": "1f2e",
        "state": "RUNNING",
        "pid": 812,
        "uptime": 93_784,
        "restarts": 2,
        "connections": 3,
        "open_files": 20,
        "open_files_limit": 16_384,
        "rss": 31 * 2**20,
        "health": 200,
        "accepted": True,
    }
    return ProcessStatus(**(fields | changes))


@pytest.mark.parametrize("changes", [{"state": "FATAL"}, {"accepted": False}, {"worker": "queue", "state": "EXITED"}])
def test_a_process_that_does_not_run_or_is_unhealthy_is_a_problem(changes: dict[str, Any]) -> None:
    assert process().problem == ""
    assert process(worker="queue", accepted=False).problem == "", "workers have no health check"
    assert process(**changes).problem


def test_the_problem_names_the_process() -> None:
    assert process(state="STOPPED", health=0).problem == "shop: process a/0 is STOPPED, health 0"


def test_a_service_with_a_stale_certificate_is_named_with_the_command_that_shows_why() -> None:
    found = CertificateStatus("shop", "files", ["shop.test"], "CN=ca", "2030-01-01", 90, stale=["haproxy"])
    assert "haproxy still serves the previous certificate; haproxy -c -f /etc/haproxy/haproxy.cfg shows why" in found.problem


def release(base: Path, name: str, **changes: Any) -> Layout:
    """Create a release of the app shop that is live in slot a."""
    layout = Layout("shop", base)
    manifest = ReleaseManifest(app="shop", id=name, revision="8f2b1c0d", processes=2, built="2026-01-01", by="alice")
    directory, environment = layout.release(name), layout.environments / "5a5a"
    (environment / "lib/python3.13/site-packages/tornado-6.6.dist-info").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.13.5\n")
    directory.mkdir(parents=True)
    (directory / "venv").symlink_to("../../environments/5a5a")
    layout.manifest(name).write_text(replace(manifest, **changes).to_json())
    (directory / "runner").mkdir()
    for file in ("secrets.json", "launch.py", "runner/__main__.py"):
        (directory / file).write_text("{}")
    layout.slot("a").mkdir(parents=True)
    (layout.slot("a") / "release").symlink_to(f"../../releases/{name}")
    layout.live.symlink_to("slots/a")
    return layout


def test_app_status_reports_the_live_release_and_its_environment(tmp_path: Path) -> None:
    layout = release(tmp_path, "1f2e")
    layout.history.write_text(json.dumps([{"release": "1f2e", "revision": "8f2b1c0d", "at": "2026-01-02T03:04:05", "by": "bob"}]))
    found = app_status(layout)
    assert (found.release, found.revision, found.slot, found.since, found.by) == (
        "1f2e",
        "8f2b1c0d",
        "a",
        "2026-01-02T03:04:05",
        "bob",
    )
    assert (found.tornado, found.python, found.processes, found.problem) == ("6.6", "3.13.5", 2, "")


def test_content_is_equal_only_for_hosts_with_the_same_desired_state(tmp_path: Path) -> None:
    first = app_status(release(tmp_path / "one", "1f2e"))
    other = app_status(release(tmp_path / "other", "3d4c", processes=8, built="2026-02-02", by="bob"))
    assert first.content == other.content
    assert app_status(release(tmp_path / "third", "5b6a", environment={"THEME": "dark"})).content != first.content
    layout = release(tmp_path / "fourth", "7988")
    (layout.release("7988") / "secrets.json").write_text('{"KEY": "x"}')
    assert app_status(layout).content != first.content
    layout = release(tmp_path / "fifth", "9a8b")
    (layout.release("9a8b") / "runner/__main__.py").write_text("newer")
    assert app_status(layout).content != first.content


def test_an_app_without_a_release_is_a_problem_unless_it_awaits_a_push(tmp_path: Path) -> None:
    assert app_status(Layout("shop", tmp_path)).problem == "shop: has no live release"
    assert AppStatus("shop", awaited=True).problem == ""


def starts(base: Path) -> Layout:
    layout = Layout("shop", base)
    layout.run("a").mkdir(parents=True)
    return layout


@pytest.mark.parametrize(("lines", "restarts"), [(0, 0), (1, 0), (3, 2)])
def test_every_start_but_the_first_is_a_restart(tmp_path: Path, lines: int, restarts: int) -> None:
    layout = starts(tmp_path)
    layout.starts("a", 0).write_text("812 99\n" * lines)
    assert _restarts(layout, layout.starts("a", 0)) == restarts


def test_an_app_that_replaces_its_file_of_starts_blocks_no_reader(tmp_path: Path) -> None:
    layout = starts(tmp_path)
    os.mkfifo(layout.starts("a", 0))
    layout.starts("a", 1).symlink_to("/dev/zero")
    assert [_restarts(layout, layout.starts("a", process)) for process in range(3)] == [0, 0, 0]


#: A program that opens 50 files and waits.
OPENS_FILES = "files = [open('/dev/null') for number in range(50)]; print('ready', flush=True); input()"


def test_files_and_memory_are_those_of_the_program_and_not_of_its_shell(tmp_path: Path) -> None:
    process_group = ProcessGroup(release(tmp_path, "1f2e"), "a", "1f2e", None)
    command = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, OPENS_FILES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0) as shell:
        try:
            assert shell.stdout is not None
            assert shell.stdout.readline() == "ready\n"
            info = ProcessInfo("0", "shop-a.queue", "RUNNING", shell.pid, "")
            found = _process_status(process_group, "queue", info, proc.process_groups())
            assert proc.count_open_files(shell.pid) < 50 <= found.open_files
            assert found.rss > 2 * proc.rss(shell.pid) > 0
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def test_an_environment_cannot_inject_text_in_place_of_versions(tmp_path: Path) -> None:
    layout = release(tmp_path, "1f2e")
    packages = layout.environments / "5a5a/lib/python3.13/site-packages"
    (packages / "tornado-6.6.dist-info").rename(packages / "tornado-6.6\nweb1: all is well.dist-info")
    (layout.environments / "5a5a/pyvenv.cfg").unlink()
    (layout.environments / "5a5a/pyvenv.cfg").symlink_to("/dev/zero")
    found = app_status(layout)
    assert (found.release, found.tornado, found.python) == ("1f2e", "", "")


def test_an_app_that_cannot_be_read_does_not_affect_others(tmp_path: Path) -> None:
    shop = release(tmp_path, "1f2e")
    blog = Layout("blog", tmp_path)
    blog.slot("a").mkdir(parents=True)
    (blog.slot("a") / "release").symlink_to("../../releases/none")
    blog.live.symlink_to("slots/a")
    failed, found = app_statuses([blog, shop])
    assert isinstance(failed, Failure)
    assert failed.problem.startswith("blog: cannot read its live release: ")
    assert isinstance(found, AppStatus)
    assert found.release == "1f2e"
