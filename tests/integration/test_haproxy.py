"""The role's HAProxy in front of servers that do as they are told."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import (
    count_sessions,
    effective_state,
    execute,
    list_servers,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import UNTRUSTED_HEADERS
from tests.support.haproxy import Balancer, balancer
from tests.support.metrics import asked_for, names, total
from tests.support.pki import Authority
from tests.support.servers import PATIENCE

NAME = "shop.test"


class Handler(BaseHTTPRequestHandler):
    """Tells what it was asked, after ``?seconds=``; of an upgrade it sends back every byte."""

    protocol_version = "HTTP/1.1"
    server: Origin

    def do_GET(self) -> None:
        if self.headers.get("Upgrade"):
            self.echo()
            return
        query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path == "/health":
            self.answer(200 if self.server.healthy else 503, {})
            return
        self.server.asked.append(body)
        time.sleep(float(query.get("seconds", ["0"])[0]))
        self.answer(200, {"server": self.server.name, "headers": dict(self.headers), "client": self.client_address[0]})

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def echo(self) -> None:
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")  # RFC 6455, 1.3
        self.end_headers()
        while data := self.connection.recv(1024):
            self.connection.sendall(data)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Origin(ThreadingHTTPServer):
    """A server behind the balancer; ``asked`` are the bodies of what it was asked. ``proxied`` ones want the PROXY protocol."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, port: int, tls: ssl.SSLContext | None = None, *, proxied: bool = False) -> None:
        self.name, self.tls, self.proxied = name, tls, proxied
        self.healthy, self.asked = True, list[str]()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):
            client = read_proxy_header(request) if self.proxied else client_address[0]
            if self.tls:
                request = self.tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, (client, client_address[1]))

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients may go."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


def read_proxy_header(connection: socket.socket) -> str:
    """Return the client's address of a PROXY header, version 2; https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt."""
    head = connection.recv(16, socket.MSG_WAITALL)
    assert head[:12] == b"\r\n\r\n\0\r\nQUIT\n"
    rest = connection.recv(struct.unpack("!H", head[14:])[0], socket.MSG_WAITALL)
    return f"proxied {socket.inet_ntoa(rest[:4])}" if head[12] == 0x21 else "the balancer itself"


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    found = [Origin(f"web{number}", 0) for number in (1, 2)]
    yield found
    for one in found:
        one.close()


def backend(origins: list[Origin], **keys: Any) -> dict[str, Any]:
    return {"servers": {one.name: one.address for one in origins}, "domains": [NAME], "health": {"path": "/health"}, **keys}


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.text = response.status, response.headers, response.read().decode()

    @property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


