from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.changes import change_reasons
from ansible_collections.funnel.tornado.plugins.module_utils.building.integrity import seal
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import LAUNCHER_SHEBANG, Programs, plan_release
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

PROGRAMS = Programs("import os\n", {"__main__.py": "runner"})


def app(**keys: Any) -> App:
    return load({"shop": {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}, **keys}})["shop"]


def build(layout: Layout, entry: App, revision: str = "r1", programs: Programs = PROGRAMS, environment: str = "e1") -> str:
    """Write the files of a release that a build writes, as far as they matter, and return its id."""
    planned = plan_release(entry, revision, programs)
    directory = layout.release(planned.id)
    (directory / "runner").mkdir(parents=True)
    (directory / "launch.py").write_text(f"{LAUNCHER_SHEBANG}\n{programs.launcher}")
    for name, text in programs.runner.items():
        (directory / "runner" / name).write_text(text)
    (directory / "secrets.json").write_text(json.dumps(entry.secret_environment))
    (layout.environments / environment).mkdir(parents=True, exist_ok=True)
    (directory / "venv").symlink_to(f"../../environments/{environment}")
    layout.manifest(planned.id).write_text(replace(planned, built="now", by="ann@desk").to_json())
    return planned.id


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout("shop", base=tmp_path)


def serve(layout: Layout, release: str) -> None:
    layout.slot("a").mkdir(parents=True)
    layout.live.symlink_to("slots/a")
    (layout.slot("a") / "release").symlink_to(f"../../releases/{release}")


def reasons(layout: Layout, entry: App, revision: str = "r1", programs: Programs = PROGRAMS) -> list[str]:
    return change_reasons(layout, entry, plan_release(entry, revision, programs), programs)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, []),
        ({"env": {"A": "1", "B": "1"}}, {"env": {"A": "2", "C": "3"}}, ["env.A", "env.B", "env.C"]),
        ({"secrets": {"TOKEN": "hunter22"}}, {"secrets": {"TOKEN": "hunter23"}}, ["secrets.TOKEN"]),
        ({"processes": 1}, {"processes": 2, "soak": 3}, ["processes", "soak"]),
        ({"drain": 1}, {"drain": 2}, ["drain"]),
        ({"upload_size": "1m"}, {"upload_size": "2m"}, ["upload_size"]),
        ({}, {"port": 8000}, ["port"]),
        ({}, {"debug": True, "processes": 1}, ["debug"]),
        ({}, {"run": {"wsgi": "shop.web:app"}}, ["run"]),
        ({}, {"run": {"command": "gunicorn --bind unix:{socket} shop:app"}}, ["run"]),
        ({"domains": ["a.test"]}, {"domains": ["b.test"]}, ["domains"]),
        ({}, {"health": {"path": "/up", "status": [200, 401]}}, ["health.path", "health.status"]),
        ({"hooks": {"build": "make"}}, {"hooks": {"build": "make all", "timeout": 9}}, ["hooks.build", "hooks.timeout"]),
        ({}, {"hooks": {"before_switch": {"command": "true", "once": True}}}, ["hooks.before_switch"]),
        ({}, {"workers": {"queue": {"command": "python -m shop.queue"}}}, ["workers.queue"]),
        ({}, {"services": {"syslog": {"host": "logs1"}}}, ["services"]),
        ({}, {"packages": ["ffmpeg"]}, ["build settings"]),
        ({}, {"build": {"env": {"NODE_ENV": "production"}}}, ["build settings"]),
    ],
)
def test_reasons_are_names_of_changed_keys(
    layout: Layout, before: dict[str, Any], after: dict[str, Any], expected: list[str]
) -> None:
    before, after = {"processes": 1} | before, {"processes": 1} | after
    serve(layout, build(layout, app(**before)))
    assert reasons(layout, app(**after)) == expected


def test_first_release_has_no_other_reason(layout: Layout) -> None:
    assert reasons(layout, app()) == ["first release"]


def test_code_dependencies_and_collection_are_reasons(layout: Layout) -> None:
    serve(layout, build(layout, app()))
    assert reasons(layout, app(), "r2") == ["code"]
    newer = Programs("import os, sys\n", PROGRAMS.runner)
    build(layout, app(env={"A": "1"}), "r2", newer, environment="e2")
    assert reasons(layout, app(env={"A": "1"}), "r2", newer) == ["code", "dependencies", "collection", "env.A"]


def test_commands_of_a_procfile_are_compared_when_they_are_known(layout: Layout) -> None:
    entry = app(run={"procfile": "web"}, port=8000)

    def add_command(release: str, command: str) -> None:
        manifest = json.loads(layout.manifest(release).read_text())
        layout.manifest(release).write_text(json.dumps(manifest | {"argv": ["sh", "-c", command]}))

    live = build(layout, entry)
    add_command(live, "python web.py")
    serve(layout, live)
    assert reasons(layout, entry, "r2") == ["code"]
    add_command(build(layout, entry, "r2"), "python web.py --fast")
    assert reasons(layout, entry, "r2") == ["code", "run"]


def test_damage_of_the_live_release_is_a_reason(layout: Layout) -> None:
    live = build(layout, app())
    serve(layout, live)
    seal(layout.release(live))
    (layout.release(live) / "launch.py").unlink()
    assert change_reasons(layout, app(), replace(plan_release(app(), "r1", PROGRAMS), id="replacement"), PROGRAMS) == [
        "damaged files"
    ]
