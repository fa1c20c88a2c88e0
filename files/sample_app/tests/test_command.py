"""``python -m sample_app``: its options, its processes, its log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import pytest
from sample_app import logs
from sample_app.settings import Settings

from tests.support.pki import Authority
from tests.support.remote import eventually
from tests.support.sample_app import PATIENCE, ROOT, App
from tests.support.servers import free_port

Start = Callable[..., App]


def test_it_serves(start: Start) -> None:
    app = start()
    assert app.ask("/whoami").json["pid"] == app.pid


def test_several_processes_serve_one_port(start: Start) -> None:
    app = start("--proc=2")
    app.wait_for(" open http://", times=2)
    first = app.ask("/whoami").json["pid"]
    os.kill(first, signal.SIGSTOP)  # whoever answers now is another one
    second = app.ask("/whoami").json["pid"]
    os.kill(first, signal.SIGCONT)
    assert len({app.pid, first, second}) == 3


#: Serves, and has a task that misses that it is cancelled, as a driver's may.
DEAF = """
import asyncio, contextlib
from sample_app import __main__ as command

async def wait():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

def make_app(**options):
    tasks.append(asyncio.ensure_future(wait()))
    return made(**options)

tasks, made, command.make_app = [], command.make_app, make_app
command.main()
"""


def test_an_interrupt_ends_it_whatever_it_waits_for() -> None:
    argv = [sys.executable, "-c", DEAF, "--port=0"]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert " open http://" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--ssl", r"--ssl: goes with both --certificate and --key"),
        ("--log-file=/dev/null/sample.log", r"--log-file: .*/dev/null.*"),
        ("--log-file=/proc", r"--log-file: .*Is a directory.*"),
        ("--log-host=none.invalid", r"--log-host \(LOG_HOST\): .*"),
        ("--db-uri=http://db", r"--db-uri \(MONGODB_URI\): Invalid URI scheme: .*"),
        ("--db-uri=mongodb://notes:hid:den@db", r"--db-uri \(MONGODB_URI\): (?!.*hid).*"),
        ("--db-uri=mongodb://db:99999", r"--db-uri \(MONGODB_URI\): Port must be .*"),
    ],
)
def test_a_mistake_ends_it_with_one_line(option: str, line: str) -> None:
    command = [sys.executable, "-B", "-m", "sample_app", "--port=0", option]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert re.fullmatch(f"sample_app: {line}\n", ended.stderr)


def test_a_port_that_is_taken_ends_it_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-B", "-m", "sample_app", f"--port={taken.getsockname()[1]}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert re.fullmatch(r"sample_app: .*Address already in use.*\n", ended.stderr)


def test_lines_go_to_the_console_a_file_and_a_syslog_server(start: Start, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(PATIENCE)
        file = tmp_path / "logs/sample.log"
        app = start(f"--log-file={file}", LOG_HOST="127.0.0.1", LOG_PORT=str(syslog.getsockname()[1]))
        app.ask("/none")
        pattern = rf"WARNING? *tornado.access \[sample {app.pid}\] 404 GET /none"
        app.wait_for(pattern)
        received = [syslog.recv(9000).decode()]
        while "/none" not in received[-1]:
            received.append(syslog.recv(9000).decode())
    assert re.match(rf"<12>sample: .*{pattern}", received[-1])
    assert re.search(pattern, file.read_text())


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Return the root logger, which is not pytest's meanwhile."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_file_that_is_full_is_put_aside(root_logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 1000)
    monkeypatch.setattr(logs, "FILE_BACKUPS", 2)
    logs.configure(Settings(log_file=str(tmp_path / "sample.log")))
    for number in range(100):
        root_logger.info("line %d.", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample.log", "sample.log.1", "sample.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    kept = "".join((tmp_path / f"sample.log{end}").read_text() for end in (".2", ".1", ""))
    numbers = [int(number) for number in re.findall(r"line (\d+)\.", kept)]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) > 20


def test_processes_have_log_files_of_their_own(start: Start, tmp_path: Path) -> None:
    app = start("--proc=2", f"--log-file={tmp_path}/sample.log")
    app.wait_for(" open http://", times=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample.0.log", "sample.1.log"]


def test_it_serves_https(start: Start, tmp_path: Path) -> None:
    authority = Authority("test", datetime.now(UTC))
    files = authority.leaf("localhost").write(tmp_path)
    app = start("--ssl", f"--certificate={files['certificate']}", f"--key={files['key']}")
    context = ssl.create_default_context(cadata=authority.pem)
    with urlopen(f"https://localhost:{app.port}/whoami", context=context, timeout=PATIENCE) as answer:
        assert json.load(answer)["protocol"] == "https"


def test_debug_reloads_changed_code(start: Start, tmp_path: Path) -> None:
    copy = tmp_path / "app"
    shutil.copytree(ROOT / "sample_app", copy / "sample_app")
    port = free_port()
    app = start("--debug", f"--port={port}", cwd=copy)
    assert app.ask("/healthz").json["status"] == "ok"
    web = copy / "sample_app/web.py"
    changed = web.read_text().replace('"status": "ok", "release"', '"status": "new", "release"')

    def reloaded() -> bool:
        if app.ask("/healthz").json["status"] == "new":
            return True
        web.write_text(changed)  # again and again: it knows files only as they are when it first looks
        return False

    eventually(reloaded)
