from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.tls import reachability
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CHALLENGE_PORT
from ansible_collections.funnel.tornado.plugins.module_utils.tls.reachability import unreachable_domains
from tests.support.servers import free_port


@contextmanager
def proxy(port: int, status: int = 404, own_port: int = 0) -> Iterator[int]:
    """Run a web server that forwards challenges to a port, or answers ``status``; yield its own port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b""
            with socket.create_connection(("127.0.0.1", port), 5) if port else socket.socket() as client:
                if port:
                    client.sendall(f"GET {self.path} HTTP/1.0\r\n\r\n".encode())
                    body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")[2]
            self.send_response(200 if port else status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", own_port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_only_root_can_answer_challenges() -> None:
    assert CHALLENGE_PORT < 1024


def test_domain_that_forwards_challenges_to_this_host_is_reachable() -> None:
    port = free_port()
    with proxy(port) as http_port:
        assert unreachable_domains(["127.0.0.1"], port, http_port) == []


def test_proxy_that_starts_meanwhile_is_waited_for() -> None:
    port, http_port = free_port(), free_port()
    with ThreadPoolExecutor() as executor:
        found = executor.submit(unreachable_domains, ["127.0.0.1"], port, http_port, settling=20)
        time.sleep(0.5)
        with proxy(port, own_port=http_port):
            assert found.result() == []


@pytest.mark.parametrize(("status", "reachable"), [(404, False), (200, False), (503, False), (301, True), (308, True)])
def test_other_answers_are_reported_except_redirects(status: int, *, reachable: bool) -> None:
    with proxy(0, status) as http_port:
        found = unreachable_domains(["127.0.0.1"], free_port(), http_port, settling=0)
    expected = f"127.0.0.1 resolves to 127.0.0.1, which does not forward challenges to this host: it answers {status}"
    assert found == ([] if reachable else [expected])


def test_endless_interim_responses_do_not_delay_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "TIMEOUT", 0.5)

    def answer(listener: socket.socket) -> None:
        connection, _address = listener.accept()
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        port = listener.getsockname()[1]
        began = time.monotonic()
        [reason] = reachability.unreachable_domains(["127.0.0.1"], free_port(), port, settling=0)
    assert time.monotonic() - began < 3
    assert reason.startswith(f"127.0.0.1 resolves to 127.0.0.1, which does not answer on port {port}: ")


def test_each_unreachable_domain_has_its_reason() -> None:
    found = unreachable_domains(["no-such-name.invalid", "127.0.0.1"], free_port(), http_port := free_port(), settling=0)
    assert found == [
        "no-such-name.invalid does not resolve",
        f"127.0.0.1 resolves to 127.0.0.1, which does not answer on port {http_port}: Connection refused",
    ]
