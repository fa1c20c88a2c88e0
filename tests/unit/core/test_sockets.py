from __future__ import annotations

import contextlib
import errno
import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import unix_sockets
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import (
    connect,
    count_connections,
    listener_pid,
    listening_addresses,
    probe,
)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / ".0.sock.new"))
        server.listen()
        (tmp_path / ".0.sock.new").rename(tmp_path / "0.sock")
        yield server


def test_connections_of_a_renamed_socket_are_counted_until_closed(tmp_path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "0.sock"))
        accepted, _ = listener.accept()
        assert count_connections(tmp_path, set()) == 1
        accepted.close()
    assert count_connections(tmp_path, set()) == 0


def test_connections_in_other_directories_are_not_counted(tmp_path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "0.sock"))
        accepted, _ = listener.accept()
        with accepted:
            assert count_connections(tmp_path.with_name(tmp_path.name + "-other"), set()) == 0


def test_connections_to_a_port_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert count_connections(Path("/nowhere"), {port}) == 0
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            with accepted:
                assert count_connections(Path("/nowhere"), {port}) == 1


def test_the_listener_may_be_a_descendant_of_the_supervised_process(tmp_path: Path, listener: socket.socket) -> None:
    assert listener.fileno() >= 0
    assert listener_pid(tmp_path / "0.sock", os.getpid()) == os.getpid()
    assert listener_pid(tmp_path / "0.sock", os.getppid()) == os.getpid()


def test_a_listener_of_another_process_is_not_accepted(tmp_path: Path, listener: socket.socket) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert listener.fileno() >= 0
    assert listener_pid(tmp_path / "0.sock", child) is None


class Handler(http.server.BaseHTTPRequestHandler):
    body = b""
    header = ""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.header:
            self.send_header("X-Release", self.header)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_arguments: object) -> None:
        """Discard log messages."""


@pytest.mark.parametrize(
    ("body", "header", "release"),
    [
        (b"ok", "", None),
        (b'{"status": "ok", "release": "0123456789ab"}', "", "0123456789ab"),
        (b"ok", "0123456789ab", "0123456789ab"),
        (b'{"release": "2026.11"}', "", None),
        (b'["release"]', "", None),
    ],
)
def test_a_response_may_report_the_release(body: bytes, header: str, release: str | None) -> None:
    handler = type("ReleaseHandler", (Handler,), {"body": body, "header": header})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        result = probe(("127.0.0.1", server.server_port), "/healthz", "shop.example")
        thread.join()
    assert (result.status, result.release) == (200, release)


@contextlib.contextmanager
def responding(respond: Callable[[socket.socket], object]) -> Iterator[tuple[str, int]]:
    """Return the address of a server with arbitrary responses."""

    def serve() -> None:
        with contextlib.suppress(OSError), server.accept()[0] as connection:
            connection.recv(1000)
            respond(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[:2]
        thread.join()


def repeat_forever(part: bytes, pause: float = 0) -> Callable[[socket.socket], object]:
    def respond(connection: socket.socket) -> None:
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return respond


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "respond",
    [
        repeat_forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
        repeat_forever(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05),
        repeat_forever(b"X-Flood: 1\r\n"),
        repeat_forever(b"H", pause=0.05),
        lambda connection: (connection.sendall(OK), repeat_forever(b"X: 1\r\n")(connection)),
        lambda connection: (connection.sendall(OK + b"\r\n"), repeat_forever(b" ", pause=0.05)(connection)),
        lambda connection: (connection.sendall(OK + b"Content-Length: 9\r\n\r\n"), threading.Event().wait(1.5)),
        lambda connection: connection.sendall(b"HTTP/1.1 99999999999 ?\r\n\r\n"),
        lambda connection: connection.close(),
    ],
    ids=["interim", "slow interim", "no status line", "drip", "headers", "slow body", "silent", "no status", "nothing"],
)
def test_malicious_responses_end_before_the_timeout(respond: Callable[[socket.socket], object]) -> None:
    start = time.monotonic()
    with responding(respond) as address, pytest.raises(OSError, match=r"\w"):
        probe(address, "/", "shop.test", timeout=0.6)
    assert time.monotonic() - start < 3


CHUNK = b"40\r\n" + b"x" * 0x40 + b"\r\n"


