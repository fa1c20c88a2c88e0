from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.deploy.access_log import ResponseCounter

OURS = "unix:/srv/shop/live/run/0.sock"


def line(status: int, upstream: str = OURS, agent: str = "curl/8") -> str:
    what = f'"GET /a HTTP/1.1" {status} 12 "-" "{agent}" "{upstream}" "0.001" 0.002 9c41f3a7'
    return f"10.0.0.1 - - [21/Nov/2026:03:14:15 +0000] {what}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text(line(500))
    return path


@pytest.fixture
def answers(log: Path) -> ResponseCounter:
    return ResponseCounter({OURS}.__contains__, log)


def add(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.write("".join(lines))


def test_only_what_is_logged_from_now_on_counts(log: Path, answers: ResponseCounter) -> None:
    add(log, line(200), line(502), line(404))
    answers.read()
    answers.read()
    assert (answers.total, answers.errors, round(answers.error_share)) == (3, 1, 33)


def test_other_apps_and_static_files_do_not_count(log: Path, answers: ResponseCounter) -> None:
    add(log, line(500, "unix:/srv/other/live/run/0.sock"), line(500, "-"))
    answers.read()
    assert (answers.total, answers.error_share) == (0, 0)


def test_an_answer_that_took_two_tries_counts_once(log: Path, answers: ResponseCounter) -> None:
    add(log, line(504, f"unix:/srv/shop/live/run/1.sock, {OURS}"))
    answers.read()
    assert (answers.total, answers.errors) == (1, 1)


def test_lines_in_json_count_as_well(log: Path, answers: ResponseCounter) -> None:
    add(log, *(json.dumps({"status": str(status), "upstream_addr": OURS}) + "\n" for status in (200, 502)), "{}\n", "{\n", "\n")
    answers.read()
    assert (answers.total, answers.errors) == (2, 1)


def test_a_client_cannot_break_a_line_in_two(log: Path, answers: ResponseCounter) -> None:
    row = json.dumps({"http_user_agent": "x\u2028\x85y", "status": "502", "upstream_addr": OURS}, ensure_ascii=False)
    add(log, f"{row}\n")
    answers.read()
    assert (answers.total, answers.errors) == (1, 1)


def test_a_line_that_is_half_written_counts_when_it_is_complete(log: Path, answers: ResponseCounter) -> None:
    add(log, line(500)[:40])
    answers.read()
    add(log, line(500)[40:])
    answers.read()
    assert answers.total == 1


def test_a_log_that_was_rotated_is_read_from_its_beginning(log: Path, answers: ResponseCounter) -> None:
    log.write_text("")
    answers.read()
    add(log, line(200))
    answers.read()
    assert answers.total == 1


def test_what_a_client_says_of_itself_is_not_taken_for_an_answer(log: Path, answers: ResponseCounter) -> None:
    add(log, line(200, "-", agent=rf"x\x22 500 1 \x22-\x22 \x22-\x22 \x22{OURS}"))
    answers.read()
    assert answers.total == 0
