from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import Worker
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


def commands(directory: Path, text: str | None = TEXT, workers: dict[str, Any] | None = None, **run: Any) -> ProcfileCommands:
    if text is not None:
        (directory / "Procfile").write_text(text)
    entry = {"source": {"path": "."}, "port": 8000, "run": {"procfile": "web", **run}, "workers": workers or {}}
    return read_commands(load({"shop": entry})["shop"], directory)


def test_a_shell_runs_the_served_process_type(tmp_path: Path) -> None:
    assert commands(tmp_path).argv == ["bash", "-c", "python app.py --port=$PORT"]


def test_other_process_types_except_release_are_workers(tmp_path: Path) -> None:
    found = commands(tmp_path).workers
    assert {name: worker.count for name, worker in found.items()} == {"mailer": 1, "worker": 1}


def test_number_of_process_types_is_limited(tmp_path: Path) -> None:
    """A commit could have supervisord start so many workers that it cannot start the processes of other apps."""
    types = [f"worker{number}: sleep infinity\n" for number in range(50)]
    assert len(commands(tmp_path, f"web: a\n{''.join(types[:49])}").workers) == 49
    with pytest.raises(BuildError, match=r"tornado_apps\.shop\.run\.procfile: Procfile: there are more than 50 process types"):
        commands(tmp_path, f"web: a\n{''.join(types)}")


def test_release_is_a_command_that_is_not_a_process(tmp_path: Path) -> None:
    assert commands(tmp_path, "web: a\nrelease: python migrate.py ${A}\n").release == ["bash", "-c", "python migrate.py ${A}"]
    assert commands(tmp_path, "web: a\n").release == []


def test_braces_are_escaped_from_the_launcher(tmp_path: Path) -> None:
    words = commands(tmp_path).workers["worker"].argv
    assert [word.format(port="no") for word in words] == ["bash", "-c", 'rq worker "${QUEUE:-default}"']


def test_workers_of_the_entry_set_options_of_those_of_the_procfile(tmp_path: Path) -> None:
    options = {"worker": {"count": 3, "stop_timeout": 60}, "mailer": {"command": "python other.py"}}
    found = commands(tmp_path, workers=options).workers
    shell = ["bash", "-c", 'rq worker "${{QUEUE:-default}}"']
    assert found == {"worker": Worker(shell, 3, stop_timeout=60, stop_group=False)}, "the other one has a command of its own"


def test_the_program_of_a_shell_command_replaces_the_shell(tmp_path: Path) -> None:
    for line in ("exec cat /proc/$$/comm", "A=1 cat /proc/$$/comm", "cd / && cat /proc/$$/comm", "A=1; cat /proc/$$/comm"):
        (tmp_path / "Procfile").write_text(f"web: {line}\n")
        assert subprocess.check_output(commands(tmp_path, None).argv, text=True) == "cat\n", line


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
            {"workers": {"wroker": {"count": 1}}},
            "tornado_apps.shop.workers.wroker: Procfile has no such worker; it has mailer, worker. Set its command",
        ),
        (TEXT, {"workers": {"release": {}}}, "workers.release: Procfile has no such worker; it has mailer, worker."),
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


def test_spaces_in_a_line_do_not_delay_the_build() -> None:
    began, spaces = time.monotonic(), " " * 1_000_000
    assert parse_procfile(f"web: run{spaces}it") == {"web": f"run{spaces}it"}
    with pytest.raises(ValueError, match="line 1 must have the form"):
        parse_procfile(f"web{spaces}run")
    assert time.monotonic() - began < 5
