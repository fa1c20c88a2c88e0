from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.status.apps import (
    App,
    CertificateState,
    Failure,
    Process,
    _restarts,
    look_at_app,
    look_at_apps,
)


def process(**changes: Any) -> Process:
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
    }
    return Process(**(fields | changes))


@pytest.mark.parametrize("changes", [{"state": "FATAL"}, {"health": 0}, {"health": 500}, {"worker": "queue", "state": "EXITED"}])
def test_well_is_running_and_healthy(changes: dict[str, Any]) -> None:
    assert process().problem == ""
    assert process(worker="queue", health=0).problem == "", "nothing asks a worker how it is"
    assert process(**changes).problem


def test_the_problem_names_the_process() -> None:
    assert process(state="STOPPED", health=0).problem == "shop: process a/0 is STOPPED, health 0"


def test_what_still_serves_a_certificate_of_before_is_named_with_what_says_why() -> None:
    found = CertificateState("shop", "files", ["shop.test"], "CN=ca", "2030-01-01", 90, stale=["haproxy"])
    assert "haproxy still serves the certificate of before; haproxy -c -f /etc/haproxy/haproxy.cfg says why" in found.problem


def release(base: Path, name: str, **changes: Any) -> Layout:
    """Make a release of the app shop in slot a and serve it."""
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


def test_an_app_is_the_release_that_is_live_and_what_it_runs_with(tmp_path: Path) -> None:
    layout = release(tmp_path, "1f2e")
    layout.history.write_text(json.dumps([{"release": "1f2e", "revision": "8f2b1c0d", "at": "2026-01-02T03:04:05", "by": "bob"}]))
    found = look_at_app(layout)
    assert (found.release, found.revision, found.slot, found.since, found.by) == (
        "1f2e",
        "8f2b1c0d",
        "a",
        "2026-01-02T03:04:05",
        "bob",
    )
    assert (found.tornado, found.python, found.processes, found.problem) == ("6.6", "3.13.5", 2, "")


def test_hosts_that_were_told_the_same_have_the_same_content_and_no_others(tmp_path: Path) -> None:
    one = look_at_app(release(tmp_path / "one", "1f2e"))
    other = look_at_app(release(tmp_path / "other", "3d4c", processes=8, built="2026-02-02", by="bob"))
    assert one.content == other.content
    assert look_at_app(release(tmp_path / "third", "5b6a", environment={"THEME": "dark"})).content != one.content
    layout = release(tmp_path / "fourth", "7988")
    (layout.release("7988") / "secrets.json").write_text('{"KEY": "x"}')
    assert look_at_app(layout).content != one.content
    layout = release(tmp_path / "fifth", "9a8b")
    (layout.release("9a8b") / "runner/__main__.py").write_text("newer")
    assert look_at_app(layout).content != one.content


def test_an_app_without_a_release_is_a_problem_unless_it_is_to_be_pushed(tmp_path: Path) -> None:
    assert look_at_app(Layout("shop", tmp_path)).problem == "shop: is not served"
    assert App("shop", awaited=True).problem == ""


def starts(base: Path) -> Layout:
    layout = Layout("shop", base)
    layout.run("a").mkdir(parents=True)
    return layout


@pytest.mark.parametrize(("lines", "restarts"), [(0, 0), (1, 0), (3, 2)])
def test_every_start_but_the_first_is_a_restart(tmp_path: Path, lines: int, restarts: int) -> None:
    layout = starts(tmp_path)
    layout.starts("a", 0).write_text("812 99\n" * lines)
    assert _restarts(layout, layout.starts("a", 0)) == restarts


def test_what_an_app_puts_in_the_place_of_its_starts_holds_nobody_up(tmp_path: Path) -> None:
    layout = starts(tmp_path)
    os.mkfifo(layout.starts("a", 0))
    layout.starts("a", 1).symlink_to("/dev/zero")
    assert [_restarts(layout, layout.starts("a", process)) for process in range(3)] == [0, 0, 0]


def test_an_environment_cannot_name_anything_but_versions(tmp_path: Path) -> None:
    layout = release(tmp_path, "1f2e")
    packages = layout.environments / "5a5a/lib/python3.13/site-packages"
    (packages / "tornado-6.6.dist-info").rename(packages / "tornado-6.6\nweb1: all is well.dist-info")
    (layout.environments / "5a5a/pyvenv.cfg").unlink()
    (layout.environments / "5a5a/pyvenv.cfg").symlink_to("/dev/zero")
    found = look_at_app(layout)
    assert (found.release, found.tornado, found.python) == ("1f2e", "", "")


def test_an_app_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    shop = release(tmp_path, "1f2e")
    blog = Layout("blog", tmp_path)
    blog.slot("a").mkdir(parents=True)
    (blog.slot("a") / "release").symlink_to("../../releases/none")
    blog.live.symlink_to("slots/a")
    failed, found = look_at_apps([blog, shop])
    assert isinstance(failed, Failure)
    assert failed.problem.startswith("blog: what is served of it cannot be read: ")
    assert isinstance(found, App)
    assert found.release == "1f2e"
