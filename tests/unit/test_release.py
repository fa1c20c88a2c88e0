from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import App, load
from ansible_collections.funnel.tornado.plugins.module_utils.release import Programs, argv, plan

PROGRAMS = Programs("launcher", "runner")


def app(**keys: Any) -> App:
    return load({"shop": {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}, **keys}})["shop"]


def release(revision: str = "r1", programs: Programs = PROGRAMS, **keys: Any) -> str:
    return plan(app(**keys), revision, programs).id


def test_the_same_inputs_are_the_same_release() -> None:
    assert release(env={"A": "1"}) == release(env={"A": "1"})


@pytest.mark.parametrize(
    "keys",
    [
        {"env": {"A": "1"}},
        {"secrets": {"A": "1"}},
        {"processes": 7},
        {"port": 8000},
        {"open_files": 4096},
        {"drain": 1},
        {"static": {"path": "www"}},
        {"health": {"path": "/up"}},
        {"upload_size": "1m"},
    ],
)
def test_whatever_a_process_is_started_with_makes_another_release(keys: dict[str, Any]) -> None:
    assert release(**keys) != release()


def test_code_and_programs_make_another_release() -> None:
    assert len({release(), release("r2"), release(programs=Programs("launcher", "newer"))}) == 3


def test_what_only_nginx_needs_makes_no_other_release() -> None:
    assert release(extra="add_header X-Shop 1;") == release()


def test_secrets_are_not_in_the_description() -> None:
    assert "hunter2" not in str(plan(app(secrets={"KEY": "hunter2"}), "r1", PROGRAMS).description)


def test_the_runner_serves_an_app_on_its_socket_behind_nginx() -> None:
    assert " ".join(argv(app())) == (
        "python ../runner.py shop.web:make_app --socket {socket} --xheaders --max-body-size 50m --drain 30"
        " --pid-file {run}/{process}.pid"
    )


def test_a_command_is_split_as_a_shell_would_and_not_by_one() -> None:
    words = argv(app(run={"command": "python app.py --port={port} --name='a b'"}, port=8000))
    assert words == ["python", "app.py", "--port={port}", "--name=a b"]
