"""Graceful shutdown: connection draining, in-flight requests, idle connections, websockets."""

from __future__ import annotations

import asyncio
import http.client
import select
import signal
import time
from typing import TYPE_CHECKING

import pytest
import tornado.websocket

from tests.support.runner import load_generator, write_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Connection, Serve


def test_in_flight_requests_finish_and_idle_connections_are_closed(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s")
    slow, idle, late, partial, uploading = (process.connect() for _ in range(5))
    for connection in (idle, late):
        assert "Connection" not in connection.fetch("/healthz").headers, "kept alive"
    slow.send_request("/sleep?seconds=4")
    partial.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
    uploading.sock.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
    time.sleep(0.2)

    begin = time.monotonic()
    process.signal()
    process.wait_for("draining")
    late.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read_response(late)["Connection"] == "close", "sent before idle connections are closed"
    assert late.is_closed_by_server()
    with pytest.raises(FileNotFoundError):
        process.connect()
    uploading.sock.sendall(b"def")
    assert read_response(uploading)["Connection"] == "close"
    assert idle.is_closed_by_server()
    assert time.monotonic() - begin > 0.5, "idle connections have a grace period"
    assert select.select([slow.sock], [], [], 0.1) == ([], [], []), "shorter than the in-flight request"
    partial.sock.sendall(b" x\r\n\r\n")
    assert read_response(partial)["Connection"] == "close", "a partially received request is not aborted"
    response = slow.read_response()
    assert (response.status, response.headers["Connection"]) == (200, "close")
    assert process.wait() == 0
    assert "drained after" in process.log


def test_sigint_drains_a_port(serve: Serve) -> None:
    process = serve()
    slow = process.connect()
    slow.send_request("/sleep?seconds=0.5")
    time.sleep(0.1)
    process.signal(signal.SIGINT)
    process.wait_for("draining")
    time.sleep(0.1)
    with pytest.raises(ConnectionRefusedError):
        process.connect()
    assert slow.read_response().status == 200
    assert process.wait() == 0


def test_pending_connections_are_served(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s")
    process.signal(signal.SIGSTOP)
    waiting = [process.connect() for _ in range(900)]  # Tornado accepts 128 at a time
    for connection in waiting:
        connection.send_request("/whoami")
    process.signal()
    process.signal(signal.SIGCONT)
    assert {connection.read_response().status for connection in waiting} == {200}
    assert process.wait() == 0


def test_websockets_are_closed_with_1012_immediately(serve: Serve) -> None:
    process = serve()

    async def talk() -> list[tuple[int | None, str | None]]:
        urls = [f"ws://127.0.0.1:{process.address}/{path}" for path in ("ws", "ws", "ticks")]
        sockets = [await tornado.websocket.websocket_connect(url) for url in urls]
        await sockets[0].write_message("hello")
        assert await sockets[0].read_message() == "hello"
        process.signal()
        for each in sockets:
            while await each.read_message() is not None:
                pass
        return [(each.close_code, each.close_reason) for each in sockets]

    start = time.monotonic()
    assert asyncio.run(talk()) == [(1012, "service restart")] * 3
    assert process.wait() == 0
    assert time.monotonic() - start < 20, "long before the drain timeout"
    assert "3 websockets" in process.log
    assert "Traceback" not in process.log


def test_websocket_opened_while_draining_is_closed_with_1012(serve: Serve) -> None:
    process = serve()
    early, late = process.connect(), process.connect()
    assert late.fetch("/healthz").status == 200
    early.send_request("/sleep?seconds=0.5")
    time.sleep(0.1)
    process.signal()
    process.wait_for("draining")
    handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
    late.sock.sendall(f"GET /ws HTTP/1.1\r\nHost: x\r\n{handshake}\r\n".encode())
    assert late.sock.recv(999).startswith(b"HTTP/1.1 101 ")
    assert late.sock.recv(99)[2:] == (1012).to_bytes(2, "big") + b"service restart"
    late.close()
    assert early.read_response().status == 200
    assert process.wait() == 0


def test_drain_timeout_aborts_in_flight_requests(serve: Serve) -> None:
    process = serve("--drain", "0.5")
    slow = process.connect()
    slow.send_request("/sleep?seconds=50")
    time.sleep(0.1)
    start = time.monotonic()
    assert process.stop() == 0
    assert 0.5 <= time.monotonic() - start < 20
    assert "drain timeout reached: aborting 1 in-flight requests" in process.log
    with pytest.raises(ConnectionError):
        slow.read_response()


def test_second_signal_exits_immediately_and_removes_files(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s", "--pid-file", tmp_path / "pid")
    process.connect().send_request("/sleep?seconds=50")
    time.sleep(0.1)
    process.signal()
    process.wait_for("draining")
    assert process.stop() == 1
    assert not list(tmp_path.iterdir())


def test_thread_that_never_ends_does_not_block_the_exit(serve: Serve, tmp_path: Path) -> None:
    more = """
        class Main(RequestHandler):
            def get(self):
                IOLoop.current().run_in_executor(None, time.sleep, 50)
    """
    process = serve("--drain", "1", target="web:make_app", cwd=write_app(tmp_path, more=more))
    assert process.fetch("/").status == 200
    start = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - start < 20


def test_graceful_shutdown_loses_no_request_under_load(serve: Serve, tmp_path: Path) -> None:
    """No request is retried, as nginx does not retry unsafe methods."""
    old, new = (serve("--socket", tmp_path / name) for name in ("old", "new"))
    link = tmp_path / "current"
    link.symlink_to("old")
    with load_generator(lambda: old.connect(address=link)) as responses:
        time.sleep(0.5)
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(link)
        assert old.stop() == 0
        time.sleep(0.3)
    assert set(responses()) == {old.pid, new.pid}


def read_response(connection: Connection) -> http.client.HTTPMessage:
    """Read the response to a request that was written as raw bytes, and return its headers."""
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    assert response.status == 200
    response.read()
    return response.headers
