"""Life of the process."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tests.support.runner import write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Eventually, Serve


def test_requests_succeed_after_the_reader_of_the_output_exits(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    """As when supervisord is killed: writing to the broken pipe must not fail requests."""
    more = """
        import sys

        class Log(RequestHandler):
            def get(self):
                print("out", flush=True)
                print("err", file=sys.stderr, flush=True)
                logging.getLogger().error("log")
                logging.getLogger("shop").info("later")
                self.write("written")

        def make_app():
            return Application([("/", Log)])
    """
    read, write = os.pipe()
    env = {"PYTHONUNBUFFERED": "1"}
    process = spawn(
        "--socket", tmp_path / "s", target="web:make_app", cwd=write_app(tmp_path, more=more), env=env,
        stdout=write, preexec_fn=lambda: os.dup2(1, 2),
    )  # fmt: skip
    os.close(write)
    process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
    assert process.fetch("/").body == b"written"
    assert b"out\n" in os.read(read, 9999)
    os.close(read)
    for _ in range(20):
        assert process.fetch("/").body == b"written"
        time.sleep(0.02)
    assert process.stop() == 0
