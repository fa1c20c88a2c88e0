from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.status import logs
from ansible_collections.funnel.tornado.plugins.module_utils.status.logs import line_time, read_since, tail


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout("shop", tmp_path)
    layout.logs.mkdir(parents=True)
    return layout


def stamp(second: int) -> str:
    return f"2026-11-21T03:14:{second:02}.500Z"


def add(log: Path, *texts: str) -> None:
    with log.open("a") as file:
        file.write("".join(f"{text}\n" for text in texts))


def rotate(log: Path) -> None:
    """Rotate a log as supervisord does."""
    for number in range(5, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.rename(log.with_name(f"{log.name}.{number + 1}"))
    log.rename(log.with_name(f"{log.name}.1"))
    log.touch()


def test_tail_sorts_the_lines_of_all_processes_by_time(layout: Layout) -> None:
    add(layout.log("a", 0), f"{stamp(3)} failed", "Traceback", f"{stamp(9)} late")
    add(layout.log("b", 11), f"{stamp(1)} early", f"{stamp(4)} after the failure")
    add(layout.log("b", 0, "mail-out"), "ends before the first time", f"{stamp(2)} sent")
    add(layout.logs / "notes.txt", f"{stamp(5)} no log")
    lines, _ = tail(layout, 100)
    assert [(line.process, line.text.removeprefix("2026-11-21T03:14:")) for line in lines] == [
        ("b/11", "01.500Z early"),
        ("b/mail-out.0", "ends before the first time"),
        ("b/mail-out.0", "02.500Z sent"),
        ("a/0", "03.500Z failed"),
        ("a/0", "Traceback"),
        ("b/11", "04.500Z after the failure"),
        ("a/0", "09.500Z late"),
    ]
    assert tail(layout, 2)[0] == lines[-2:]
    assert tail(layout, 0)[0] == []


@pytest.mark.parametrize("count", [1, 100, 5000])
def test_tail_reads_rotated_and_large_files(layout: Layout, count: int) -> None:
    log = layout.log("a", 0)
    for part in (range(2000), range(2000, 4000), range(4000, 4010)):
        add(log, *(f"{number} {'x' * 100}" for number in part))
        if part.stop < 4010:
            rotate(log)
    lines, position = tail(layout, count)
    assert [int(line.text.split()[0]) for line in lines] == list(range(4010))[-count:]
    assert read_since(layout, position, 0) == ([], position)


def test_lines_of_a_file_without_times_have_its_modification_time(layout: Layout) -> None:
    add(layout.log("a", 0), "plain")
    os.utime(layout.log("a", 0), (1_795_230_855, 1_795_230_855))
    assert [line.time for line in tail(layout, 1)[0]] == [1_795_230_855]


def test_read_since_returns_each_line_once_and_only_when_complete(layout: Layout) -> None:
    log = layout.log("a", 0)
    add(log, "before")
    with log.open("a") as file:
        file.write("half a ")
    lines, position = tail(layout, 10)
    assert [line.text for line in lines] == ["before"]
    add(log, "line", "and one")
    add(layout.log("b", 0), "of a new process")
    lines, position = read_since(layout, position, 0)
    assert sorted(line.text for line in lines) == ["and one", "half a line", "of a new process"]
    assert read_since(layout, position, 0)[0] == []


def test_read_since_neither_misses_nor_repeats_lines_across_rotations(layout: Layout) -> None:
    log = layout.log("a", 0)
    add(log, "0")
    _, position = tail(layout, 10)
    add(log, "1")
    rotate(log)
    add(log, "2")
    rotate(log)
    add(log, "three")
    lines, position = read_since(layout, position, 0)
    assert [line.text for line in lines] == ["1", "2", "three"]
    log.write_text("")  # truncated by an operator
    add(log, "4")
    assert [line.text for line in read_since(layout, position, 0)[0]] == ["4"]


def test_read_since_waits_for_a_first_line(layout: Layout) -> None:
    _, position = tail(layout, 10)
    timer = threading.Timer(0.3, add, (layout.log("a", 0), "came"))
    timer.start()
    lines, _ = read_since(layout, position, 20)
    timer.join()
    assert [line.text for line in lines] == ["came"]


def test_control_characters_are_escaped(layout: Layout) -> None:
    layout.log("a", 0).write_bytes(b"\x1b[2Jgone\ttab \xc2\x9b \xff \xe2\x80\xae\r\n")
    assert [line.text for line in tail(layout, 1)[0]] == ["\\x1b[2Jgone\ttab \\x9b \ufffd \\u202e"]


def test_length_and_number_of_lines_are_bounded(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_READ_SIZE", 4 * logs.BLOCK_SIZE)
    layout.log("a", 0).write_bytes(b"x" * 500_000 + b"\n" + b"y" * 500_000 + b"\n")
    assert [line.text for line in tail(layout, 1)[0]] == [f"{'y' * logs.MAX_LINE_SIZE}..."]
    layout.log("a", 1).write_bytes(b"\n" * 200_000)
    assert len(tail(layout, 100_000)[0]) == logs.MAX_LINES + 1
    assert len(read_since(layout, {}, 0)[0]) == logs.MAX_LINES + 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-21T03:14:15.926Z INFO  shop", 1_795_230_855.926),
        ("2026-11-21 04:14:15,926+01:00 INFO", 1_795_230_855.926),
        ("[2026-11-21 05:14:15 +0200] [7] [INFO] Booting", 1_795_230_855),
        ("INFO 2026-11-21T03:14:15Z", 1_795_230_855),
        ('{"time": "2026-11-21T03:14:15Z"}', 1_795_230_855),
        ('{"time":"2026-11-21T03:14:15Z"}', 1_795_230_855),
        ("[I 261121 03:14:15 web:2348] 200 GET / (127.0.0.1) 0.5ms", 1_795_230_855),
        ("2026-13-21T03:14:15Z", None),
        ("the order of 2026-11-21T03:14:15Z", None),
        ("120261-11-21T03:14:15Z", None),
        ("", None),
    ],
)
def test_line_time(text: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert line_time(text) == seconds
