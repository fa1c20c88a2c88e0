"""``python -m sample_app``: its options, its processes, its log."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

from tests.pki import Authority
from tests.sample_app import PATIENCE, ROOT, App
from tests.servers import free_port

Start = Callable[..., App]


def test_it_serves(start: Start) -> None:
    app = start()
    assert app.ask("/whoami").json["pid"] == app.pid


def test_several_processes_serve_one_port(start: Start) -> None:
    app = start("--proc=2")
    app.wait_for(" open http://", times=2)
    pids = {app.ask("/whoami").json["pid"] for _ in range(60)}
    assert app.pid not in pids
    assert len(pids) == 2


def test_a_mistake_ends_it_with_one_line() -> None:
    command = [sys.executable, "-B", "-m", "sample_app", "--ssl"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (1, "sample_app: --ssl: goes with both --certificate and --key\n")


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
    time.sleep(1.5)  # it remembers the files as they are when it looks for the first time
    web = copy / "sample_app/web.py"
    web.write_text(web.read_text().replace('"status": "ok", "release"', '"status": "new", "release"'))
    app.wait_for(" open http://", times=2)
    assert app.ask("/healthz").json["status"] == "new"
