"""``python -m sample_app``: options, processes, logs."""

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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection
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


def test_app_serves(start: Start) -> None:
    app = start()
    assert app.fetch("/whoami").json["pid"] == app.pid


def test_processes_share_one_port(start: Start) -> None:
    app = start("--proc=2")
    app.wait_for(" serving http://", times=2)
    first = app.fetch("/whoami").json["pid"]
    os.kill(first, signal.SIGSTOP)  # another process must respond now
    second = app.fetch("/whoami").json["pid"]
    os.kill(first, signal.SIGCONT)
    assert len({app.pid, first, second}) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_finishes_in_flight_requests(start: Start, processes: int) -> None:
    app = start(f"--proc={processes}")
    app.wait_for(" serving http://", times=processes)
    with ThreadPoolExecutor() as pool, closing(HTTPConnection("127.0.0.1", app.port, timeout=PATIENCE)) as idle:
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        response = pool.submit(app.fetch, "/sleep?seconds=2")
        time.sleep(0.5)
        os.kill(app.pid, signal.SIGTERM)
        app.wait_for(" stopping: ", times=processes)
        assert response.result(PATIENCE).status == 200
    assert app.popen.wait(PATIENCE) == 0
    assert [line for line in app.lines if " stopping: 1 in-flight requests" in line]


def test_health_check_of_a_container_fails_without_a_healthy_app(start: Start) -> None:
    app = start()
    command = [sys.executable, "-B", "-m", "sample_app.healthcheck"]
    for port, expected in ((app.port, ""), (free_port(), "no response: [Errno 111] Connection refused\n")):
        ended = subprocess.run(command, cwd=ROOT, env={"PORT": str(port)}, capture_output=True, text=True, timeout=PATIENCE)
        assert (ended.returncode, ended.stderr) == (int(bool(expected)), expected)


def test_processes_stop_when_their_parent_is_killed(start: Start) -> None:
    app = start("--proc=2")
    app.wait_for(" serving http://", times=2)
    os.kill(app.pid, signal.SIGKILL)
    app.wait_for(" stopping: 0 in-flight requests", times=2)


#: Serves with a task that ignores its cancellation, as a driver's may.
UNCANCELLABLE = """
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


def test_interrupt_ends_the_process_despite_uncancellable_tasks() -> None:
    argv = [sys.executable, "-c", UNCANCELLABLE, "--port=0"]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert " serving http://" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--ssl", r"--ssl: must be used together with --certificate and --key"),
        ("--log-file=/dev/null/sample.log", r"--log-file: .*/dev/null.*"),
        ("--log-file=/proc", r"--log-file: .*Is a directory.*"),
        ("--log-host=none.invalid", r"--log-host \(LOG_HOST\): .*"),
        ("--db-uri=http://db", r"--db-uri \(MONGODB_URI\): Invalid URI scheme: .*"),
        ("--db-uri=mongodb://notes:hid:den@db", r"--db-uri \(MONGODB_URI\): (?!.*hid).*"),
        ("--db-uri=mongodb://db:99999", r"--db-uri \(MONGODB_URI\): Port must be .*"),
    ],
)
def test_invalid_setting_exits_with_one_line(option: str, line: str) -> None:
    command = [sys.executable, "-B", "-m", "sample_app", "--port=0", option]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert re.fullmatch(f"sample_app: {line}\n", ended.stderr)


def test_port_in_use_exits_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-B", "-m", "sample_app", f"--port={taken.getsockname()[1]}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert re.fullmatch(r"sample_app: .*Address already in use.*\n", ended.stderr)


def test_log_lines_go_to_console_file_and_syslog(start: Start, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(PATIENCE)
        file = tmp_path / "logs/sample.log"
        app = start(f"--log-file={file}", LOG_HOST="127.0.0.1", LOG_PORT=str(syslog.getsockname()[1]))
        app.fetch("/none")
        pattern = rf"WARNING? *tornado.access \[sample {app.pid}\] 404 GET /none"
        app.wait_for(pattern)
        received = [syslog.recv(9000).decode()]
        while "/none" not in received[-1]:
            received.append(syslog.recv(9000).decode())
    assert re.match(rf"<12>sample: .*{pattern}", received[-1])
    assert re.search(pattern, file.read_text())


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Return the root logger without pytest's handlers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_log_file_is_rotated(root_logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_each_process_has_a_log_file(start: Start, tmp_path: Path) -> None:
    app = start("--proc=2", f"--log-file={tmp_path}/sample.log")
    app.wait_for(" serving http://", times=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample.0.log", "sample.1.log"]


def test_https_is_served(start: Start, tmp_path: Path) -> None:
    authority = Authority("test", datetime.now(UTC))
    files = authority.leaf("localhost").write(tmp_path)
    app = start("--ssl", f"--certificate={files['certificate']}", f"--key={files['key']}")
    context = ssl.create_default_context(cadata=authority.pem)
    with urlopen(f"https://localhost:{app.port}/whoami", context=context, timeout=PATIENCE) as response:
        assert json.load(response)["protocol"] == "https"


def test_hot_reload_serves_changed_code(start: Start, tmp_path: Path) -> None:
    copy = tmp_path / "app"
    shutil.copytree(ROOT / "sample_app", copy / "sample_app")
    port = free_port()
    app = start("--debug", f"--port={port}", cwd=copy)
    assert app.fetch("/healthz").json["status"] == "ok"
    web = copy / "sample_app/web.py"
    changed = web.read_text().replace('"status": "ok", "release"', '"status": "new", "release"')

    def reloaded() -> bool:
        if app.fetch("/healthz").json["status"] == "new":
            return True
        web.write_text(changed)  # repeatedly: autoreload compares with the state at its first check
        return False

    eventually(reloaded)
