"""Child processes (``--fork``)."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.runner import write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Eventually, Serve


def test_children_share_the_socket_and_are_restarted(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    process = serve("--socket", tmp_path / "s", "--fork", "3", "--pid-file", tmp_path / "pid")
    process.wait_for(" serving ", times=3)

    def children() -> dict[str, int]:
        responses = [process.fetch("/whoami").json for _ in range(30)]
        return {response["process"]: response["pid"] for response in responses}

    before = eventually(lambda: (seen := children()) and len(seen) == 3 and seen)
    assert set(before) == {"0", "1", "2"}
    assert len(set(before.values()) - {process.pid}) == 3
    assert int((tmp_path / "pid").read_text()) == process.pid

    os.kill(before["1"], signal.SIGKILL)
    process.wait_for(" serving ", times=4)
    after = eventually(lambda: (seen := children()) and len(seen) == 3 and seen)
    assert after["1"] != before["1"]
    assert (after["0"], after["2"]) == (before["0"], before["2"])

    slow = process.connect()
    slow.send_request("/sleep?seconds=0.5")
    time.sleep(0.1)
    assert process.stop() == 0
    assert slow.read_response().status == 200
    assert not list(tmp_path.iterdir())


def test_zero_forks_one_child_per_cpu(serve: Serve) -> None:
    process = serve("--fork", "0")
    process.wait_for(" serving ", times=os.cpu_count() or 1)
    assert process.stop() == 0


def test_children_drain_when_the_parent_is_killed(serve: Serve, tmp_path: Path) -> None:
    process = serve("--fork", "2", "--pid-file", tmp_path / "pid")
    process.wait_for(" serving ", times=2)
    slow = process.connect()
    slow.send_request("/sleep?seconds=1")
    time.sleep(0.1)
    process.popen.kill()
    assert process.popen.wait(10) == -signal.SIGKILL
    again = serve("--fork", "2", "--pid-file", tmp_path / "pid")
    assert again.fetch("/healthz").status == 200, "only the parent held the lock"
    process.wait_for("draining")
    assert slow.read_response().status == 200
    process.wait_for("drained", times=2)


def test_second_signal_kills_the_children(serve: Serve) -> None:
    process = serve("--fork", "2")
    process.wait_for(" serving ", times=2)
    slow = process.connect()
    slow.send_request("/sleep?seconds=50")
    time.sleep(0.1)
    process.signal()
    process.wait_for("draining .* 1 in-flight requests")
    assert process.stop() == 1
    with pytest.raises(ConnectionError):
        slow.read_response()


def test_parent_gives_up_when_the_application_cannot_be_imported(spawn: Serve, tmp_path: Path) -> None:
    process = spawn("--port", "0", "--fork", "2", target="web:app", cwd=write_app(tmp_path, "1 / 0"))
    assert process.wait() == 1
    assert process.log.count("cannot import web: ZeroDivisionError") == 2
    assert "giving up: no child process could serve" in process.lines[-1]
