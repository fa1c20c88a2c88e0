"""Replacement of a running process (``--replace``)."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest
import tornado.websocket

from tests.support.runner import is_locked, load_generator

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Serve


def test_replacement_loses_no_request(serve: Serve, tmp_path: Path) -> None:
    options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid", "--drain", "10")
    old = serve(*options)
    slow = old.connect()
    slow.send_request("/sleep?seconds=2")
    with load_generator(old.connect) as responses:
        time.sleep(0.5)
        new = serve(*options, "--replace", str(old.pid))
        new.wait_for(f"replacing pid {old.pid}")
        assert (tmp_path / "pid").read_text() == f"{new.pid}\n"
        assert old.popen.poll() is None, "it is still draining"
        assert old.wait() == 0
        time.sleep(0.3)
    assert set(responses()) == {old.pid, new.pid}
    assert slow.read_response().json["pid"] == old.pid
    assert (tmp_path / "pid").read_text() == f"{new.pid}\n"
    assert is_locked(tmp_path / "pid")
    assert new.stop() == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shared", [["--reuse-port"], []])
def test_port_is_taken_over(serve: Serve, tmp_path: Path, shared: list[str]) -> None:
    """In-flight requests finish, also if the port is not shared and must be free first."""
    options = ("--pid-file", tmp_path / "pid", *shared)
    old = serve(*options)
    slow = old.connect()
    slow.send_request("/sleep?seconds=1.5")
    time.sleep(0.1)
    new = serve(*options, "--port", str(old.address), "--replace", str(old.pid))
    old.wait_for("draining")
    assert old.popen.poll() is None, "it is still draining"
    time.sleep(0.2)
    assert {new.fetch("/whoami").json["pid"] for _ in range(10)} == {new.pid}
    assert slow.read_response().status == 200
    assert old.wait() == 0
    assert (tmp_path / "pid").read_text() == f"{new.pid}\n"


def test_websockets_of_the_replaced_process_are_closed_with_1012(serve: Serve) -> None:
    old = serve("--reuse-port")

    async def talk() -> int | None:
        socket = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{old.address}/ws")
        serve("--reuse-port", "--port", str(old.address), "--replace", str(old.pid))
        while await socket.read_message() is not None:
            pass
        return socket.close_code

    assert asyncio.run(talk()) == 1012


def test_exited_process_needs_no_replacement(serve: Serve, tmp_path: Path) -> None:
    options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
    old = serve(*options)
    old.signal(signal.SIGKILL)
    assert old.wait() == -signal.SIGKILL
    new = serve(*options, "--replace", str(old.pid))
    assert new.fetch("/whoami").json["pid"] == new.pid
    assert "replacing" not in new.log


def test_failing_application_does_not_stop_the_old_process(serve: Serve, spawn: Serve, tmp_path: Path) -> None:
    options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
    old = serve(*options)
    new = spawn(*options, "--replace", str(old.pid), target="none:app")
    assert new.wait() == 1
    assert old.fetch("/whoami").json["pid"] == old.pid
    assert (tmp_path / "pid").read_text() == f"{old.pid}\n"
    assert "SIGTERM" not in old.log


def test_pid_file_of_another_process_is_not_taken_over(serve: Serve, spawn: Serve, tmp_path: Path) -> None:
    options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
    unrelated = serve()
    old = serve(*options)
    new = spawn(*options, "--replace", str(unrelated.pid))
    assert new.wait() == 1
    assert f"already running: pid {old.pid} holds the lock on {tmp_path}/pid" in new.log
    assert {old.fetch("/whoami").json["pid"], unrelated.fetch("/whoami").json["pid"]} == {old.pid, unrelated.pid}


def test_process_that_does_not_stop_is_killed(serve: Serve, tmp_path: Path) -> None:
    options = ("--socket", tmp_path / "s", "--drain", "0")
    old = serve(*options)
    old.signal(signal.SIGSTOP)
    new = serve(*options, "--replace", str(old.pid))
    assert new.fetch("/whoami").json["pid"] == new.pid
    assert old.wait() == -signal.SIGKILL


def test_process_whose_number_did_not_fit_on_a_full_disk_is_replaced(serve: Serve, tmp_path: Path) -> None:
    options = ("--pid-file", tmp_path / "pid", "--socket", tmp_path / "socket")
    old = serve(*options)
    (tmp_path / "pid").write_text("")
    new = serve(*options, "--replace", str(old.pid))
    assert old.wait() == 0
    assert (tmp_path / "pid").read_text() == f"{new.pid}\n"


def test_several_processes_are_replaced(serve: Serve, tmp_path: Path) -> None:
    """As when supervisord and a new process were killed before the new process had replaced the old one."""
    options = ("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
    old = serve(*options)
    second = serve(*options, "--replace", str(old.pid))
    third = serve(*options, "--replace", str(old.pid), "--replace", str(second.pid))
    assert [old.wait(), second.wait()] == [0, 0]
    assert third.fetch("/whoami").json["pid"] == third.pid
    assert (tmp_path / "pid").read_text() == f"{third.pid}\n"
