"""Unit tests of the runner's access log: its lines, with and without a LogRecord, and applications that change the logging."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado.log import access_log

from tests.support.programs import load

access, logs = (load(f"runner.{name}") for name in ("access_log", "logs"))

LINE = r"[\d:T-]{19}\.\d{3}Z %s tornado.access \[shop pid \d+\] %d GET /\w+ \(10.0.0.1\) 1.50ms request=9c41f3a7\n"


class Records(logging.Handler):
    """Keeps the records that it handles."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def reject(self, record: logging.LogRecord) -> bool:
        """Filter the record."""
        self.emit(record)
        return False


@contextlib.contextmanager
def configured() -> Iterator[io.StringIO]:
    """Configure logging as the runner does, without the handlers of pytest; yield what is written."""
    output = io.StringIO()
    handler = logs.BufferedHandler()
    handler.setStream(output)
    handler.setFormatter(logs.LineFormatter({"TORNADO_APP": "shop"}))
    level, token = logging.root.level, logs.REQUEST_ID.set("9c41f3a7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [handler])
        logging.root.setLevel(logging.INFO)
        try:
            yield output
        finally:
            logging.root.setLevel(level)
            logs.REQUEST_ID.reset(token)


@pytest.mark.parametrize(("status", "level"), [(200, "INFO "), (304, "INFO "), (404, "WARNING"), (503, "ERROR")])
def test_lines_have_one_format_at_every_level(status: int, level: str) -> None:
    with configured() as output:
        assert access.find_output() is not None
        access.log_response(status, "GET /page (10.0.0.1)", 0.0015)
    assert re.fullmatch(LINE % (level, status), output.getvalue())


def test_target_of_a_request_cannot_forge_a_line() -> None:
    with configured() as output:
        access.log_response(200, "GET /\x85ERROR (10.0.0.1)", 0.0015)
    first, second = output.getvalue().splitlines()
    assert first.endswith("200 GET / request=9c41f3a7")
    assert second.startswith("    ERROR")


@contextlib.contextmanager
def changed(name: str, records: Records) -> Iterator[None]:
    """Change the logging as an application may."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "handler of the root logger":
            patch.setattr(logging.root, "handlers", [*logging.root.handlers, records])
        elif name == "handler of the access log":
            patch.setattr(access_log, "handlers", [records])
        elif name == "filter":
            patch.setattr(access_log, "filters", [records.reject])
        elif name == "level":
            access_log.setLevel(logging.WARNING)
        elif name == "parent":
            patch.setattr(access_log, "parent", logging.Logger("tornado"))
        elif name == "record factory":
            patch.setattr(logging, "_logRecordFactory", lambda *args, **kwargs: logging.LogRecord(*args, **kwargs))
        elif name == "method":
            patch.setattr(logging.Logger, "callHandlers", lambda _logger, record: records.emit(record))
        try:
            yield
        finally:
            access_log.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("change", "recorded"),
    [
        ("handler of the root logger", 1),
        ("handler of the access log", 1),
        ("filter", 1),
        ("level", 0),
        ("parent", 0),
        ("record factory", 0),
        ("method", 1),
    ],
)
def test_changes_of_an_application_to_logging_are_respected(change: str, recorded: int) -> None:
    records = Records()
    with configured() as output, changed(change, records):
        assert access.find_output() is None
        access.log_response(200, "GET /page (10.0.0.1)", 0.0015)
    assert records.messages == ["200 GET /page (10.0.0.1) 1.50ms"] * recorded
    assert ("GET /page" in output.getvalue()) == (change not in {"filter", "level", "parent", "method"})


def log_in_loops(number: int) -> None:
    """Log one line in each of several event loops that end at once."""
    for index in range(number):

        async def log(line: int) -> None:
            access.log_response(200, f"GET /{line} (10.0.0.1)", 0.0015)

        asyncio.run(log(index))


def test_lines_of_event_loops_that_end_are_written() -> None:
    with configured() as output:
        thread = threading.Thread(target=log_in_loops, args=(3,))
        thread.start()
        thread.join()
        assert len(output.getvalue().splitlines()) == 3
        log_in_loops(1)
        access.log_response(200, "GET /last (10.0.0.1)", 0.0015)
    assert len(output.getvalue().splitlines()) == 5


async def poll(written: Callable[[], str]) -> None:
    """Wait until anything is written, for at most 10 s."""
    async with asyncio.timeout(10):
        while not written():
            await asyncio.sleep(logs.FLUSH_INTERVAL / 10)


def test_a_line_after_an_early_flush_is_written() -> None:
    """An event loop may run the flush before it is due, such as uvloop, whose clock has milliseconds."""

    async def serve() -> None:
        access.log_response(200, "GET /first (10.0.0.1)", 0.0015)
        logging.root.handlers[0].flush()
        output.truncate(0)
        access.log_response(200, "GET /second (10.0.0.1)", 0.0015)
        scheduled[0].cancel()  # the flush for the first line, which has run early
        await poll(output.getvalue)

    scheduled: list[asyncio.TimerHandle] = []
    call_later = asyncio.BaseEventLoop.call_later

    def record(loop: asyncio.BaseEventLoop, delay: float, callback: Any, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        scheduled.append(call_later(loop, delay, callback, *arguments, **options))
        return scheduled[-1]

    with configured() as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "call_later", record)
        asyncio.run(serve())
    assert "GET /second" in output.getvalue()


def test_lines_of_the_serving_event_loop_are_written_in_batches() -> None:
    async def serve() -> tuple[str, str]:
        for _request in range(3):
            access.log_response(200, "GET /page (10.0.0.1)", 0.0015)
        before = output.getvalue()
        await poll(output.getvalue)
        return before, output.getvalue()

    with configured() as output:
        before, after = asyncio.run(serve())
    assert before == ""
    assert len(after.splitlines()) == 3
