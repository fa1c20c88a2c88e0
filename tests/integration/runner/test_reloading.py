"""Hot reload (``--debug``)."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.runner import APP, is_locked, write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Eventually, Serve


def test_hot_reload_keeps_socket_lock_and_pid(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    """No client is refused, and no other process can take the lock."""
    process = serve(
        "--socket", tmp_path / "s", "--pid-file", tmp_path / "pid", "--watch", "settings.ini", "--debug",
        target="web:make_app", cwd=write_app(tmp_path),
    )  # fmt: skip
    (tmp_path / "settings.ini").write_text("a=1")
    assert process.fetch("/").body == b"one"
    time.sleep(0.6)  # autoreload must record the file before it changes
    write_app(tmp_path, APP.replace('"one"', '"another"'))

    def is_new() -> bool:
        assert is_locked(tmp_path / "pid")
        with contextlib.suppress(ConnectionResetError):  # a reload aborts in-flight requests
            return process.fetch("/").body == b"another"
        return False

    eventually(is_new)
    process.wait_for(" serving ", times=2)
    assert (tmp_path / "pid").read_text() == f"{process.pid}\n"

    time.sleep(0.6)
    (tmp_path / "settings.ini").write_text("a=22")
    process.wait_for("settings.ini modified; restarting server")
    process.wait_for(" serving ", times=3)
    assert process.fetch("/").body == b"another"
    assert process.stop() == 0
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "pid").exists()


def test_broken_code_is_reloaded_after_the_next_change(serve: Serve, tmp_path: Path) -> None:
    process = serve("--debug", target="web:make_app", cwd=write_app(tmp_path))
    time.sleep(0.6)
    write_app(tmp_path, "def make_app(:")
    process.wait_for("cannot import web: SyntaxError: .*; waiting for a change")
    time.sleep(0.6)
    write_app(tmp_path, APP.replace('"one"', '"fixed"'))
    process.wait_for(" serving ", times=2)
    assert process.fetch("/").body == b"fixed"
    assert process.stop() == 0


def test_debug_settings_apply_to_an_existing_application(serve: Serve, tmp_path: Path) -> None:
    more = """
        class Main(RequestHandler):
            def get(self):
                self.render("page.html")

        class Fail(RequestHandler):
            def get(self):
                1 / 0

        def make_app():
            return Application([("/", Main), ("/fail", Fail)])
    """
    (tmp_path / "page.html").write_text("old")
    process = serve("--debug", target="web:make_app", cwd=write_app(tmp_path, more=more))
    assert process.fetch("/").body == b"old"
    (tmp_path / "page.html").write_text("new")
    assert process.fetch("/").body == b"new"
    assert b"ZeroDivisionError" in process.fetch("/fail").body


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--fork", "2"], {}), ([], {"TORNADO_PROCESSES": "2"})],
)
def test_hot_reload_refuses_several_processes(spawn: Serve, arguments: list[str], env: dict[str, str]) -> None:
    process = spawn("--port", "0", "--debug", *arguments, env=env)
    assert process.wait() == 2
    assert "argument --debug: hot reload supports one process only" in process.log
