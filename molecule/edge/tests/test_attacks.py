"""Attacks by clients and by other users of the host, which must fail."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import ssl
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.remote import (
    APP_GROUP,
    ROOT,
    Site,
    address,
    apps,
    eventually,
    expect_success,
    hosts,
    processes,
    python,
    run_playbook,
    run_site,
    sample_app_source,
)

testinfra_hosts = ["ansible://app_hosts"]

NAME = "sample.test"
#: Spoofed headers that Tornado would accept from a trusted proxy.
SPOOFED_HEADERS = {
    "X-Real-IP": "6.6.6.6",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Host": "evil.test",
    "X-Forwarded-Prefix": "/evil.test",
    "Forwarded": "for=6.6.6.6;proto=https;host=evil.test",
    "X-Request-ID": "feedfacefeedface",
}
#: Spoofed headers of the scheme.
SCHEME_HEADERS = ("X-Forwarded-Proto", "X-Scheme")
#: Text of files that must not be readable over HTTP: code, the manifest of a release, git's configuration, secrets.
PRIVATE_TEXTS = (b"def make_app", b'"revision"', b"repositoryformatversion", b"root:x:0", b"not-for-others")
#: Creates files that a source must not contain but a build hook can create.
ODD_FILES = "cd sample_app/static && ln -s ../web.py passwd && mkdir .git && echo repositoryformatversion > .git/config"
#: The domain that one host proxies to the other.
PROXIED = "proxied.test"
#: Sends each request on a connection of its own and prints the responses.
ASK = """
import json, socket
answers = []
for head in {heads!r}:
    with socket.create_connection(({address!r}, 80), 10) as connection:
        connection.sendall(head.encode())
        answers.append(connection.makefile().read())
print(json.dumps(answers))
"""
#: A handler that exits its process: a "query of death".
DEADLY = """

import os

from tornado.web import Application

from sample_app.handlers import BaseHandler


class DeadlyHandler(BaseHandler):
    def post(self) -> None:
        os._exit(1)


def make_deadly_app() -> Application:
    app = make_app()
    app.add_handlers(".*", [("/deadly", DeadlyHandler)])
    return app
"""
CLIENTS = 15_000
#: Connections per nginx worker: a sixteenth more than the clients, as nginx closes idle connections above that share.
MANY_CONNECTIONS = {"nginx_worker_connections": 16_200}


@pytest.fixture(scope="module", autouse=True)
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Serve the sample app by domain, over HTTP and HTTPS, with static files that must stay private; return its entry."""
    directory = tmp_path_factory.mktemp("attacks")
    source = sample_app_source(directory, web=(ROOT / "files/sample_app/sample_app/web.py").read_text() + DEADLY)
    static = Path(source["source"]["path"]) / "sample_app/static"
    (static / "code.py").symlink_to("../web.py")
    (static / "above").symlink_to("..")
    (static / "large.bin").write_bytes(bytes(20_000_000))
    sample = source | {
        "run": {"app": "sample_app.web:make_deadly_app"},
        "domains": [NAME, *map(address, hosts().values())],  # slowhttptest takes the Host header from the URL
        "tls": {"provider": "self_signed", "redirect": False, "hsts": 63_072_000},
        "upload_size": "1m",
        "hooks": {"build": f"sh -c '{ODD_FILES}'"},
    }
    expect_success(run_site(APP_GROUP, directory, apps(sample=sample) | MANY_CONNECTIONS))
    return sample


@pytest.fixture(params=["http", "https"])
def site(host: Host, request: pytest.FixtureRequest) -> Site:
    return Site(address(host), NAME, https=request.param == "https")


def send_raw(site: Site, request: bytes, *, seconds: float = 10) -> bytes:
    """Send raw bytes; return everything received until the site closes the connection or pauses for ``seconds``."""
    response = b""
    with site.connect() as connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                response += part
        except (TimeoutError, ConnectionError):
            pass
    return response


def status_of(response: bytes) -> int:
    """Return the status of the first response, or 0 if the connection was closed without one."""
    return int(response.split(b" ", 2)[1]) if response else 0


