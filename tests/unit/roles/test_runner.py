"""The pure parts of the runner: its command line and the format of its log."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tornado.iostream import IOStream
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tests.support.programs import load

if TYPE_CHECKING:
    from collections.abc import Callable

runner = load("runner")


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (runner.parse_target, "web:app", ("web", "app")),
        (runner.parse_target, "shop.web:make_app", ("shop.web", "make_app")),
        (runner.parse_target, "shop.web:server.wsgi_app", ("shop.web", "server.wsgi_app")),
        (runner.parse_size, "1", 1),
        (runner.parse_size, "64k", 65536),
        (runner.parse_size, "50M", 52428800),
        (runner.parse_size, "2g", 2147483648),
        (runner.parse_mode, "660", 0o660),
        (runner.parse_mode, "0600", 0o600),
        (runner.parse_seconds, "30", 30),
        (runner.parse_seconds, "0.5", 0.5),
        (runner.parse_count, "0", 0),
        (runner.parse_port, "65535", 65535),
        (runner.parse_addresses, "10.0.0.1, ::1", ["10.0.0.1", "::1"]),
        (runner.parse_log_to, "stderr", None),
        (runner.parse_log_to, "log/web.log", Path("log/web.log")),
        (runner.parse_log_to, "udp://logs.example.com:514", ("logs.example.com", 514)),
        (runner.parse_log_to, "udp://[::1]:514", ("::1", 514)),
    ],
)
def test_values(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (runner.parse_target, ["", "web", "web:", ":app", "web:app:x", "web:app.", "web.py:app()", "my-web:app", "web.:app"]),
        (runner.parse_size, ["", "0", "-1", "1.5m", "5t", "k", "5 m"]),
        (runner.parse_mode, ["", "66", "668", "rw-", "1660"]),
        (runner.parse_seconds, ["", "-1", "nan", "inf", "1e3", "30s"]),
        (runner.parse_count, ["", "-1", "1.0", "x"]),
        (runner.parse_port, ["65536", "-1", "http"]),
        (runner.parse_addresses, ["", "10.0.0", "10.0.0.1,", "example.com"]),
        (
            runner.parse_log_to,
            ["udp://host", "udp://:514", "udp://host:0", "udp://host:99999", "udp://host:514/x", "tcp://host:514"],
        ),
    ],
)
def test_values_that_are_none(parse: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=r"(is not|the highest is)"):
            parse(text)


def test_defaults() -> None:
    options = runner.parse_arguments(["web:app", "--port", "8888"], {})
    assert (options.address, options.fork, options.backlog, options.drain) == ("127.0.0.1", 1, 4096, 30)
    assert (options.max_body_size, options.log_to, options.socket_mode) == (50 << 20, [None], 0o660)
    assert options.xheaders is False
    assert runner.parse_arguments(["web:app", "--socket", "s"], {}).xheaders is True


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [
        ("--port 1", {}, "the following arguments are required: MODULE:ATTR"),
        ("web:app", {}, "one of the arguments --socket --port is required"),
        ("web:app --port 1 --socket s", {}, "not allowed with argument"),
        ("web --port 1", {}, "argument MODULE:ATTR: 'web' is not MODULE:ATTR, such as shop.web:make_app"),
        ("web:app --port 1 --max-body-size x", {}, "argument --max-body-size: 'x' is not a size"),
        ("web:app --port 1 --pid-fil x", {}, "unrecognized arguments: --pid-fil x"),
        ("web:app --socket s --reuse-port", {}, "argument --reuse-port: only with --port"),
        ("web:app --port 1 --key k", {}, "arguments --certificate and --key: both or none"),
        ("web:app --port 1 --threads 4", {}, "argument --threads: only with --wsgi"),
        ("web:app --port 1 --wsgi --threads 0", {}, "argument --threads: at least 1"),
        ("web:app --port 1 --replace web", {}, "argument --replace: 'web' is not a whole number"),
        ("web:app --port 1 --replace 9 --fork 2", {}, "argument --replace: goes with one process, and --fork makes 2"),
        ("web:app --port 1 --watch f", {}, "argument --watch: only with --debug"),
        ("web:app --port 1 --debug --fork 2", {}, "for one process, and --fork makes 2"),
        ("web:app --port 1 --debug", {"TORNADO_PROCESSES": "4"}, "for one process, and TORNADO_PROCESSES is 4"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: str, environment: dict[str, str], error: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        runner.parse_arguments(arguments.split(), environment)
    assert error in capsys.readouterr().err


def test_help_tells_every_option_and_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        runner.parse_arguments(["--help"], {})
    text = capsys.readouterr().out
    assert all(action.help for action in runner.make_parser()._actions)
    assert max(map(len, text.splitlines())) <= 80
    assert "%(" not in text


def line(environment: dict[str, str], message: str, level: int = logging.INFO) -> str:
    record = logging.LogRecord("shop", level, __file__, 1, message, (), None)
    record.created, record.msecs, record.process = 1795230855.926, 926.0, 812
    text: str = runner.LineFormatter(environment).format(record)
    return text


@pytest.mark.parametrize(
    ("environment", "context"),
    [
        ({}, "pid 812"),
        ({"TORNADO_APP": "shop", "TORNADO_SLOT": "", "TORNADO_PROCESS": "3"}, "shop 3 pid 812"),
        (
            {"TORNADO_APP": "shop", "TORNADO_SLOT": "a", "TORNADO_PROCESS": "0", "TORNADO_RELEASE": "1f2e3d4c"},
            "shop a/0 1f2e3d4c pid 812",
        ),
        ({"TORNADO_RELEASE": "100%"}, "100% pid 812"),
    ],
)
def test_line_names_its_process(environment: dict[str, str], context: str) -> None:
    assert line(environment, "hello") == f"2026-11-21T03:14:15.926Z INFO  shop [{context}] hello"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_nothing_starts_a_line_but_the_time(line_break: str) -> None:
    assert line({}, f"one{line_break}two", logging.ERROR).endswith("ERROR shop [pid 812] one\n    two")


def test_a_request_is_not_lost_between_its_arrival_and_its_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = IOStream._finish_read

    async def ask() -> bytes:
        server = runner.Server(Application([("/", RequestHandler)]))
        listener, port = bind_unused_port()
        server.add_socket(listener)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        def finish_and_drain(stream: IOStream, size: int) -> None:
            finish(stream, size)
            server.close_idle()

        monkeypatch.setattr(IOStream, "_finish_read", finish_and_drain)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.stop()
        return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 405 ")