@pytest.mark.parametrize(
    "respond",
    [
        lambda connection: connection.sendall(OK + b"\r\n" + b"[" * 60_000),
        lambda connection: connection.sendall(OK + b"\r\n" + b'{"release":' * 5_000),
        lambda connection: connection.sendall(OK + b"\r\n" + b"1" * 60_000),
        lambda connection: (connection.sendall(OK + b"\r\n"), repeat_forever(b"x" * 65_536)(connection)),
        lambda connection: (connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n"), repeat_forever(CHUNK)(connection)),
        lambda connection: connection.sendall(OK + b"X-Release: 0123456789ab 1\x1b\r\n\r\n"),
    ],
    ids=["nested", "nested objects", "number", "long", "chunks", "header"],
)
def test_a_success_with_an_invalid_body_is_healthy_without_release(respond: Callable[[socket.socket], object]) -> None:
    with responding(respond) as address:
        result = probe(address, "/", "shop.test")
    assert (result.status, result.release) == (200, None)


def test_a_response_is_quoted_on_one_bounded_line_without_control_characters() -> None:
    answer = b"HTTP/1.1 401 Who?\r\nContent-Length: 600\r\n\r\n" + b"no\n\x1b[2Jway " * 60
    with responding(lambda connection: connection.sendall(answer)) as address:
        text = str(probe(address, "/", "shop.test"))
    assert text.startswith(r"401 Who?: no \x1b[2Jway no ")
    assert text.endswith("...")
    assert len(text) < 400


def test_headers_of_a_probe_replace_its_host() -> None:
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                received.append(connection.recv(1000))
                connection.sendall(OK + b"\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        probe(server.getsockname()[:2], "/", "shop.test", headers={"host": "in.test", "X-Key": "1"})
        thread.join()
    assert received[0].split(b"\r\n")[1:3] == [b"Host: in.test", b"X-Key: 1"]


def test_a_socket_of_mode_0600_is_refused_to_another_user_but_not_to_root() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
        Path(directory).chmod(0o755)
        path = Path(directory) / "0.sock"
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o600)
        connect(path).close()
        if os.geteuid() == 0:
            with pytest.raises(PermissionError):
                connect(path, user="www-data")
            path.chmod(0o606)
            connect(path, user="www-data").close()
            path.chmod(0o600)
            connect(path).close()


def test_the_addresses_of_a_process_are_those_that_it_listens_on(tmp_path: Path, listener: socket.socket) -> None:
    assert listener.fileno() >= 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            found = listening_addresses(os.getpid())
    assert f"127.0.0.1:{port}" in found
    assert str(tmp_path / ".0.sock.new") in found, "the name to which it was bound"
    assert listening_addresses(1 << 22) == []


def test_the_listener_of_a_port_is_the_process_that_holds_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, subprocess.Popen(["sleep", "60"]) as other:
        address = ("127.0.0.1", server.getsockname()[1])
        assert listener_pid(address, os.getpid()) == os.getpid()
        assert listener_pid(address, other.pid) is None
        assert listener_pid(("127.0.0.2", address[1]), os.getpid()) is None, "another address"
        other.kill()


@pytest.mark.parametrize(
    ("bound", "requested"),
    [
        ("0.0.0.0", "127.0.0.2"),
        ("127.0.0.1", "0.0.0.0"),
        ("::", "127.0.0.2"),
        ("::", "::1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.3", "127.0.0.3"),
    ],
)
def test_a_wildcard_listener_listens_on_each_address(bound: str, requested: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as server:
        assert listener_pid((requested, server.getsockname()[1]), os.getpid()) == os.getpid()


@pytest.mark.parametrize("squatted", ["127.0.0.1", "0.0.0.0"])
def test_a_process_that_squats_the_ipv4_address_of_a_port_is_not_taken_for_its_owner(squatted: str) -> None:
    """The owner listens on its port, too, but for IPv6 only, so that another app got its requests."""
    with socket.create_server((squatted, 0)) as squatter:
        port = squatter.getsockname()[1]
        code = f"import socket, sys; s = socket.create_server(('::', {port}), family=socket.AF_INET6); print(1, flush=True)"
        command = [sys.executable, "-c", f"{code}; sys.stdin.read()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
            assert owner.stdout
            assert owner.stdout.readline() == b"1\n"
            found = [listener_pid((host, port), owner.pid) for host in ("::1", "127.0.0.1")]
        assert found == [owner.pid, None]


def test_name_of_a_socket_cannot_pass_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table /proc/net/unix contains the name as it is, with its newline."""
    forged, broken = b"0 0 0 0 0 03 1 /forged/0.sock", b"a b c 00010000 d 03 wrong /forged/0.sock"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(b"\0x\n" + forged)
        other.bind(b"\0x\n" + broken)
        assert {forged, broken} <= set(unix_sockets.TABLE.read_bytes().split(b"\n"))
        assert count_connections(Path("/forged"), set()) == 0
        monkeypatch.setattr(unix_sockets, "_query", unavailable)
        assert count_connections(Path("/forged"), set()) <= 1, "a kernel without unix_diag"
        assert listening_addresses(os.getpid()) == []


def unavailable() -> list[unix_sockets.UnixSocket]:
    raise OSError(errno.ENOENT, "the kernel lacks the module")


def test_a_listener_on_an_abstract_or_relative_socket_has_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as relative:
        for server, name in ((abstract, f"\0funnel-{os.getpid()}\0"), (relative, "0.sock")):
            server.bind(name)
            server.listen()
        assert {f"@funnel-{os.getpid()}", "0.sock"} <= set(listening_addresses(os.getpid()))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("0.sock")
            with relative.accept()[0]:
                assert count_connections(tmp_path, set()) == 0, "its directory is unknown"


def test_any_socket_name_is_parsed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        path = os.fsencode(tmp_path) + b"/w\xff.sock"
        server.bind(path)
        server.listen()
        client.connect(path)
        assert count_connections(tmp_path, set()) >= 0
        accepted, _ = server.accept()
        with accepted:
            assert count_connections(tmp_path, set()) == 1