def notes(site: Site) -> list[str]:
    return site.get("/notes").body.decode().splitlines()


# Spoofed client addresses and schemes


def spoofed_headers(site: Site) -> dict[str, str]:
    """Return all spoofed headers for a site, with the wrong scheme."""
    return SPOOFED_HEADERS | dict.fromkeys(SCHEME_HEADERS, "http" if site.https else "https")


async def first_message(connection: WebSocketClientConnection) -> Any:
    return await connection.read_message()


def assert_headers_ignored(site: Site, headers: dict[str, str]) -> None:
    """Verify that the app sees the real client address and scheme in requests and websockets, whatever ``headers`` contain."""
    expected = (site.client_address, "https" if site.https else "http")
    seen = site.request("GET", "/whoami", headers=headers).json
    assert (seen["remote_ip"], seen["protocol"]) == expected
    named = {name.replace("-", "_"): value for name, value in headers.items()}
    seen = json.loads(site.websocket("/ticks", first_message, **named))
    assert (seen["remote_ip"], seen["protocol"]) == expected
    received = site.request("GET", "/headers", headers=headers).json
    assert not [(name, spoofed) for name, value in received.items() for spoofed in SPOOFED_HEADERS.values() if spoofed in value]
    assert {value for name, value in received.items() if name in SCHEME_HEADERS} == {expected[1]}


@pytest.mark.parametrize("header", [*SPOOFED_HEADERS, *SCHEME_HEADERS])
def test_spoofed_header_is_ignored(site: Site, header: str) -> None:
    assert_headers_ignored(site, {header: spoofed_headers(site)[header]})


def test_combined_spoofed_headers_are_ignored(site: Site) -> None:
    assert_headers_ignored(site, spoofed_headers(site))


