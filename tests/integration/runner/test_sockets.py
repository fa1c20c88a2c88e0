"""Unix sockets, TCP ports and TLS."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tornado

if TYPE_CHECKING:
    from tests.support.runner import Serve
    from tests.support.sample_app import Response


def test_socket_has_mode_660_and_is_removed_at_exit(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "0.sock")
    assert process.fetch("/whoami").json["pid"] == process.pid
    assert stat.S_IMODE((tmp_path / "0.sock").stat().st_mode) == 0o660
    assert [path.name for path in tmp_path.iterdir()] == ["0.sock"]
    assert process.stop() == 0
    assert not list(tmp_path.iterdir())


def test_socket_mode_is_configurable(serve: Serve, tmp_path: Path) -> None:
    serve("--socket", tmp_path / "0.sock", "--socket-mode", "600")
    assert stat.S_IMODE((tmp_path / "0.sock").stat().st_mode) == 0o600


def test_socket_path_appears_when_it_listens_with_its_mode(spawn: Serve, tmp_path: Path) -> None:
    path = tmp_path / "0.sock"
    process = spawn("--socket", path, umask=0)
    while process.popen.poll() is None:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(FileNotFoundError):
            client.connect(str(path))  # would be refused if the path appeared too early
            break
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_stale_socket_is_replaced(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "0.sock"))
    assert serve("--socket", tmp_path / "0.sock").fetch("/healthz").status == 200


def test_socket_in_use_is_refused(serve: Serve, spawn: Serve, tmp_path: Path) -> None:
    first = serve("--socket", tmp_path / "0.sock")
    second = spawn("--socket", tmp_path / "0.sock")
    assert second.wait() == 1
    assert f"cannot listen on {tmp_path}/0.sock: another process listens on it" in second.log
    assert first.fetch("/whoami").json["pid"] == first.pid


def test_other_file_at_the_socket_path_is_kept(spawn: Serve, tmp_path: Path) -> None:
    (tmp_path / "0.sock").write_text("precious")
    process = spawn("--socket", tmp_path / "0.sock")
    assert process.wait() == 1
    assert "it exists and is not a socket" in process.log
    assert (tmp_path / "0.sock").read_text() == "precious"


def test_socket_of_another_process_is_not_removed(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "0.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "new"))
        (tmp_path / "new").rename(tmp_path / "0.sock")
        assert process.stop() == 0
    assert (tmp_path / "0.sock").is_socket()


def test_missing_socket_directory_is_reported(spawn: Serve, tmp_path: Path) -> None:
    process = spawn("--socket", tmp_path / "none" / "0.sock")
    assert process.wait() == 1
    assert process.lines[-1].endswith(f"cannot listen on unix:{tmp_path}/none/0.sock: No such file or directory")


def test_backlog_limits_pending_connections(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "0.sock", "--backlog", "2")
    process.signal(signal.SIGSTOP)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for client in waiting:
        client.settimeout(0)
    results = [client.connect_ex(str(tmp_path / "0.sock")) for client in waiting]
    process.signal(signal.SIGCONT)
    assert [result == 0 for result in results] == [True, True, True, False, False]


def test_port_is_bound_to_the_loopback_address(serve: Serve) -> None:
    process = serve()
    assert process.fetch("/whoami").json["pid"] == process.pid
    assert "sample_app.web:make_app on http://127.0.0.1:" in process.log
    assert f"Tornado {tornado.version}, Python 3." in process.log


def test_port_in_use_is_refused(serve: Serve, spawn: Serve) -> None:
    port = serve().address
    second = spawn("--port", str(port))
    assert second.wait() == 1
    assert second.lines[-1].endswith(f"cannot listen on http://127.0.0.1:{port}: Address already in use")


def test_reuse_port_balances_connections(serve: Serve) -> None:
    first = serve("--reuse-port")
    second = serve("--reuse-port", "--port", str(first.address))
    pids = {first.fetch("/whoami").json["pid"] for _ in range(60)}
    assert pids == {first.pid, second.pid}


def test_accepting_pauses_when_file_descriptors_run_out(serve: Serve) -> None:
    process = serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    clients = [process.connect() for _ in range(60)]
    process.wait_for("cannot accept connections: Too many open files")
    time.sleep(1)
    assert len(process.lines) < 6
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 1.2, "CPU seconds, most of them for the start"
    for client in clients:
        client.close()
    assert process.fetch("/healthz").status == 200


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1",
         "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_https_is_served_and_drained(serve: Serve, files: tuple[Path, Path]) -> None:
    process = serve("--certificate", files[0], "--key", files[1])
    tls = ssl.create_default_context(cafile=files[0])
    with contextlib.closing(process.connect(tls=tls)) as connection:
        assert connection.fetch("/whoami").json["protocol"] == "https"
        process.signal()
        process.wait_for("draining")
        response: Response = connection.fetch("/whoami")
        assert response.headers["Connection"] == "close"
    assert process.wait() == 0


def test_invalid_private_key_is_refused(spawn: Serve, files: tuple[Path, Path]) -> None:
    process = spawn("--port", "0", "--certificate", files[0], "--key", files[0])
    assert process.wait() == 1
    assert f"cannot serve TLS with --certificate {files[0]} --key {files[0]}: " in process.lines[-1]
