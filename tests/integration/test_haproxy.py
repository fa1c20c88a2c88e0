"""HAProxy with the role's configuration as the load balancer of controllable servers."""

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

from ansible_collections.funnel.tornado.plugins.module_utils.sites.backend_health import (
    Expected,
    outdated_backends,
    wait_until_up,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import (
    count_sessions,
    effective_state,
    execute,
    list_servers,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import UNTRUSTED_HEADERS
from ansible_collections.funnel.tornado.plugins.plugin_utils.haproxy_rendering import backend_digests
from tests.support.haproxy import HaproxyProcess, run_haproxy
from tests.support.metrics import dashboard_metrics, names, total
from tests.support.pki import Authority
from tests.support.servers import PATIENCE, free_port

NAME = "shop.test"


class Handler(BaseHTTPRequestHandler):
    """Responds with the request it got, after ``?seconds=``; echoes all data after a websocket upgrade."""

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
        if self.path == "/verdict":
            known = (self.headers["Host"], self.headers["X-Key"]) == ("in.test", "a b")
            self.answer(401, {}, {"X-Funnel-Health": "healthy" if self.server.healthy and known else "unhealthy"})
            return
        self.server.received.append(body)
        time.sleep(float(query.get("seconds", ["0"])[0]))
        self.answer(200, {"server": self.server.name, "headers": dict(self.headers), "client": self.client_address[0]})

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
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
        """Disable the log."""


class Origin(ThreadingHTTPServer):
    """A server behind the load balancer; ``received`` has the request bodies. ``proxied`` requires the PROXY protocol."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, port: int, tls: ssl.SSLContext | None = None, *, proxied: bool = False) -> None:
        self.name, self.tls, self.proxied = name, tls, proxied
        self.healthy, self.received = True, list[str]()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):
            client = read_proxy_header(request) if self.proxied else client_address[0]
            if self.tls:
                request = self.tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, (client, client_address[1]))

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


def read_proxy_header(connection: socket.socket) -> str:
    """Return the client address in a PROXY header, version 2: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt."""
    head = connection.recv(16, socket.MSG_WAITALL)
    assert head[:12] == b"\r\n\r\n\0\r\nQUIT\n"
    rest = connection.recv(struct.unpack("!H", head[14:])[0], socket.MSG_WAITALL)
    return f"proxied {socket.inet_ntoa(rest[:4])}" if head[12] == 0x21 else "the load balancer itself"


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    servers = [Origin(f"web{number}", 0) for number in (1, 2)]
    yield servers
    for server in servers:
        server.close()


def backend(origins: list[Origin], **keys: Any) -> dict[str, Any]:
    return {
        "servers": {origin.name: origin.address for origin in origins},
        "domains": [NAME],
        "health": {"path": "/health"},
        **keys,
    }


class Response:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.text = response.status, response.headers, response.read().decode()

    @property
    def json_body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


def connect(haproxy: HaproxyProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", haproxy.port, timeout=PATIENCE)


def request_on(
    client: http.client.HTTPConnection, path: str = "/", body: str | None = None, host: str = NAME, **headers: str
) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request("POST" if body else "GET", path, body, {"Host": host, **named})
    return Response(client.getresponse())


def get(haproxy: HaproxyProcess, path: str = "/", **options: Any) -> Response:
    with contextlib.closing(connect(haproxy)) as client:
        return request_on(client, path, **options)


def websocket(haproxy: HaproxyProcess) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", haproxy.port), PATIENCE)
    lines = ["GET / HTTP/1.1", f"Host: {NAME}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    client.sendall("\r\n".join(lines).encode())
    assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    return client


def monitor(haproxy: HaproxyProcess) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", haproxy.monitor_port, timeout=PATIENCE)) as client:
        client.request("GET", "/")
        return client.getresponse().status


def status(haproxy: HaproxyProcess, server: str) -> str:
    [found] = {entry["status"] for entry in list_servers(haproxy.socket) if entry["server"] == server}
    return found


def test_domains_route_to_their_backend_and_unknown_names_get_404(origins: list[Origin]) -> None:
    web1, web2 = origins
    backends = {
        "shop": backend([web1], aliases=["www.shop.test"]),
        "masks": backend([web2], domains=["*.shop.test"]),
    }
    with run_haproxy(backends) as haproxy:
        assert get(haproxy).json_body["server"] == "web1"
        assert get(haproxy, host="SHOP.test.:80").json_body["server"] == "web1"
        assert get(haproxy, host="a.b.shop.test").json_body["server"] == "web2"
        assert (get(haproxy, host="other.test").status, get(haproxy, host="").status) == (404, 404)
        moved = get(haproxy, "/a?b=c", host="www.shop.test")
        assert (moved.status, moved.headers["Location"]) == (308, "http://shop.test/a?b=c")


def test_client_address_comes_from_the_connection_only(origins: list[Origin]) -> None:
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
    with run_haproxy({"shop": backend(origins)}) as haproxy:
        answer = get(haproxy, **spoofed)
    seen = {name.lower(): value for name, value in answer.json_body["headers"].items()}
    assert (seen["x-forwarded-for"], seen["x-real-ip"]) == ("127.0.0.1", "127.0.0.1")
    assert (seen["x-forwarded-proto"], seen["x-scheme"], seen["host"]) == ("http", "http", NAME)
    assert answer.headers["X-Request-ID"] == seen["x-request-id"] != "theirs-theirs"
    assert not seen.keys() & {"forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "proxy"}


def raw(haproxy: HaproxyProcess, *lines: str, body: bytes = b"") -> bytes:
    """Send a request verbatim and return the whole response, until the connection closes."""
    with socket.create_connection(("127.0.0.1", haproxy.port), PATIENCE) as client:
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer


def test_header_variants_cannot_spoof_the_client_address(origins: list[Origin]) -> None:
    """WSGI does not distinguish X_Real_IP from X-Real-IP, and a client may declare any header hop-by-hop."""
    names = ("X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto", "X-Scheme", "X-Request-ID", *UNTRUSTED_HEADERS)
    variants = [f"{name.replace('-', '_')}: evil" for name in names if "-" in name]
    variants += [f"{name.upper()}: evil" for name in names] + [f"{name}: evil" for name in names] * 2
    variants += [f"X-Forwarded-Anything-Else: evil\r\nConnection: {name}" for name in names]
    with run_haproxy({"shop": backend(origins)}) as haproxy:
        seen: dict[str, str] = {}
        for number in range(0, len(variants), 40):
            answer = raw(haproxy, "GET / HTTP/1.1", f"Host: {NAME}", "X-Kept: kept", *variants[number : number + 40])
            assert answer.startswith(b"HTTP/1.1 200 ")
            seen = {name.lower(): value for name, value in json.loads(answer.partition(b"\r\n\r\n")[2])["headers"].items()}
            assert "evil" not in seen.values()
            assert not [name for name in seen if "_" in name]
            assert (seen["x-real-ip"], seen["x-forwarded-for"], seen["x-kept"]) == ("127.0.0.1", "127.0.0.1", "kept")
            assert (seen["x-forwarded-proto"], seen["x-scheme"]) == ("http", "http")


@pytest.mark.parametrize("path", ["/a%0a", "/a%00b", "/a%7F?b=c", "/a/..;/b", "/a/%2e%2e/b", "/a/..", f"http://{NAME}/a%0A"])
def test_paths_that_a_server_may_interpret_differently_are_rejected(shared_haproxy: HaproxyProcess, path: str) -> None:
    assert raw(shared_haproxy, f"GET {path} HTTP/1.1", f"Host: {NAME}").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/a?b=%0a", "/a%20b", "/a/...", "/a..b", f"http://{NAME}/a"])
def test_other_paths_are_accepted(shared_haproxy: HaproxyProcess, path: str) -> None:
    assert raw(shared_haproxy, f"GET {path} HTTP/1.1", f"Host: {NAME}").startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def shared_haproxy() -> Iterator[HaproxyProcess]:
    """Run a load balancer for tests that do not change its state."""
    with contextlib.closing(Origin("web1", 0)) as origin, run_haproxy({"shop": backend([origin])}) as haproxy:
        yield haproxy


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
def test_ambiguous_content_length_cannot_smuggle_a_request(shared_haproxy: HaproxyProcess, lengths: str) -> None:
    hidden = f"GET /hidden HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
    answer = raw(shared_haproxy, "POST / HTTP/1.1", f"Host: {NAME}", lengths, body=b"0\r\n\r\n" + hidden)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 422 "))
    assert answer.count(b"HTTP/1.1 ") == 1


def test_clients_cannot_use_the_proxy_protocol(shared_haproxy: HaproxyProcess) -> None:
    lie = "PROXY TCP4 6.6.6.6 127.0.0.1 1234 80"
    answer = raw(shared_haproxy, f"{lie}\r\nGET / HTTP/1.1", f"Host: {NAME}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"6.6.6.6" not in answer


def test_refused_connection_loses_no_request_and_repeats_none(origins: list[Origin]) -> None:
    web1, web2 = origins
    port = web1.server_address[1]
    with run_haproxy({"shop": backend(origins)}) as haproxy:
        web1.close()
        with contextlib.closing(connect(haproxy)) as client:
            notes = [str(number) for number in range(40)]
            assert {request_on(client, body=note).json_body["server"] for note in notes} == {"web2"}
        assert web2.received == notes
        haproxy.wait_for(lambda: status(haproxy, "web1").startswith("DOWN"))
        origins[0] = Origin("web1", port)
        haproxy.wait_for(lambda: status(haproxy, "web1") == "UP")
        assert {get(haproxy).json_body["server"] for _ in range(10)} == {"web1", "web2"}


def test_each_request_uses_a_new_server_connection(origins: list[Origin]) -> None:
    with run_haproxy({"shop": backend(origins)}) as haproxy, contextlib.closing(connect(haproxy)) as client:
        responses = [request_on(client) for _ in range(4)]
        sock = client.sock
        headers = [{name.lower(): value for name, value in answer.json_body["headers"].items()} for answer in responses]
        assert [found.get("connection") for found in headers] == ["close"] * 4
        assert sock is not None, "the client connection stays open"


def test_draining_server_finishes_in_flight_requests(origins: list[Origin]) -> None:
    with run_haproxy({"shop": backend(origins)}) as haproxy, ThreadPoolExecutor() as pool:
        slow = [pool.submit(get, haproxy, "/?seconds=1") for _ in range(2)]
        haproxy.wait_for(lambda: count_sessions("web1", ["shop"], haproxy.socket, haproxy.master) == 1)
        execute("set server shop/web1 state drain", haproxy.socket)
        assert {get(haproxy).json_body["server"] for _ in range(6)} == {"web2"}
        assert status(haproxy, "web1") == "DRAIN"
        haproxy.wait_for(lambda: count_sessions("web1", ["shop"], haproxy.socket, haproxy.master) == 0)
        assert {future.result().json_body["server"] for future in slow} == {"web1", "web2"}


def test_backends_whose_servers_are_not_up_are_reported_with_the_reason(origins: list[Origin]) -> None:
    expected = {"shop": Expected("", ["web1", "web2"])}
    with run_haproxy({"shop": backend(origins)}) as haproxy:
        assert wait_until_up(expected, timeout=5, path=haproxy.socket) == []
        origins[1].healthy = False
        haproxy.wait_for(lambda: status(haproxy, "web2") == "DOWN")
        [problem] = wait_until_up(expected, timeout=0, path=haproxy.socket)
        assert problem.startswith("server web2 of backend shop is DOWN (Layer7 ")
        origins[1].healthy = True
        assert wait_until_up(expected, timeout=10, path=haproxy.socket) == []
        execute("set server shop/web1 state maint", haproxy.socket)  # by an operator
        assert wait_until_up(expected, timeout=0, path=haproxy.socket) == []
        more = {"shop": Expected("", ["web3"]), "blog": Expected("", ["web1"])}
        assert wait_until_up(more, ["blog"], timeout=0, path=haproxy.socket) == ["backend shop has no server web3"]


def test_backends_that_haproxy_lacks_or_has_with_other_options_are_outdated(origins: list[Origin]) -> None:
    known = {"shop": backend(origins), "blog": backend(origins, domains=["blog.test"])}
    changed = known | {"blog": backend(origins, domains=["blog.test", "new.test"]), "new": backend(origins, domains=["a.test"])}
    with run_haproxy(known) as haproxy:
        for backends, outdated in ((known, []), (changed, ["blog", "new"])):
            expected = {name: Expected(digest) for name, digest in backend_digests(backends).items()}
            assert outdated_backends(expected, haproxy.directory / "haproxy.cfg") == outdated
    assert outdated_backends({"shop": Expected("")}, haproxy.directory / "missing") == ["shop"]


def test_client_with_a_cookie_moves_from_a_draining_server(origins: list[Origin]) -> None:
    with run_haproxy({"shop": backend(origins, affinity="cookie")}) as haproxy:
        first = get(haproxy)
        cookie = first.headers["Set-Cookie"].partition(";")[0]
        here = first.json_body["server"]
        assert {get(haproxy, Cookie=cookie).json_body["server"] for _ in range(6)} == {here}
        assert here not in first.headers["Set-Cookie"]
        [server] = [entry for entry in list_servers(haproxy.socket) if entry["server"] == here]
        execute(f"set server shop/{here} state {effective_state(server, 'drain')}", haproxy.socket)
        moved = get(haproxy, Cookie=cookie)
        assert moved.json_body["server"] != here
        assert "funnel_server" in moved.headers["Set-Cookie"]
        execute(f"set server shop/{here} state ready", haproxy.socket)
        assert {get(haproxy, Cookie=cookie).json_body["server"] for _ in range(3)} == {here}


def test_client_with_affinity_by_address_moves_from_a_draining_server(origins: list[Origin]) -> None:
    with run_haproxy({"shop": backend(origins, affinity="address")}) as haproxy:
        [here] = {get(haproxy).json_body["server"] for _ in range(6)}
        execute(f"set server shop/{here} state drain", haproxy.socket)
        assert here not in {get(haproxy).json_body["server"] for _ in range(3)}
        execute(f"set server shop/{here} state ready", haproxy.socket)
        assert {get(haproxy).json_body["server"] for _ in range(3)} == {here}


def test_requests_above_max_connections_wait_in_the_queue(origins: list[Origin]) -> None:
    server = {"address": origins[0].address, "max_connections": 1}
    with run_haproxy({"shop": backend([], servers={"web1": server}, queue=1)}) as haproxy, ThreadPoolExecutor() as pool:
        waits = pool.map(lambda _: get(haproxy, "/?seconds=0.4").status, range(2))
        assert list(waits) == [200, 200]
        too_long = pool.map(lambda _: get(haproxy, "/?seconds=1.8").status, range(2))
        assert sorted(too_long) == [200, 503]


def test_reload_closes_no_connection_and_keeps_drain_states(origins: list[Origin]) -> None:
    with (
        run_haproxy({"shop": backend(origins)}) as haproxy,
        websocket(haproxy) as client,
        contextlib.closing(connect(haproxy)) as idle,
    ):
        request_on(idle)
        execute("set server shop/web2 state drain", haproxy.socket)
        execute("set server shop/web1 weight 7", haproxy.socket)
        [connected] = [name for name in ("web1", "web2") if count_sessions(name, ["shop"], haproxy.socket, haproxy.master)]
        haproxy.reload()
        assert len(haproxy.old_workers()) == 1
        assert count_sessions(connected, ["shop"], haproxy.socket, haproxy.master) == 1, "the old worker has it"
        found = {entry["server"]: (entry["state"], entry["weight"]) for entry in list_servers(haproxy.socket)}
        assert found == {"web1": ("ready", 7), "web2": ("drain", 100)}
        time.sleep(1)
        last = request_on(idle)
        assert (last.status, last.headers["Connection"]) == (200, "close"), "an idle connection closes with its next response"
        client.sendall(b"still here")
        assert client.recv(100) == b"still here"
        client.close()
        haproxy.wait_for(lambda: not haproxy.old_workers())


def test_graceful_shutdown_finishes_in_flight_requests(origins: list[Origin]) -> None:
    with run_haproxy({"shop": backend(origins)}) as haproxy, ThreadPoolExecutor() as pool:
        slow = pool.submit(get, haproxy, "/?seconds=1")
        haproxy.wait_for(lambda: [entry for entry in list_servers(haproxy.socket) if entry["sessions"]])
        haproxy.stop()
        assert slow.result().status == 200
        assert haproxy.process.wait(PATIENCE) == 0


def test_monitor_reports_whether_any_server_is_healthy(origins: list[Origin]) -> None:
    web1, web2 = origins
    backends = {"shop": backend([web1]), "blog": backend([web2], domains=["blog.test"])}
    with run_haproxy(backends) as haproxy:
        assert monitor(haproxy) == 200
        web1.healthy = False
        haproxy.wait_for(lambda: status(haproxy, "web1").startswith("DOWN"))
        assert (monitor(haproxy), get(haproxy).status) == (200, 503)
        web2.healthy = False
        haproxy.wait_for(lambda: monitor(haproxy) == 503)
        web1.healthy = True
        haproxy.wait_for(lambda: monitor(haproxy) == 200)


def test_health_check_has_its_headers_and_is_judged_by_status_or_verdict(origins: list[Origin]) -> None:
    web1, web2 = origins
    web3 = Origin("web3", 0)
    origins.append(web3)
    check = {"path": "/verdict", "host": "shop.test", "headers": {"Host": "in.test", "X-Key": "a b"}}
    backends = {
        "shop": backend([web1], health=check | {"verdict": "X-Funnel-Health"}),
        "blog": backend([web2], domains=["blog.test"], health={"path": "/verdict", "status": [204, "400-401"]}),
        "wiki": backend([web3], domains=["wiki.test"], health={"path": "/verdict"}),
    }
    with run_haproxy(backends) as haproxy:
        haproxy.wait_for(lambda: status(haproxy, "web3").startswith("DOWN"))
        assert [status(haproxy, server) for server in ("web1", "web2")] == ["UP", "UP"]
        web1.healthy = False
        haproxy.wait_for(lambda: status(haproxy, "web1").startswith("DOWN"))
        assert status(haproxy, "web2") == "UP"


def test_exporter_has_the_metrics_of_the_dashboard(origins: list[Origin]) -> None:
    with run_haproxy({"shop": backend(origins)}) as haproxy:
        assert get(haproxy).status == 200
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", haproxy.metrics_port, timeout=PATIENCE)) as client:
            client.request("GET", "/metrics")
            text = client.getresponse().read().decode()
            client.request("GET", "/")
            assert client.getresponse().status == 404
    assert dashboard_metrics("haproxy_") - names(text) == set()
    assert total(text, "haproxy_backend_http_responses_total", proxy="shop", code="2xx") == 1


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("test", datetime.now(UTC))


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem)


def certificate(authority: Authority, directory: Path) -> tuple[str, str]:
    """Return the paths of a certificate and its key, named like those of the role certificates."""
    leaf = authority.leaf(NAME)
    pem, key = directory / "app.shop.pem", directory / "app.shop.key"
    pem.write_text(leaf.pem)
    key.write_text(leaf.key_pem)
    return str(pem), str(key)


def handshake(haproxy: HaproxyProcess, trust: ssl.SSLContext, name: str = NAME) -> ssl.SSLSocket:
    return trust.wrap_socket(socket.create_connection(("127.0.0.1", haproxy.tls_port), PATIENCE), server_hostname=name)


def get_tls(haproxy: HaproxyProcess, trust: ssl.SSLContext) -> Response:
    client = http.client.HTTPSConnection(NAME, timeout=PATIENCE, context=trust)
    client.sock = handshake(haproxy, trust)
    with contextlib.closing(client):
        return request_on(client)


def test_tls_is_terminated(origins: list[Origin], authority: Authority, trust: ssl.SSLContext, tmp_path: Path) -> None:
    pem, _ = certificate(authority, tmp_path)
    with run_haproxy({"shop": backend(origins, redirect=True, hsts=60)}, (pem,)) as haproxy:
        moved = get(haproxy, "/a?b=c", body="x")
        assert (moved.status, moved.headers["Location"]) == (308, f"https://{NAME}/a?b=c")
        assert get(haproxy, "/.well-known/acme-challenge/x").status == 308, "no server answers ACME challenges"
        answer = get_tls(haproxy, trust)
        assert answer.json_body["headers"]["x-forwarded-proto"] == "https"
        assert answer.headers["Strict-Transport-Security"] == "max-age=60"
        with pytest.raises(ssl.SSLError):
            handshake(haproxy, trust, "other.test")
        trust.set_alpn_protocols(["h2", "http/1.1"])
        with handshake(haproxy, trust) as client:
            assert client.selected_alpn_protocol() == "h2"


def test_acme_challenges_are_proxied_to_servers_that_answer_them(
    origins: list[Origin], authority: Authority, tmp_path: Path
) -> None:
    pem, _ = certificate(authority, tmp_path)
    with run_haproxy({"shop": backend(origins, redirect=True, challenges=True)}, (pem,)) as haproxy:
        assert get(haproxy, "/.well-known/acme-challenge/x").status == 200
        assert get(haproxy, "/.well-known/acme-challenge/%2e%2e/x").status == 400
        assert get(haproxy, "/.well-known/x").status == 308


def test_acme_challenge_is_answered_by_the_client_that_has_it(
    origins: list[Origin], authority: Authority, tmp_path: Path
) -> None:
    pem, _ = certificate(authority, tmp_path)
    stopped, other, asking = free_port(), free_port(), free_port()
    clients = [f"127.0.0.1:{port}" for port in (stopped, other, asking)]
    path = "/.well-known/acme-challenge/x"
    with run_haproxy({"shop": backend(origins, redirect=True, acme_clients=clients)}, (pem,)) as haproxy:
        assert get(haproxy, path).status == 404, "no ACME client runs"
        with acme_client(other, {}), acme_client(asking, {path: b"answer"}):
            for _request in range(6):
                assert get(haproxy, path).text == "answer"
            assert get(haproxy, f"{path}y").status == 404
        assert get(haproxy, "/.well-known/x").status == 308


@contextlib.contextmanager
def acme_client(port: int, answers: dict[str, bytes]) -> Iterator[None]:
    """Run a server that behaves as certbot's: it closes the connection if it does not know the path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in answers:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answers[self.path])

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_tls_passthrough_sends_the_client_address(authority: Authority, trust: ssl.SSLContext, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(authority, tmp_path))
    plain, secure = Origin("web1", 0, proxied=True), Origin("secure", 0, context, proxied=True)
    shop = backend([plain], tls="pass", tls_port=secure.server_address[1], proxy_protocol=True)
    with contextlib.closing(plain), contextlib.closing(secure), run_haproxy({"shop": shop}) as haproxy:
        answer, plain_answer = get_tls(haproxy, trust), get(haproxy)
        assert (answer.json_body["server"], answer.json_body["client"]) == ("secure", "proxied 127.0.0.1")
        assert (plain_answer.json_body["server"], plain_answer.json_body["client"]) == ("web1", "proxied 127.0.0.1")
        with pytest.raises(OSError, match=r"."):
            handshake(haproxy, trust, "other.test")
        execute("set server shop/web1 state drain", haproxy.socket)
        assert {entry["backend"]: (entry["state"], entry["status"]) for entry in list_servers(haproxy.socket)} == {
            "shop": ("drain", "DRAIN"),
            "shop.tls": ("drain", "DRAIN"),
        }