@pytest.fixture(scope="module")
def proxied_site(provisioned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Configure debian13 as a trusted proxy of debian12; yield the addresses of both."""
    directory = tmp_path_factory.mktemp("proxy")
    inside, proxy = (address(hosts()[name]) for name in ("debian12", "debian13"))
    limited = {"/limited": {"limits": {"requests": 1, "burst": 0}}}
    named = provisioned | {
        "domains": [*provisioned["domains"], PROXIED],
        "paths": provisioned.get("paths", {}) | limited,
    }
    (directory / "proxy.yml").write_text(PROXY)
    expect_success(
        run_site("debian12", directory, apps(sample=named) | MANY_CONNECTIONS | {"nginx_trusted_proxies": [f"{proxy}/32"]})
    )
    expect_success(run_playbook(str(directory / "proxy.yml"), "debian13", "-e", f"inside={inside}"))
    yield {"inside": inside, "proxy": proxy}
    expect_success(run_playbook(str(directory / "proxy.yml"), "debian13", "-e", '{"nginx_sites": {}, "certificates_wanted": {}}'))
    expect_success(run_site("debian12", directory, apps(sample=provisioned) | MANY_CONNECTIONS))


PROXY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: funnel.tornado.certificates}
      vars:
        certificates_set: proxy
    - ansible.builtin.include_role: {name: funnel.tornado.nginx, tasks_from: sites}
      vars:
        nginx_set: proxy
    - ansible.builtin.include_role: {name: funnel.tornado.certificates, tasks_from: issue}
      vars:
        certificates_set: proxy
  vars:
    certificates_wanted: {front: {provider: self_signed, domains: [proxied.test]}}
    nginx_sites:
      front:
        domains: [proxied.test]
        upstream: {servers: ["{{ inside }}:80"]}
        tls: {certificate: /etc/ssl/funnel/proxy.front.pem, key: /etc/ssl/funnel/proxy.front.key, redirect: false}
"""


@pytest.mark.parametrize("https", [False, True], ids=["http", "https"])
def test_headers_of_trusted_proxy_are_used_but_not_those_of_its_clients(proxied_site: dict[str, str], *, https: bool) -> None:
    front = Site(proxied_site["proxy"], PROXIED, https=https)
    assert_headers_ignored(front, spoofed_headers(front))


def test_other_clients_are_not_trusted_beside_the_proxy(proxied_site: dict[str, str]) -> None:
    direct = Site(proxied_site["inside"], PROXIED)
    assert_headers_ignored(direct, spoofed_headers(direct))


def test_client_is_last_untrusted_address_of_the_chain(proxied_site: dict[str, str]) -> None:
    proxy, inside, last = proxied_site["proxy"], proxied_site["inside"], "7.7.7.7"
    chains = {"{}": last, "6.6.6.6, {}": last, "6.6.6.6\r\nX-Forwarded-For: {}": last, "6.6.6.6, {}:99": last, "{}, unix:": proxy}
    for chain, client in ({**chains, f"6.6.6.6, {{}}, {proxy}": last, "{}, somebody": proxy}).items():
        [answer] = ask_as_proxy(inside, "/whoami", chain.format(last))
        assert (chain, json.loads(answer.partition("\n\n")[2])["remote_ip"]) == (chain, client)


def test_addresses_of_an_ipv6_network_share_its_limits(proxied_site: dict[str, str]) -> None:
    clients = ("2001:db8:1:2::1", "2001:db8:1:2:f::2", "2001:db8:1:3::1", "::ffff:7.7.7.7", "7.7.7.8")
    answers = ask_as_proxy(proxied_site["inside"], "/limited", *clients)
    assert [answer.split()[1] for answer in answers] == ["404", "429", "404", "404", "404"]


def ask_as_proxy(inside: str, path: str, *chains: str) -> list[str]:
    """Return the responses that the trusted proxy gets to requests with these X-Forwarded-For."""
    heads = [f"GET {path} HTTP/1.0\r\nHost: {PROXIED}\r\nX-Forwarded-For: {chain}\r\n\r\n" for chain in chains]
    return list(python(hosts()["debian13"], ASK.format(address=inside, heads=heads)))


# Private files


@pytest.mark.parametrize(
    "path",
    [
        "/static/../web.py",
        "/static/%2e%2e/web.py",
        "/static/..%2fweb.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2frelease.json",
        "/static/..%5c..%5crelease.json",
        "/static/..;/web.py",
        "/static../web.py",
        "/static../../../release.json",
        "/static//../web.py",
        "/static/%252e%252e/web.py",
        "/static/%c0%ae%c0%ae/web.py",
        "/static/....//web.py",
        "/static/passwd",
        "/static/code.py",
        "/static/above/web.py",
        "/static/.git/config",
        "/static/%2egit/config",
        "/.git/config",
        "/release.json",
        "/secrets.json",
        "/static/style.css%00.py",
        "/static/style.css?v=../../../../release.json",
        "/static/release.json?v=..",
        "/before/static/style.css",
        "/release/public/static/style.css",
        "/../../../../etc/passwd",
        "http://sample.test/static/../../release.json",
        "//etc/passwd",
    ],
)
def test_path_traversal_reads_only_static_files(site: Site, path: str) -> None:
    response = send_raw(site, f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    # A query string does not select another file.
    assert status_of(response) in ((200,) if path.startswith("/static/style.css?") else (400, 403, 404))
    assert not [mark for mark in PRIVATE_TEXTS if mark in response]


# Host headers


@pytest.mark.parametrize(
    "head",
    [
        "Host: unknown.test",
        f"Host: {NAME}.evil.test",
        f"Host: evil-{NAME}",
        "Host: 127.0.0.1",
        "Host: [::1]",
        "Host: ",
        f"Host: {NAME}\r\nHost: evil.test",
        f"Host: evil.test\r\nHost: {NAME}",
        f"Host: {NAME} evil.test",
        f"Host: {NAME}/..",
        f"Host: user@{NAME}",
        "Host: *",
        "Host: sample.test\x00",
        f"X-Forwarded-Host: {NAME}",
    ],
)
def test_unknown_or_malformed_host_reaches_no_app(host: Host, head: str) -> None:
    response = send_raw(Site(address(host), NAME), f"GET /whoami HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode())
    assert status_of(response) in (0, 400, 404)
    assert b"release" not in response


def test_unknown_server_name_gets_no_certificate(host: Host) -> None:
    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        Site(address(host), "unknown.test", https=True).certificate()


def test_app_receives_the_host_that_selected_its_site(site: Site) -> None:
    response = send_raw(site, f"GET http://{NAME}/whoami HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n".encode())
    assert status_of(response) == 200
    assert b"evil.test" not in response


# Request smuggling


SMUGGLED = "POST /notes HTTP/1.1\r\nHost: {name}\r\nContent-Length: {length}\r\n\r\n{note}"


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked, identity",
        "Content-Length: 5\r\nTransfer-Encoding: \x0bchunked",
        "Content-Length: 5\r\nTransfer-Encoding:\r\n chunked",
        "Content-Length:\r\n 5",
        "Content-Length : 5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Content-Length: 0x5",
    ],
)
def test_ambiguous_length_smuggles_no_request(site: Site, lengths: str) -> None:
    note = uuid.uuid4().hex
    hidden = SMUGGLED.format(name=NAME, length=len(note), note=note)
    request = f"POST /echo HTTP/1.1\r\nHost: {NAME}\r\n{lengths}\r\n\r\n0\r\n\r\n{hidden}"
    response = send_raw(site, request.encode("latin-1"), seconds=2)
    assert status_of(response) in (400, 501)
    assert response.count(b"HTTP/1.1 ") == 1
    assert note not in notes(site)


def test_pipelined_request_is_served(site: Site) -> None:
    """Control for the test above: the second request has an effect when it is not smuggled."""
    note = uuid.uuid4().hex
    second = SMUGGLED.format(name=NAME, length=len(note), note=note)
    response = send_raw(
        site, f"POST /echo HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}".encode(), seconds=2
    )
    assert response.count(b"HTTP/1.1 ") == 2
    assert note in notes(site)


# Denial of service


@pytest.mark.parametrize(
    ("head", "body", "statuses"),
    [
        ("X-Long: " + "x" * 100_000, b"", (400, 431)),
        ("\r\n".join(f"X-{number}: {'x' * 1000}" for number in range(100)), b"", (400, 431)),
        ("Cookie: " + "c=1; " * 20_000, b"", (400, 431)),
        ("Content-Length: 2000000", b"", (413,)),
        ("Content-Length: 99999999999999999999999999", b"", (400, 413)),
        ("Transfer-Encoding: chunked", b"10000\r\n" + b"x" * 0x10000 + b"\r\n", (413,)),
    ],
    ids=["a long header", "many headers", "cookies", "a long body", "an endless body", "a body in chunks"],
)
def test_oversized_headers_and_bodies_are_rejected(site: Site, head: str, body: bytes, statuses: tuple[int, ...]) -> None:
    request = f"POST /upload HTTP/1.1\r\nHost: {NAME}\r\n{head}\r\n\r\n".encode() + body * 20
    assert status_of(send_raw(site, request)) in statuses
    assert site.get("/whoami").status == 200


def wait_for_processes(host: Host) -> dict[str, int] | bool:
    """Return the processes of the app once all are wait_for_processes."""
    found = processes(host, "sample")
    return len(found) == int(host.check_output("nproc")) and found


def test_query_of_death_with_side_effects_kills_one_process(host: Host, site: Site) -> None:
    """Nginx never retries it on another process; it retries idempotent requests, as it cannot know whether they arrived."""
    before = eventually(lambda: wait_for_processes(host))
    assert site.request("POST", "/deadly", b"").status == 502
    assert {site.get("/whoami").status for _ in range(50)} == {200}
    after = eventually(lambda: wait_for_processes(host))
    assert len(set(before.values()) & set(after.values())) == len(before) - 1


@pytest.mark.parametrize("attack", ["-H", "-B", "-X"], ids=["slow headers", "slow body", "slow read"])
def test_slow_clients_do_not_delay_others(host: Host, attack: str, tmp_path: Path) -> None:
    site = Site(address(host), NAME)
    path = "/static/large.bin" if attack == "-X" else "/upload"
    shape = ["-c", "1000", "-r", "500", "-l", "10", "-i", "5", "-p", "3", "-n", "2", "-w", "10", "-y", "20"]
    command = ["slowhttptest", attack, *shape, "-u", f"http://{site.address}{path}", "-t", "POST" if attack == "-B" else "GET"]
    attacker = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    waited = []
    try:
        while attacker.poll() is None:
            start = time.monotonic()
            assert site.get("/whoami").status == 200
            waited.append(time.monotonic() - start)
            time.sleep(0.1)
    finally:
        attacker.kill()
    output = re.sub(r"\x1b\[[0-9;]*m", "", attacker.communicate()[0])
    assert "service available" in output
    assert "service available:   NO" not in output
    assert len(waited) >= 10
    assert max(waited) < 5


def test_stalled_clients_are_disconnected(host: Host) -> None:
    site = Site(address(host), NAME)
    partial_requests = [
        f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Half",
        f"POST /upload HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9\r\n\r\nhalf",
    ]
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        responses = list(pool.map(lambda partial: send_raw(site, partial.encode(), seconds=60), partial_requests))
    assert time.monotonic() - began < 55, "stalled clients must be disconnected"
    assert responses == [b"", b""]


def test_many_keep_alive_connections_are_served(host: Host) -> None:
    """Open many connections, send a request on each, keep them, and send another request on each."""
    log = "/var/log/nginx/error.log"
    before = int(host.check_output("stat --format=%s %s", "%s", log))
    site = Site(address(host), NAME)
    first, second = asyncio.run(hold_connections(site.address, CLIENTS))
    assert first == second == {"200": CLIENTS}
    added = host.check_output("tail -c +%s %s", str(before + 1), log)
    assert "open files" not in added
    assert "worker_connections" not in added
    assert site.get("/whoami").status == 200


async def hold_connections(address: str, size: int) -> tuple[Counter[str], Counter[str]]:
    """Hold ``size`` connections to port 80; return the number of responses by status for the first and second requests."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    request = f"GET /robots.txt HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
    gate = asyncio.Semaphore(200)  # limits concurrent requests
    kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def first_request() -> str:
        async with gate:  # connect within the limit, as nginx disconnects clients that wait
            connection = await asyncio.wait_for(asyncio.open_connection(address, 80), 30)
            kept.append(connection)
            return await send(*connection)

    async def second_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        async with gate:
            return await send(reader, writer)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        return head.split(maxsplit=2)[1].decode()

    try:
        first = await asyncio.gather(*(first_request() for _ in range(size)), return_exceptions=True)
        second = await asyncio.gather(*(second_request(*connection) for connection in kept), return_exceptions=True)
        return Counter(map(str, first)), Counter(map(str, second))
    finally:
        for _, writer in kept:
            writer.transport.abort()  # frees the ports immediately for the next test
        await asyncio.sleep(0.1)


# Other users of the host


@pytest.mark.parametrize("user", ["plain", "www-data", "nobody"])
@pytest.mark.parametrize(
    "command",
    [
        "supervisorctl status",
        "cat /srv/sample/current/secrets.json",
        "cat /srv/sample/current/release.json",
        "cat /srv/sample/current/src/sample_app/web.py",
        "cat /etc/ssl/funnel/app.sample.key",
        "cat /var/log/sample/a-0.log",
        "ls /srv/sample",
        "tee /srv/sample/maintenance",
    ],
)
def test_other_users_of_the_host_are_denied_access(host: Host, user: str, command: str) -> None:
    denied = host.run(f"runuser -u {user} -- {command} </dev/null")
    assert denied.rc != 0
    assert "ermission denied" in denied.stderr + denied.stdout


@pytest.mark.parametrize(("user", "allowed"), [("plain", False), ("nobody", False), ("www-data", True)])
def test_only_nginx_can_connect_to_app_sockets(host: Host, user: str, *, allowed: bool) -> None:
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/srv/sample/live/run/0.sock')"
    assert (host.run(f'runuser -u {user} -- python3 -c "{connect}"').rc == 0) is allowed
