"""Logs: access log, line format, rotated files, syslog."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.runner import TIMESTAMP, write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Eventually, Serve


MORE = """
    class Log(RequestHandler):
        def get(self):
            logging.getLogger().error("first\\n%s forged", time.strftime("%Y"))
            logging.getLogger("shop.cart").warning("ümlaut")
            logging.getLogger("tornado.general").info("general")
            1 / 0

    def make_app():
        logging.basicConfig(level="DEBUG")
        return Application([("/", Main), ("/log", Log)])
"""


def test_all_loggers_share_one_format(serve: Serve, tmp_path: Path) -> None:
    env = {"TORNADO_APP": "shop", "TORNADO_SLOT": "a", "TORNADO_PROCESS": "0", "TORNADO_RELEASE": "1f2e3d4c"}
    process = serve(target="web:make_app", cwd=write_app(tmp_path, more=MORE), env=env)
    assert process.fetch("/log").status == 500
    process.wait_for("tornado.access")
    context = rf"\[shop a/0 1f2e3d4c pid {process.pid}\]"
    for pattern in (
        rf"INFO  runner {context} serving web:make_app on http://127\.0\.0\.1:\d+ \(Tornado .*\)",
        rf"ERROR root {context} first",
        rf"WARNING shop\.cart {context} ümlaut",
        rf"INFO  tornado\.general {context} general",
        rf"ERROR tornado\.application {context} Uncaught exception GET /log \(127\.0\.0\.1\)",
        rf"ERROR tornado\.access {context} 500 GET /log \(127\.0\.0\.1\) \d+\.\d\dms",
    ):
        assert len([line for line in process.lines if re.fullmatch(f"{TIMESTAMP} {pattern}", line)]) == 1, pattern
    assert re.search(r"^    ZeroDivisionError", process.log, re.MULTILINE)
    assert all(re.match(rf"{TIMESTAMP} |    ", line) for line in process.lines), "no forged or unformatted lines"


def test_lines_have_only_the_pid_without_tornado_variables(serve: Serve) -> None:
    process = serve()
    process.wait_for(rf"^{TIMESTAMP} INFO  runner \[pid {process.pid}\] serving ")


def test_log_level_filters_lines(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    process = spawn("--socket", tmp_path / "s", "--log-level", "warning")
    process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
    assert [process.fetch(path).status for path in ("/healthz", "/none")] == [200, 404]
    process.wait_for("WARNING tornado.access .* 404 GET /none")
    assert len(process.lines) == 1


def test_log_file_is_rotated(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    log = tmp_path / "web.log"
    process = spawn(
        "--socket", tmp_path / "s", "--log-to", log, "--log-max-bytes", "2k", "--log-backups", "2",
    )  # fmt: skip
    process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
    for number in range(100):
        assert process.fetch(f"/healthz?{number}").status == 200
    assert process.stop() == 0
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["web.log", "web.log.1", "web.log.2"]
    assert all(500 < file.stat().st_size <= 2048 for file in files[1:])
    assert "drained" in log.read_text().splitlines()[-1]
    assert process.lines == []


def test_each_forked_child_has_a_log_file(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    process = spawn("--port", "0", "--fork", "2", "--log-to", tmp_path / "web.log")
    files = [tmp_path / "web.0.log", tmp_path / "web.1.log"]
    eventually(lambda: all(file.exists() and " serving " in file.read_text() for file in files))
    assert process.stop() == 0
    assert "received SIGTERM: stopping" in (tmp_path / "web.log").read_text()


def test_syslog_and_stderr_receive_the_same_lines(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as syslog:
        syslog.settimeout(10)
        syslog.bind(("127.0.0.1", 0))
        target = f"udp://localhost:{syslog.getsockname()[1]}"
        environment = {"TORNADO_APP": "shop", "TORNADO_PROCESS": "1"}
        process = spawn("--socket", tmp_path / "s", "--log-to", "stderr", "--log-to", target, env=environment)
        first = syslog.recv(9999).decode()
        process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
        process.fetch("/none", headers={"X-Request-ID": "9c41f3a7"})
        lines = [first]
        while " 404 GET /none" not in lines[-1]:
            lines.append(syslog.recv(9999).decode())
        assert process.stop() == 0
        lines.append(syslog.recv(9999).decode())
    head = rf"<14>1 {TIMESTAMP} {re.escape(socket.gethostname())} shop {process.pid} - - "
    assert re.match(rf"{head}{TIMESTAMP} INFO  runner \[shop 1 pid {process.pid}\] serving ", first), "user.info, from this host"
    assert lines[-2].startswith("<12>1 "), "user.warning"
    assert lines[-2].endswith(" request=9c41f3a7")
    assert all(line.partition(" - - ")[2] in process.log for line in lines), "both receive the same lines"


def test_syslog_receives_the_lines_of_a_short_lived_process(spawn: Serve) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as syslog:
        syslog.settimeout(10)
        syslog.bind(("127.0.0.1", 0))
        process = spawn("--port", "0", "--log-to", f"udp://localhost:{syslog.getsockname()[1]}", target="none:app")
        assert process.wait() == 1
        assert "CRITICAL runner" in (line := syslog.recv(9999).decode())
    assert line.startswith("<10>1 "), "user.crit"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "127.0.0.1"])
def test_unreachable_syslog_does_not_block_requests(spawn: Serve, tmp_path: Path, eventually: Eventually, host: str) -> None:
    process = spawn("--socket", tmp_path / "s", "--log-to", "stderr", "--log-to", f"udp://{host}:9")
    process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
    with contextlib.closing(process.connect()) as connection:
        began = time.monotonic()
        for _ in range(500):
            assert connection.fetch("/healthz").status == 200
        assert time.monotonic() - began < 20
    assert process.stop() == 0
    assert len([line for line in process.lines if "cannot log to" in line]) == (host == "no-such-host.invalid"), "logged once"


def test_unresponsive_resolver_does_not_block_requests(spawn: Serve, tmp_path: Path, eventually: Eventually) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\nreal = socket.getaddrinfo\n"
        "def slow(host, *arguments, **options):\n"
        "    time.sleep(30 if host == 'logs.invalid' else 0)\n"
        "    return real(host, *arguments, **options)\n"
        "socket.getaddrinfo = slow\n"
    )
    began = time.monotonic()
    process = spawn("--socket", tmp_path / "s", "--log-to", "udp://logs.invalid:9", env={"PYTHONPATH": str(tmp_path)})
    process.address = eventually((tmp_path / "s").is_socket) and tmp_path / "s"
    assert process.fetch("/healthz").status == 200
    assert process.stop() == 0
    assert time.monotonic() - began < 25


def test_log_file_that_cannot_be_opened_is_refused(spawn: Serve) -> None:
    process = spawn("--port", "0", "--log-to", "stderr", "--log-to", "/none/log")
    assert process.wait() == 1
    assert process.lines == ["runner: error: cannot log to /none/log: No such file or directory"]


def test_startup_failure_is_also_printed_to_stderr(spawn: Serve, tmp_path: Path) -> None:
    process = spawn("--port", "0", "--log-to", tmp_path / "web.log", target="none:app")
    assert process.wait() == 1
    assert len(process.lines) == 1
    assert "runner: error: cannot import none" in process.log
    assert "CRITICAL runner" in (tmp_path / "web.log").read_text()
