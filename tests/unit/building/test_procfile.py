from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.procfile import (
    ProcfileCommands,
    parse_procfile,
    read_commands,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

TEXT = """
# processes
web: python app.py --port=$PORT
worker:  rq worker "${QUEUE:-default}"
mailer: python mail.py
release: python migrate.py
"""


def commands(directory: Path, text: str | None = TEXT, **run: Any) -> ProcfileCommands:
    if text is not None:
        (directory / "Procfile").write_text(text)
    entry = {"source": {"path": "."}, "port": 8000, "run": {"procfile": "web", **run}}
    return read_commands(load({"shop": entry})["shop"], directory)


def test_a_shell_runs_the_served_process_type(tmp_path: Path) -> None:
    assert commands(tmp_path).argv == ["sh", "-c", "python app.py --port=$PORT"]


def test_other_process_types_except_release_are_workers(tmp_path: Path) -> None:
    found = commands(tmp_path).workers
    assert {name: worker.count for name, worker in found.items()} == {"mailer": 1, "worker": 1}


def test_release_is_a_command_that_is_not_a_process(tmp_path: Path) -> None:
    assert commands(tmp_path, "web: a\nrelease: python migrate.py ${A}\n").release == ["sh", "-c", "python migrate.py ${A}"]
    assert commands(tmp_path, "web: a\n").release == []


def test_braces_are_escaped_from_the_launcher(tmp_path: Path) -> None:
    words = commands(tmp_path).workers["worker"].argv
    assert [word.format(port="no") for word in words] == ["sh", "-c", 'rq worker "${QUEUE:-default}"']


def test_scale_sets_the_number_of_workers(tmp_path: Path) -> None:
    found = commands(tmp_path, scale={"worker": 3, "mailer": 0}).workers
    assert {name: worker.count for name, worker in found.items()} == {"worker": 3}


@pytest.mark.parametrize(
    ("text", "run", "message"),
    [
        (None, {}, "tornado_apps.shop.run.procfile: the source has no Procfile"),
        (
            TEXT,
            {"procfile": "api"},
            "tornado_apps.shop.run.procfile: Procfile has no process type api; it has mailer, release, web, worker",
        ),
        (
            TEXT,
            {"scale": {"wroker": 1}},
            "tornado_apps.shop.run.scale.wroker: Procfile has no such worker; it has mailer, worker",
        ),
        (TEXT, {"scale": {"release": 1}}, "scale.release: Procfile has no such worker; it has mailer, worker"),
        ("web python app.py", {}, "Procfile: line 1 must have the form name: command; found 'web python app.py'"),
    ],
)
def test_missing_process_types_are_reported_with_those_available(
    tmp_path: Path, text: str | None, run: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildError) as caught:
        commands(tmp_path, text, **run)
    assert message in str(caught.value)


def test_windows_line_endings_and_colons_are_accepted() -> None:
    assert parse_procfile("web: python app.py --bind=:$PORT\r\n\r\n") == {"web": "python app.py --bind=:$PORT"}


def test_duplicate_process_types_are_rejected() -> None:
    with pytest.raises(ValueError, match="line 2 repeats the process type web"):
        parse_procfile("web: a\nweb: b\n")
