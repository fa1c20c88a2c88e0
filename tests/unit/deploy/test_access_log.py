from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.deploy.access_log import ResponseCounter

UPSTREAM = "unix:/srv/shop/live/run/0.sock"


def line(status: int, upstream: str = UPSTREAM, agent: str = "curl/8") -> str:
    fields = f'"GET /a HTTP/1.1" {status} 12 "-" "{agent}" "{upstream}" "0.001" 0.002 9c41f3a7'
    return f"10.0.0.1 - - [21/Nov/2026:03:14:15 +0000] {fields}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text(line(500))
    return path


@pytest.fixture
def counter(log: Path) -> ResponseCounter:
    return ResponseCounter({UPSTREAM}.__contains__, log)


def append(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.write("".join(lines))


def test_only_responses_after_the_start_are_counted(log: Path, counter: ResponseCounter) -> None:
    append(log, line(200), line(502), line(404))
    counter.read()
    counter.read()
    assert (counter.total, counter.errors, round(counter.error_percentage)) == (3, 1, 33)


def test_responses_of_other_apps_and_static_files_are_ignored(log: Path, counter: ResponseCounter) -> None:
    append(log, line(500, "unix:/srv/other/live/run/0.sock"), line(500, "-"))
    counter.read()
    assert (counter.total, counter.error_percentage) == (0, 0)


def test_a_response_after_an_upstream_retry_is_counted_once(log: Path, counter: ResponseCounter) -> None:
    append(log, line(504, f"unix:/srv/shop/live/run/1.sock, {UPSTREAM}"))
    counter.read()
    assert (counter.total, counter.errors) == (1, 1)


def test_json_lines_are_counted(log: Path, counter: ResponseCounter) -> None:
    lines = [json.dumps({"status": str(status), "upstream_addr": UPSTREAM}) + "\n" for status in (200, 502)]
    append(log, *lines, "{}\n", "{\n", "\n")
    counter.read()
    assert (counter.total, counter.errors) == (2, 1)


def test_line_separators_from_clients_do_not_split_lines(log: Path, counter: ResponseCounter) -> None:
    row = json.dumps({"http_user_agent": "x\u2028\x85y", "status": "502", "upstream_addr": UPSTREAM}, ensure_ascii=False)
    append(log, f"{row}\n")
    counter.read()
    assert (counter.total, counter.errors) == (1, 1)


def test_an_incomplete_line_is_counted_once_it_is_complete(log: Path, counter: ResponseCounter) -> None:
    append(log, line(500)[:40])
    counter.read()
    append(log, line(500)[40:])
    counter.read()
    assert counter.total == 1


def test_a_rotated_log_is_read_from_its_start(log: Path, counter: ResponseCounter) -> None:
    log.write_text("")
    counter.read()
    append(log, line(200))
    counter.read()
    assert counter.total == 1


def test_a_forged_user_agent_is_not_counted_as_a_response(log: Path, counter: ResponseCounter) -> None:
    append(log, line(200, "-", agent=rf"x\x22 500 1 \x22-\x22 \x22-\x22 \x22{UPSTREAM}"))
    counter.read()
    assert counter.total == 0