def connect(place: Balancer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", place.port, timeout=PATIENCE)


def ask_on(
    client: http.client.HTTPConnection, path: str = "/", body: str | None = None, host: str = NAME, **headers: str
) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request("POST" if body else "GET", path, body, {"Host": host, **named})
    return Answer(client.getresponse())


def get(place: Balancer, path: str = "/", **options: Any) -> Answer:
    with contextlib.closing(connect(place)) as client:
        return ask_on(client, path, **options)


def websocket(place: Balancer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", place.port), PATIENCE)
    lines = ["GET / HTTP/1.1", f"Host: {NAME}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    client.sendall("\r\n".join(lines).encode())
    assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    return client


def monitor(place: Balancer) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", place.monitor_port, timeout=PATIENCE)) as client:
        client.request("GET", "/")
        return client.getresponse().status


def status(place: Balancer, server: str) -> str:
    [found] = {one["status"] for one in list_servers(place.socket) if one["server"] == server}
    return found


def test_a_name_leads_to_its_backend_and_others_to_nobody(origins: list[Origin]) -> None:
    web1, web2 = origins
    backends = {
        "shop": backend([web1], aliases=["www.shop.test"]),
        "masks": backend([web2], domains=["*.shop.test"]),
    }
    with balancer(backends) as place:
        assert get(place).said["server"] == "web1"
        assert get(place, host="SHOP.test.:80").said["server"] == "web1"
        assert get(place, host="a.b.shop.test").said["server"] == "web2"
        assert (get(place, host="other.test").status, get(place, host="").status) == (404, 404)
        moved = get(place, "/a?b=c", host="www.shop.test")
        assert (moved.status, moved.headers["Location"]) == (308, "http://shop.test/a?b=c")


def test_the_client_is_known_by_its_connection_only(origins: list[Origin]) -> None:
    spoofed = {
        "X_Forwarded_For": "6.6.6.6",
        "X_Real_IP": "6.6.6.6",
        "X_Forwarded_Proto": "https",
        "X_Scheme": "https",
        "X_Request_ID": "theirs-theirs",
        "Forwarded": "for=6.6.6.6",
        "X_Forwarded_Host": "evil.test",
        "X_Forwarded_Port": "666",
        "X_Forwarded_Prefix": "/evil",
        "Proxy": "evil.test",
    }
    with balancer({"shop": backend(origins)}) as place:
        answer = get(place, **spoofed)
    seen = {name.lower(): value for name, value in answer.said["headers"].items()}
    assert (seen["x-forwarded-for"], seen["x-real-ip"]) == ("127.0.0.1", "127.0.0.1")
    assert (seen["x-forwarded-proto"], seen["x-scheme"], seen["host"]) == ("http", "http", NAME)
    assert answer.headers["X-Request-ID"] == seen["x-request-id"] != "theirs-theirs"
    assert not seen.keys() & {"forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "proxy"}


def raw(place: Balancer, *lines: str, body: bytes = b"") -> bytes:
    """Return all that is answered to a request as it stands, on a connection that is closed then."""
    with socket.create_connection(("127.0.0.1", place.port), PATIENCE) as client:
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer


def test_a_header_is_not_another_one_s_name_in_disguise(origins: list[Origin]) -> None:
    """To a WSGI app X_Real_IP and X-Real-IP are one; and a hop-by-hop header is not one that the balancer has set."""
    names = ("X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto", "X-Scheme", "X-Request-ID", *UNTRUSTED_HEADERS)
    disguised = [f"{name.replace('-', '_')}: evil" for name in names if "-" in name]
    disguised += [f"{name.upper()}: evil" for name in names] + [f"{name}: evil" for name in names] * 2
    disguised += [f"X-Forwarded-Anything-Else: evil\r\nConnection: {name}" for name in names]
    with balancer({"shop": backend(origins)}) as place:
        seen: dict[str, str] = {}
        for number in range(0, len(disguised), 40):
            answer = raw(place, "GET / HTTP/1.1", f"Host: {NAME}", "X-Kept: kept", *disguised[number : number + 40])
            assert answer.startswith(b"HTTP/1.1 200 ")
            seen = {name.lower(): value for name, value in json.loads(answer.partition(b"\r\n\r\n")[2])["headers"].items()}
            assert "evil" not in seen.values()
            assert not [name for name in seen if "_" in name]
            assert (seen["x-real-ip"], seen["x-forwarded-for"], seen["x-kept"]) == ("127.0.0.1", "127.0.0.1", "kept")
            assert (seen["x-forwarded-proto"], seen["x-scheme"]) == ("http", "http")


@pytest.mark.parametrize("path", ["/a%0a", "/a%00b", "/a%7F?b=c", "/a/..;/b", "/a/%2e%2e/b", "/a/..", f"http://{NAME}/a%0A"])
def test_a_path_that_a_server_may_read_differently_is_refused(one_place: Balancer, path: str) -> None:
    assert raw(one_place, f"GET {path} HTTP/1.1", f"Host: {NAME}").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/a?b=%0a", "/a%20b", "/a/...", "/a..b", f"http://{NAME}/a"])
def test_other_paths_are_not(one_place: Balancer, path: str) -> None:
    assert raw(one_place, f"GET {path} HTTP/1.1", f"Host: {NAME}").startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def one_place() -> Iterator[Balancer]:
    """Run a balancer for tests that change nothing about it."""
    with contextlib.closing(Origin("web1", 0)) as origin, balancer({"shop": backend([origin])}) as place:
        yield place


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked, identity",
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: +5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: xchunked",
        "Content-Length : 5",
    ],
)
def test_a_request_of_two_lengths_hides_no_other_one(one_place: Balancer, lengths: str) -> None:
    hidden = f"GET /hidden HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
    answer = raw(one_place, "POST / HTTP/1.1", f"Host: {NAME}", lengths, body=b"0\r\n\r\n" + hidden)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 422 "))
    assert answer.count(b"HTTP/1.1 ") == 1


def test_nobody_says_by_the_proxy_protocol_who_a_client_is(one_place: Balancer) -> None:
    lie = "PROXY TCP4 6.6.6.6 127.0.0.1 1234 80"
    answer = raw(one_place, f"{lie}\r\nGET / HTTP/1.1", f"Host: {NAME}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"6.6.6.6" not in answer


def test_a_server_that_refuses_costs_no_request_and_none_is_asked_twice(origins: list[Origin]) -> None:
    web1, web2 = origins
    port = web1.server_address[1]
    with balancer({"shop": backend(origins)}) as place:
        web1.close()
        with contextlib.closing(connect(place)) as client:
            notes = [str(number) for number in range(40)]
            assert {ask_on(client, body=note).said["server"] for note in notes} == {"web2"}
        assert web2.asked == notes
        place.wait_for(lambda: status(place, "web1").startswith("DOWN"))
        origins[0] = Origin("web1", port)
        place.wait_for(lambda: status(place, "web1") == "UP")
        assert {get(place).said["server"] for _ in range(10)} == {"web1", "web2"}


def test_each_request_has_a_connection_of_its_own_to_the_server(origins: list[Origin]) -> None:
    with balancer({"shop": backend(origins)}) as place, contextlib.closing(connect(place)) as client:
        answers = [ask_on(client) for _ in range(4)]
        sock = client.sock
        assert [answer.said["headers"].get("connection", answer.said["headers"].get("Connection")) for answer in answers] == [
            "close"
        ] * 4
        assert sock is not None, "the client keeps its own"


def test_a_server_that_is_drained_finishes_what_it_has(origins: list[Origin]) -> None:
    with balancer({"shop": backend(origins)}) as place, ThreadPoolExecutor() as pool:
        slow = [pool.submit(get, place, "/?seconds=1") for _ in range(2)]
        place.wait_for(lambda: count_sessions("web1", ["shop"], place.socket, place.master) == 1)
        execute("set server shop/web1 state drain", place.socket)
        assert {get(place).said["server"] for _ in range(6)} == {"web2"}
        assert status(place, "web1") == "DRAIN"
        place.wait_for(lambda: count_sessions("web1", ["shop"], place.socket, place.master) == 0)
        assert {one.result().said["server"] for one in slow} == {"web1", "web2"}


def test_a_client_that_sticks_leaves_a_server_that_is_drained(origins: list[Origin]) -> None:
    with balancer({"shop": backend(origins, sticky=True)}) as place:
        first = get(place)
        cookie = first.headers["Set-Cookie"].partition(";")[0]
        here = first.said["server"]
        assert {get(place, Cookie=cookie).said["server"] for _ in range(6)} == {here}
        assert here not in first.headers["Set-Cookie"]
        [server] = [one for one in list_servers(place.socket) if one["server"] == here]
        execute(f"set server shop/{here} state {effective_state(server, 'drain')}", place.socket)
        moved = get(place, Cookie=cookie)
        assert moved.said["server"] != here
        assert "funnel_server" in moved.headers["Set-Cookie"]
        execute(f"set server shop/{here} state ready", place.socket)
        assert {get(place, Cookie=cookie).said["server"] for _ in range(3)} == {here}


def test_what_a_server_may_not_get_yet_waits(origins: list[Origin]) -> None:
    server = {"address": origins[0].address, "max_connections": 1}
    with balancer({"shop": backend([], servers={"web1": server}, queue=1)}) as place, ThreadPoolExecutor() as pool:
        waits = pool.map(lambda _: get(place, "/?seconds=0.4").status, range(2))
        assert list(waits) == [200, 200]
        too_long = pool.map(lambda _: get(place, "/?seconds=1.8").status, range(2))
        assert sorted(too_long) == [200, 503]


def test_a_reload_closes_no_connection_and_forgets_no_drain(origins: list[Origin]) -> None:
    with balancer({"shop": backend(origins)}) as place, websocket(place) as talk, contextlib.closing(connect(place)) as idle:
        ask_on(idle)
        execute("set server shop/web2 state drain", place.socket)
        execute("set server shop/web1 weight 7", place.socket)
        [talking] = [name for name in ("web1", "web2") if count_sessions(name, ["shop"], place.socket, place.master)]
        place.reload()
        assert len(place.old_workers()) == 1
        assert count_sessions(talking, ["shop"], place.socket, place.master) == 1, "the old process has it"
        found = {one["server"]: (one["state"], one["weight"]) for one in list_servers(place.socket)}
        assert found == {"web1": ("ready", 7), "web2": ("drain", 100)}
        time.sleep(1)
        last = ask_on(idle)
        assert (last.status, last.headers["Connection"]) == (200, "close"), "an idle connection ends with its next answer"
        talk.sendall(b"still here")
        assert talk.recv(100) == b"still here"
        talk.close()
        place.wait_for(lambda: not place.old_workers())


def test_told_to_stop_it_finishes_what_it_has(origins: list[Origin]) -> None:
    with balancer({"shop": backend(origins)}) as place, ThreadPoolExecutor() as pool:
        slow = pool.submit(get, place, "/?seconds=1")
        place.wait_for(lambda: [one for one in list_servers(place.socket) if one["sessions"]])
        place.stop()
        assert slow.result().status == 200
        assert place.process.wait(PATIENCE) == 0


def test_the_monitor_knows_whether_anybody_serves(origins: list[Origin]) -> None:
    web1, web2 = origins
    backends = {"shop": backend([web1]), "blog": backend([web2], domains=["blog.test"])}
    with balancer(backends) as place:
        assert monitor(place) == 200
        web1.healthy = False
        place.wait_for(lambda: status(place, "web1").startswith("DOWN"))
        assert (monitor(place), get(place).status) == (200, 503)
        web2.healthy = False
        place.wait_for(lambda: monitor(place) == 503)
        web1.healthy = True
        place.wait_for(lambda: monitor(place) == 200)


def test_prometheus_is_told_what_the_dashboard_asks_for(origins: list[Origin]) -> None:
    with balancer({"shop": backend(origins)}) as place:
        assert get(place).status == 200
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", place.metrics_port, timeout=PATIENCE)) as client:
            client.request("GET", "/metrics")
            text = client.getresponse().read().decode()
            client.request("GET", "/")
            assert client.getresponse().status == 404
    assert asked_for("haproxy_") - names(text) == set()
    assert total(text, "haproxy_backend_http_responses_total", proxy="shop", code="2xx") == 1


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("test", datetime.now(UTC))


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem)


def certificate(authority: Authority, directory: Path) -> tuple[str, str]:
    """Return the paths of a certificate and its key, named as the role certificates names them."""
    leaf = authority.leaf(NAME)
    pem, key = directory / "app.shop.pem", directory / "app.shop.key"
    pem.write_text(leaf.pem)
    key.write_text(leaf.key_pem)
    return str(pem), str(key)


def handshake(place: Balancer, trust: ssl.SSLContext, name: str = NAME) -> ssl.SSLSocket:
    return trust.wrap_socket(socket.create_connection(("127.0.0.1", place.tls_port), PATIENCE), server_hostname=name)


def get_tls(place: Balancer, trust: ssl.SSLContext) -> Answer:
    client = http.client.HTTPSConnection(NAME, timeout=PATIENCE, context=trust)
    client.sock = handshake(place, trust)
    with contextlib.closing(client):
        return ask_on(client)


def test_tls_ends_here(origins: list[Origin], authority: Authority, trust: ssl.SSLContext, tmp_path: Path) -> None:
    pem, _ = certificate(authority, tmp_path)
    with balancer({"shop": backend(origins, redirect=True, hsts=60)}, (pem,)) as place:
        moved = get(place, "/a?b=c", body="x")
        assert (moved.status, moved.headers["Location"]) == (308, f"https://{NAME}/a?b=c")
        assert get(place, "/.well-known/acme-challenge/x").status == 308, "no server answers it"
        answer = get_tls(place, trust)
        assert answer.said["headers"]["x-forwarded-proto"] == "https"
        assert answer.headers["Strict-Transport-Security"] == "max-age=60"
        with pytest.raises(ssl.SSLError):
            handshake(place, trust, "other.test")
        trust.set_alpn_protocols(["h2", "http/1.1"])
        with handshake(place, trust) as client:
            assert client.selected_alpn_protocol() == "h2"


def test_challenges_are_passed_on_to_servers_that_answer_them(
    origins: list[Origin], authority: Authority, tmp_path: Path
) -> None:
    pem, _ = certificate(authority, tmp_path)
    with balancer({"shop": backend(origins, redirect=True, challenges=True)}, (pem,)) as place:
        assert get(place, "/.well-known/acme-challenge/x").status == 200
        assert get(place, "/.well-known/acme-challenge/%2e%2e/x").status == 400
        assert get(place, "/.well-known/x").status == 308


def test_tls_is_passed_on_with_the_client_s_address(authority: Authority, trust: ssl.SSLContext, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(authority, tmp_path))
    plain, secure = Origin("web1", 0, proxied=True), Origin("secure", 0, context, proxied=True)
    shop = backend([plain], tls="pass", tls_port=secure.server_address[1], proxy_protocol=True)
    with contextlib.closing(plain), contextlib.closing(secure), balancer({"shop": shop}) as place:
        answer, plain_answer = get_tls(place, trust), get(place)
        assert (answer.said["server"], answer.said["client"]) == ("secure", "proxied 127.0.0.1")
        assert (plain_answer.said["server"], plain_answer.said["client"]) == ("web1", "proxied 127.0.0.1")
        with pytest.raises(OSError, match=r"."):
            handshake(place, trust, "other.test")
        execute("set server shop/web1 state drain", place.socket)
        assert {one["backend"]: (one["state"], one["status"]) for one in list_servers(place.socket)} == {
            "shop": ("drain", "DRAIN"),
            "shop.tls": ("drain", "DRAIN"),
        }
