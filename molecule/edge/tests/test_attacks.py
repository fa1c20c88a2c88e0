"""What comes from the open internet, and from other users of the host, and must lead nowhere."""

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
    ALL,
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
#: What a client may say of itself, and must not be believed: each is something that Tornado would take.
LIES = {
    "X-Real-IP": "6.6.6.6",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Host": "evil.test",
    "X-Forwarded-Prefix": "/evil.test",
    "Forwarded": "for=6.6.6.6;proto=https;host=evil.test",
    "X-Request-ID": "feedfacefeedface",
}
#: And of its scheme, which is the other one.
SCHEMES = ("X-Forwarded-Proto", "X-Scheme")
#: Lines of files that nobody may read over HTTP: the code, a release's own description, the configuration of git.
MARKS = (b"def make_app", b'"revision"', b"repositoryformatversion", b"root:x:0", b"not-for-others")
#: What a source from the controller may not bring, and a build can make.
ODD_FILES = "cd sample_app/static && ln -s ../web.py passwd && mkdir .git && echo repositoryformatversion > .git/config"
#: The name of the site that one host passes on to another one.
PROXIED = "proxied.test"
#: A request that ends the process that it reaches: a "query of death".
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
CROWD = 15_000
#: One worker is to keep a crowd of clients: most of its files, and with a sixteenth more than they are, or it closes idle ones.
ROOM = {"nginx_worker_connections": 16_200}


@pytest.fixture(scope="module", autouse=True)
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Serve the sample app by name, with and without TLS, some of its static files not being meant for all; return its keys."""
    directory = tmp_path_factory.mktemp("attacks")
    source = sample_app_source(directory, web=(ROOT / "files/sample_app/sample_app/web.py").read_text() + DEADLY)
    static = Path(source["source"]["path"]) / "sample_app/static"
    (static / "code.py").symlink_to("../web.py")
    (static / "above").symlink_to("..")
    (static / "large.bin").write_bytes(bytes(20_000_000))
    sample = source | {
        "run": {"app": "sample_app.web:make_deadly_app"},
        "domains": [NAME, *map(address, hosts().values())],  # slowhttptest takes the name from the URL
        "tls": {"provider": "self_signed", "redirect": False, "hsts": 63_072_000},
        "upload_size": "1m",
        "hooks": {"build": f"sh -c '{ODD_FILES}'"},
    }
    expect_success(run_site(ALL, directory, apps(sample=sample) | ROOM))
    return sample


@pytest.fixture(params=["http", "https"])
def site(host: Host, request: pytest.FixtureRequest) -> Site:
    return Site(address(host), NAME, https=request.param == "https")


def said(site: Site, request: bytes, *, seconds: float = 10) -> bytes:
    """Return all that a site says to some bytes until it closes, or falls silent for ``seconds``."""
    answer = b""
    with site.connect() as connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
    return answer


def status_of(answer: bytes) -> int:
    """Return the status of the first answer; 0 when the connection was closed without any."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def notes(site: Site) -> list[str]:
    return site.get("/notes").body.decode().splitlines()


# Who a client says it is


def lies(site: Site) -> dict[str, str]:
    """Return all lies that a client can tell a site."""
    return LIES | dict.fromkeys(SCHEMES, "http" if site.https else "https")


async def first_message(connection: WebSocketClientConnection) -> Any:
    return await connection.read_message()


def believes_nothing_of(site: Site, told: dict[str, str]) -> None:
    """See that the app knows the client as it is, whatever the client has told, by a request and by a websocket."""
    truth = (site.client_address, "https" if site.https else "http")
    seen = site.request("GET", "/whoami", headers=told).json
    assert (seen["remote_ip"], seen["protocol"]) == truth
    named = {name.replace("-", "_"): lie for name, lie in told.items()}
    seen = json.loads(site.websocket("/ticks", first_message, **named))
    assert (seen["remote_ip"], seen["protocol"]) == truth
    arrived = site.request("GET", "/headers", headers=told).json
    assert not [(name, lie) for name, value in arrived.items() for lie in LIES.values() if lie in value]
    assert {value for name, value in arrived.items() if name in SCHEMES} == {truth[1]}


@pytest.mark.parametrize("header", [*LIES, *SCHEMES])
def test_what_a_client_says_of_itself_is_not_believed(site: Site, header: str) -> None:
    believes_nothing_of(site, {header: lies(site)[header]})


