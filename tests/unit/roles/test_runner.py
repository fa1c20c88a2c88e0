"""Unit tests of the runner: command line, log format, idle connections, package layout."""

from __future__ import annotations

import argparse
import ast
import asyncio
import io
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tornado.iostream import IOStream
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from ansible_collections.funnel.tornado.plugins.action.push import push_program
from tests.support.programs import load

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = Path(__file__).parents[3] / "roles/app/files/runner"
logs, options, server, values = (load(f"runner.{name}") for name in ("logs", "options", "server", "values"))


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (values.parse_target, "web:app", ("web", "app")),
        (values.parse_target, "shop.web:make_app", ("shop.web", "make_app")),
        (values.parse_target, "shop.web:server.wsgi_app", ("shop.web", "server.wsgi_app")),
        (values.parse_target, "shop:make_app()", ("shop", "make_app()")),
        (values.parse_size, "1", 1),
        (values.parse_size, "64k", 65536),
        (values.parse_size, "50M", 52428800),
        (values.parse_size, "2g", 2147483648),
        (values.parse_mode, "660", 0o660),
        (values.parse_mode, "0600", 0o600),
        (values.parse_seconds, "30", 30),
        (values.parse_seconds, "0.5", 0.5),
        (values.parse_count, "0", 0),
        (values.parse_port, "65535", 65535),
        (values.parse_addresses, "10.0.0.1, ::1", ["10.0.0.1", "::1"]),
        (values.parse_log_target, "stderr", None),
        (values.parse_log_target, "log/web.log", Path("log/web.log")),
        (values.parse_log_target, "udp://logs.example.com:514", ("logs.example.com", 514)),
        (values.parse_log_target, "udp://[::1]:514", ("::1", 514)),
    ],
)
def test_values_are_parsed(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (values.parse_target, ["", "web", "web:", ":app", "web:app:x", "web:app.", "web:app(1)", "my-web:app", "web.:app"]),
        (values.parse_size, ["", "0", "-1", "1.5m", "5t", "k", "5 m"]),
        (values.parse_mode, ["", "66", "668", "rw-", "1660"]),
        (values.parse_seconds, ["", "-1", "nan", "inf", "1e3", "30s"]),
        (values.parse_count, ["", "-1", "1.0", "x"]),
        (values.parse_port, ["65536", "-1", "http"]),
        (values.parse_addresses, ["", "10.0.0", "10.0.0.1,", "example.com"]),
        (
            values.parse_log_target,
            ["udp://host", "udp://:514", "udp://host:0", "udp://host:99999", "udp://host:514/x", "tcp://host:514"],
        ),
    ],
)
def test_invalid_values_are_rejected(parse: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=r"(is not|the highest is)"):
            parse(text)


def test_defaults() -> None:
    parsed = options.parse_arguments(["web:app", "--port", "8888"], {})
    assert (parsed.address, parsed.fork, parsed.backlog, parsed.drain) == ("127.0.0.1", 1, 4096, 30)
    assert (parsed.max_body_size, parsed.log_to, parsed.socket_mode) == (50 << 20, [None], 0o660)
    assert parsed.xheaders is False
    assert options.parse_arguments(["web:app", "--socket", "s"], {}).xheaders is True


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [
        ("--port 1", {}, "the following arguments are required: MODULE:ATTR"),
        ("web:app", {}, "one of the arguments --socket --port is required"),
        ("web:app --port 1 --socket s", {}, "not allowed with argument"),
        ("web --port 1", {}, "argument MODULE:ATTR: 'web' is not MODULE:ATTR or MODULE:ATTR(), such as shop.web:make_app"),
        ("web:app --port 1 --max-body-size x", {}, "argument --max-body-size: 'x' is not a size"),
        ("web:app --port 1 --pid-fil x", {}, "unrecognized arguments: --pid-fil x"),
        ("web:app --socket s --reuse-port", {}, "argument --reuse-port: requires --port"),
        ("web:app --port 1 --key k", {}, "arguments --certificate and --key: specify both or neither"),
        ("web:app --port 1 --threads 4", {}, "argument --threads: requires --wsgi"),
        ("web:app --port 1 --wsgi --threads 0", {}, "argument --threads: must be at least 1"),
        ("web:app --port 1 --replace web", {}, "argument --replace: 'web' is not a whole number"),
        ("web:app --port 1 --replace 9 --fork 2", {}, "argument --replace: requires a single process, but --fork starts 2"),
        ("web:app --port 1 --watch f", {}, "argument --watch: requires --debug"),
        ("web:app --port 1 --debug --fork 2", {}, "one process only, but --fork starts 2"),
        ("web:app --port 1 --debug", {"TORNADO_PROCESSES": "4"}, "one process only, but TORNADO_PROCESSES is 4"),
    ],
)
def test_invalid_command_lines_are_rejected(
    capsys: pytest.CaptureFixture[str], arguments: str, environment: dict[str, str], error: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        options.parse_arguments(arguments.split(), environment)
    assert error in capsys.readouterr().err


def test_help_describes_every_option_within_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        options.parse_arguments(["--help"], {})
    text = capsys.readouterr().out
    assert all(action.help for action in options.make_parser()._actions)
    assert max(map(len, text.splitlines())) <= 80
    assert "%(" not in text


def format_line(environment: dict[str, str], message: str, level: int = logging.INFO) -> str:
    record = logging.LogRecord("shop", level, __file__, 1, message, (), None)
    record.created, record.msecs, record.process = 1795230855.926, 926.0, 812
    text: str = logs.LineFormatter(environment).format(record)
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
def test_log_line_identifies_the_process(environment: dict[str, str], context: str) -> None:
    assert format_line(environment, "hello") == f"2026-11-21T03:14:15.926Z INFO  shop [{context}] hello"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_continuation_lines_are_indented(line_break: str) -> None:
    assert format_line({}, f"one{line_break}two", logging.ERROR).endswith("ERROR shop [pid 812] one\n    two")


def test_connection_with_a_buffered_request_is_not_closed_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = IOStream._finish_read

    async def request() -> bytes:
        http_server = server.Server(Application([("/", RequestHandler)]))
        listener, port = bind_unused_port()
        http_server.add_socket(listener)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        def finish_and_drain(stream: IOStream, size: int) -> None:
            finish(stream, size)
            http_server.close_idle_connections()

        monkeypatch.setattr(IOStream, "_finish_read", finish_and_drain)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        response = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        http_server.stop()
        return response

    assert asyncio.run(request()).startswith(b"HTTP/1.1 405 ")


def test_modules_import_only_the_package_tornado_and_the_standard_library() -> None:
    """The application's environment contains neither the collection nor other packages for certain."""
    for path in sorted(FILES.glob("*.py")):
        packages = {"uvicorn"} if path.name == "asgi.py" else set()  # imported for ASGI applications only
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"tornado"} | packages, path.name


def test_program_for_pushes_contains_the_package() -> None:
    with zipfile.ZipFile(io.BytesIO(push_program())) as archive:
        packed = json.loads(archive.read("runner.json"))
    assert packed == {path.name: path.read_text() for path in FILES.glob("*.py")}


def test_process_loads_no_modules_for_what_its_application_does_not_use() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import runner.serving; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(FILES.parent)], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tornado.httpserver" in loaded
    assert not loaded & {"tornado.autoreload", "tornado.websocket", "tornado.wsgi", "uvicorn", "tempfile", "platform"}
