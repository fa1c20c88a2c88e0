"""HTTP server: trusted proxy headers (xheaders), server-sent events, request ids, limits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.support.runner import XHEADERS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Process, Serve


def client_of(process: Process, headers: dict[str, str]) -> tuple[str, str]:
    who = process.fetch("/whoami", headers=headers).json
    return who["remote_ip"], who["protocol"]


def test_xheaders_are_trusted_on_a_socket(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s")
    assert client_of(process, XHEADERS) == ("192.0.2.1", "https"), "X-Real-Ip and X-Scheme take precedence"
    forwarded = {"X-Forwarded-For": "192.0.2.3, 192.0.2.2", "X-Forwarded-Proto": "https"}
    assert client_of(process, forwarded) == ("192.0.2.2", "https"), "the proxy appends the last address"
    assert client_of(process, {}) == ("0.0.0.0", "http")
    assert client_of(process, {"X-Real-Ip": "nonsense", "X-Scheme": "gopher"}) == ("0.0.0.0", "http")


def test_xheaders_are_not_trusted_on_a_port(serve: Serve) -> None:
    assert client_of(serve(), XHEADERS) == ("127.0.0.1", "http")


def test_xheaders_are_configurable(serve: Serve, tmp_path: Path) -> None:
    assert client_of(serve("--xheaders"), XHEADERS) == ("192.0.2.1", "https")
    assert client_of(serve("--socket", tmp_path / "s", "--no-xheaders"), XHEADERS) == ("0.0.0.0", "http")


def test_trusted_proxies_are_skipped_in_x_forwarded_for(serve: Serve) -> None:
    process = serve("--xheaders", "--trusted-downstream", "10.0.0.8,10.0.0.9")
    assert client_of(process, {"X-Forwarded-For": "192.0.2.2, 10.0.0.9, 10.0.0.8"})[0] == "192.0.2.2"
    assert client_of(process, {"X-Forwarded-For": "192.0.2.2, 10.0.0.7"})[0] == "10.0.0.7"
    assert client_of(process, {"X-Forwarded-For": "10.0.0.9", "X-Real-Ip": "192.0.2.1"})[0] == "192.0.2.1"


def test_server_sent_events_disable_buffering_in_nginx(serve: Serve) -> None:
    connection = serve().connect()
    connection.send_request("/events")
    assert connection.getresponse().headers["X-Accel-Buffering"] == "no"


def test_other_responses_keep_buffering_in_nginx(serve: Serve) -> None:
    assert "X-Accel-Buffering" not in serve().fetch("/whoami").headers


def test_log_lines_of_a_request_end_with_its_id(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s")
    connection = process.connect()
    connection.fetch("/whoami", headers={"X-Request-ID": "one.1-a_b"})
    connection.fetch("/sleep?seconds=nonsense", headers={"X-Request-ID": "two"})
    connection.fetch("/healthz")
    process.wait_for(r"200 GET /whoami .* request=one.1-a_b$")
    process.wait_for(r"400 GET /sleep.* request=two$")
    process.wait_for(r"200 GET /healthz \([\d.]+\) [\d.]+ms$")


def test_request_id_must_be_valid_and_come_from_the_proxy(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s")
    process.fetch("/whoami", headers={"X-Request-ID": "a b"})
    process.wait_for(r"200 GET /whoami \([\d.]+\) [\d.]+ms$")
    process = serve()
    process.fetch("/whoami", headers={"X-Request-ID": "mine"})
    process.wait_for(r"200 GET /whoami \([\d.]+\) [\d.]+ms$")


def test_larger_bodies_are_rejected(serve: Serve) -> None:
    process = serve("--max-body-size", "100k")
    for path in ("/echo", "/upload"):  # buffered and streamed
        assert process.fetch(path, b"x" * 102400).status == 200
        connection = process.connect()
        connection.sock.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 102401\r\n\r\n".encode())
        assert connection.sock.recv(99).startswith(b"HTTP/1.1 400 ")


def test_default_body_size_is_fifty_megabytes(serve: Serve) -> None:
    assert serve().fetch("/upload", b"x" * (50 << 20)).json["bytes"] == 50 << 20


def test_idle_connection_is_closed_after_the_timeout(serve: Serve) -> None:
    connection = serve("--idle-timeout", "0.2").connect()
    start = time.monotonic()
    assert connection.is_closed_by_server()
    assert 0.15 < time.monotonic() - start < 20