def test_all_of_it_at_once_neither(site: Site) -> None:
    believes_nothing_of(site, lies(site))


@pytest.fixture(scope="module")
def behind_a_proxy(provisioned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Let the nginx of debian13 pass requests on to that of debian12, which trusts it; give the addresses of both."""
    directory = tmp_path_factory.mktemp("proxy")
    inside, proxy = (address(hosts()[name]) for name in ("debian12", "debian13"))
    named = provisioned | {"domains": [*provisioned["domains"], PROXIED]}
    (directory / "proxy.yml").write_text(PROXY)
    expect_success(run_site("debian12", directory, apps(sample=named) | ROOM | {"nginx_trusted_proxies": [f"{proxy}/32"]}))
    expect_success(run_playbook(str(directory / "proxy.yml"), "debian13", "-e", f"inside={inside}"))
    yield {"inside": inside, "proxy": proxy}
    expect_success(run_playbook(str(directory / "proxy.yml"), "debian13", "-e", '{"nginx_sites": {}, "certificates_wanted": {}}'))
    expect_success(run_site("debian12", directory, apps(sample=provisioned) | ROOM))


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
def test_a_trusted_proxy_is_believed_and_its_clients_are_not(behind_a_proxy: dict[str, str], *, https: bool) -> None:
    front = Site(behind_a_proxy["proxy"], PROXIED, https=https)
    believes_nothing_of(front, lies(front))


def test_where_one_proxy_is_trusted_nobody_else_is(behind_a_proxy: dict[str, str]) -> None:
    direct = Site(behind_a_proxy["inside"], PROXIED)
    believes_nothing_of(direct, lies(direct))


def test_of_a_chain_of_addresses_the_last_one_that_no_trusted_proxy_has_counts(behind_a_proxy: dict[str, str]) -> None:
    proxy, inside, last = behind_a_proxy["proxy"], behind_a_proxy["inside"], "7.7.7.7"
    chains = {"{}": last, "6.6.6.6, {}": last, "6.6.6.6\r\nX-Forwarded-For: {}": last, "6.6.6.6, {}:99": last, "{}, unix:": proxy}
    for chain, client in ({**chains, f"6.6.6.6, {{}}, {proxy}": last, "{}, somebody": proxy}).items():
        head = f"GET /whoami HTTP/1.0\r\nHost: {PROXIED}\r\nX-Forwarded-For: {chain.format(last)}\r\n\r\n"
        code = f"import socket\nconnection = socket.create_connection(({inside!r}, 80), 10)\nconnection.sendall(b{head!r})\n"
        code += "print(connection.makefile().read().partition('\\n\\n')[2])"
        assert (chain, python(hosts()["debian13"], code)["remote_ip"]) == (chain, client)


# What is there to read


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
def test_nothing_but_static_files_can_be_read(site: Site, path: str) -> None:
    answer = said(site, f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    # A query does not make it another file.
    assert status_of(answer) in ((200,) if path.startswith("/static/style.css?") else (400, 403, 404))
    assert not [mark for mark in MARKS if mark in answer]


# Which site is meant


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
def test_an_unknown_or_malformed_host_reaches_no_app(host: Host, head: str) -> None:
    answer = said(Site(address(host), NAME), f"GET /whoami HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) in (0, 400, 404)
    assert b"release" not in answer


def test_a_client_that_asks_for_no_known_name_gets_no_certificate(host: Host) -> None:
    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        Site(address(host), "unknown.test", https=True).certificate()


def test_the_app_sees_the_name_that_chose_its_site(site: Site) -> None:
    answer = said(site, f"GET http://{NAME}/whoami HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) == 200
    assert b"evil.test" not in answer


# Where a request ends


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
def test_a_request_of_two_lengths_hides_no_other_request(site: Site, lengths: str) -> None:
    note = uuid.uuid4().hex
    hidden = SMUGGLED.format(name=NAME, length=len(note), note=note)
    request = f"POST /echo HTTP/1.1\r\nHost: {NAME}\r\n{lengths}\r\n\r\n0\r\n\r\n{hidden}"
    answer = said(site, request.encode("latin-1"), seconds=2)
    assert status_of(answer) in (400, 501)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert note not in notes(site)


def test_a_request_after_another_one_is_answered(site: Site) -> None:
    """What the test before sends does something when it is not hidden: it could have failed."""
    note = uuid.uuid4().hex
    second = SMUGGLED.format(name=NAME, length=len(note), note=note)
    answer = said(site, f"POST /echo HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}".encode(), seconds=2)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert note in notes(site)


# Too much of everything


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
def test_a_flood_of_headers_or_body_ends_at_its_limit(site: Site, head: str, body: bytes, statuses: tuple[int, ...]) -> None:
    request = f"POST /upload HTTP/1.1\r\nHost: {NAME}\r\n{head}\r\n\r\n".encode() + body * 20
    assert status_of(said(site, request)) in statuses
    assert site.get("/whoami").status == 200


def running(host: Host) -> dict[str, int] | bool:
    """Return the processes of the app, once all of them run."""
    found = processes(host, "sample")
    return len(found) == int(host.check_output("nproc")) and found


def test_a_deadly_request_that_changes_things_ends_one_process(host: Host, site: Site) -> None:
    """It is never repeated on another process; one that only asks is, as nginx cannot tell it from one that came too late."""
    before = eventually(lambda: running(host))
    assert site.request("POST", "/deadly", b"").status == 502
    assert {site.get("/whoami").status for _ in range(50)} == {200}
    after = eventually(lambda: running(host))
    assert len(set(before.values()) & set(after.values())) == len(before) - 1


@pytest.mark.parametrize("attack", ["-H", "-B", "-X"], ids=["slow headers", "slow body", "slow read"])
def test_a_slow_client_keeps_nobody_else_waiting(host: Host, attack: str, tmp_path: Path) -> None:
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


def test_a_client_that_falls_silent_is_let_go(host: Host) -> None:
    site = Site(address(host), NAME)
    halves = [
        f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Half",
        f"POST /upload HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9\r\n\r\nhalf",
    ]
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda half: said(site, half.encode(), seconds=60), halves))
    assert time.monotonic() - began < 55, "they were not waited for"
    assert answers == [b"", b""]


def test_many_kept_connections_are_all_served(host: Host) -> None:
    """They are opened, asked on, kept, and asked on again."""
    log = "/var/log/nginx/error.log"
    before = int(host.check_output("stat --format=%s %s", "%s", log))
    site = Site(address(host), NAME)
    first, second = asyncio.run(crowd(site.address, CROWD))
    assert first == second == {"200": CROWD}
    added = host.check_output("tail -c +%s %s", str(before + 1), log)
    assert "open files" not in added
    assert "worker_connections" not in added
    assert site.get("/whoami").status == 200


async def crowd(address: str, size: int) -> tuple[Counter[str], Counter[str]]:
    """Keep ``size`` connections to port 80, and return how many of them were answered how, the first time and the second."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    request = f"GET /robots.txt HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
    gate = asyncio.Semaphore(200)  # of these at a time: it is a crowd, not a flood
    kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def come() -> str:
        async with gate:  # until it has asked, as who is silent is let go
            one = await asyncio.wait_for(asyncio.open_connection(address, 80), 30)
            kept.append(one)
            return await ask(*one)

    async def come_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        async with gate:
            return await ask(reader, writer)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        return head.split(maxsplit=2)[1].decode()

    try:
        came = await asyncio.gather(*(come() for _ in range(size)), return_exceptions=True)
        asked = await asyncio.gather(*(come_again(*one) for one in kept), return_exceptions=True)
        return Counter(map(str, came)), Counter(map(str, asked))
    finally:
        for _, writer in kept:
            writer.transport.abort()  # at once, so that the ports are free for the next crowd
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
def test_another_user_of_the_host_is_kept_out(host: Host, user: str, command: str) -> None:
    refused = host.run(f"runuser -u {user} -- {command} </dev/null")
    assert refused.rc != 0
    assert "ermission denied" in refused.stderr + refused.stdout


@pytest.mark.parametrize(("user", "may"), [("plain", False), ("nobody", False), ("www-data", True)])
def test_only_nginx_reaches_a_tornado(host: Host, user: str, *, may: bool) -> None:
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/srv/sample/live/run/0.sock')"
    assert (host.run(f'runuser -u {user} -- python3 -c "{connect}"').rc == 0) is may
