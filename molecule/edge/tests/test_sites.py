"""What nginx serves for an app, and to whom: every request goes through the network, as a client's does."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.remote import (
    ALL,
    PORT_APP,
    ROOT,
    Answer,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra,
    hosts,
    python,
    run_playbook,
    run_site,
    sample_app_source,
)

testinfra_hosts = ["ansible://app_hosts"]

PASSWORD = "opensesame"
HASH = "$6$pepper$G/7gYp4xKnO6p6NU38Wgib.pvlUttw5wpjIGMPM6WTEZBCFQxydtvr2DUWr3kblI0ZLcRgOhDkT/C.9CVckKb."
NOBODY = "192.0.2.1"  # TEST-NET-1, RFC 5737: no client has it
CERTIFICATE = "/etc/ssl/own.pem"
CHALLENGES = "/var/lib/own-challenges"
CLOSED = "/run/closed"
MEGABYTE = 1 << 20
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "strict-origin-when-cross-origin",
}


def live(app: str) -> dict[str, str]:
    """Return the upstream of an app, for a site of another set."""
    return {"include": f"/srv/{app}/live/upstream.conf"}


#: Sites of no app: one for every name, one that lets in nobody, one that is for patient clients.
SITES = {
    "unnamed": {"listen": ["8080"], "upstream": live("sample")},
    "closed": {
        "domains": ["closed.test"],
        "upstream": live("sample"),
        "tls": {"certificate": CERTIFICATE, "key": CERTIFICATE, "challenges": CHALLENGES, "redirect": False},
        "static": [{"url": "/static/", "path": "/usr/share/nginx/html"}],
        "allow": [NOBODY],
        "deny": ["192.0.2.2"],
        "basic_auth": {"ann": HASH},
        "maintenance": {"file": CLOSED},
    },
    "slow": {
        "domains": ["slow.test"],
        "upstream": live("ported"),
        "tls": {"certificate": CERTIFICATE, "key": CERTIFICATE},
        "static": [{"url": "/static/", "path": "/usr/share/nginx/html"}],
        "limits": {"requests": 1, "burst": 0},
        "paths": {"/events": {"read_timeout": 60, "limits": {"requests": 100}}},
    },
}


def apply_own_sites(directory: Path, variables: dict[str, Any], sites: dict[str, Any]) -> None:
    """Apply a set of sites besides those of the apps, as another role does."""
    task = {
        "name": "Serve them",
        "ansible.builtin.include_role": {"name": "funnel.tornado.nginx", "tasks_from": "sites"},
        "vars": {"nginx_set": "own", "nginx_sites": sites},
    }
    playbook = directory / "own-sites.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": ALL, "gather_facts": False, "tasks": [task]}]))
    expect_success(run_playbook(str(playbook), ALL, *extra(directory, variables)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


@pytest.fixture(scope="module")
def variables(directory: Path) -> dict[str, Any]:
    """Return the variables: one app with all that can be set, one that lets in few, one that only has a name."""
    common = {"run": {"app": "sample_app.web:make_app"}, "health": {"path": "/healthz"}, "processes": 1, "drain": 2}
    web = (ROOT / "files/sample_app/sample_app/web.py").read_text()
    shop = common | sample_app_source(directory, web=web.replace('(r"/notes"', '(r"/private/.*", WhoAmIHandler), (r"/notes"'))
    static = Path(shop["source"]["path"]) / "sample_app/static"  # type: ignore[index]  # an entry's types are the schema's to say
    (static / "app.js.gz").write_bytes(gzip.compress(b"// compressed before\n"))
    (static / ".git").mkdir()
    (static / ".git/config").write_text("secret")
    (static / "code").symlink_to("../web.py")
    (static / "only-before.txt").write_text("before")
    shop |= {
        "static": {"path": "sample_app/static"},
        "hooks": {"build": "ln -s ../web.py sample_app/static/passwd"},
        "domains": ["shop.test", "*.shop.test"],
        "aliases": ["old.test"],
        "tls": {"provider": "self_signed", "hsts": 3600},
        "upload_size": "1m",
        "headers": {"X-Frame-Options": "DENY", "Referrer-Policy": "", "X-Shop": "open", "Cache-Control": "private"},
        "paths": {
            "/upload": {"upload_size": "3m", "buffering": False},
            "/sleep": {"read_timeout": 1},
            "/notes": {"deny": ["0.0.0.0/0"]},
            "/private/": {"deny": ["0.0.0.0/0"]},
            "/ticks": {"extra": "return 204;"},
            "/headers": {"extra": "proxy_set_header X-Path 1;\nadd_header X-Path 1;\nadd_header X-Frame-Options SAMEORIGIN;"},
        },
        "maintenance": {"page": "<p>Painting</p>", "retry_after": 77},
        "extra": "location = /extra { return 204; }",
    }
    guarded = common | {
        "source": {"path": shop["source"]["path"]},  # type: ignore[index]  # as above
        "domains": ["guarded.test"],
        "basic_auth": {"ann": HASH},
        "limits": {"requests": 20, "burst": 20, "connections": 2},
        "paths": {"/headers": {"allow": [NOBODY]}, "/whoami": {"limits": {"requests": 1, "burst": 1}}},
        "maintenance": {"allow": [f"{Site(address(next(iter(hosts().values())))).client_address}/32"]},
    }
    ported = PORT_APP | {"tls": {"provider": "self_signed"}}
    return apps(sample={"domains": ["sample.test"]}, shop=shop, guarded=guarded, ported=ported) | {
        "nginx_listen": ["80", "[::]:80", "8080"],
        "nginx_access_log": "json",
        "nginx_trusted_proxies": [address(host) for host in hosts().values()],
    }


@pytest.fixture(scope="module", autouse=True)
def provisioned(directory: Path, variables: dict[str, Any]) -> Iterator[None]:
    """Provision both hosts; take the further apps off them again."""
    for host in hosts().values():
        host.check_output(
            f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=own -out {CERTIFICATE} -keyout {CERTIFICATE}.key && "
            f"cat {CERTIFICATE}.key >> {CERTIFICATE} && rm {CERTIFICATE}.key && "
            f"install -d {CHALLENGES}/.well-known/acme-challenge && echo proof > {CHALLENGES}/.well-known/acme-challenge/token"
        )
    assert HASH not in expect_success(run_site(ALL, directory, variables, "--diff", "-v"))
    apply_own_sites(directory, variables, SITES)
    yield
    apply_own_sites(directory, variables, {})
    expect_success(run_site(ALL, directory, apps(sample={"domains": ["sample.test"]})))
    for name in ("shop", "guarded", "ported"):
        expect_success(run_playbook("playbooks/remove.yml", ALL, "-e", f"app={name}", *extra(directory, {})))
    for host in hosts().values():
        host.check_output(f"rm -r {CERTIFICATE} {CHALLENGES}")


@pytest.fixture
def shop(host: Host) -> Site:
    return Site(address(host), "shop.test", https=True)


@pytest.fixture
def guarded(host: Host) -> Site:
    return Site(address(host), "guarded.test")


@pytest.fixture
def sample(host: Host) -> Site:
    return Site(address(host), "sample.test")


def login(password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'ann:{password}'.encode()).decode()}"}


def from_host(host: Host, name: str, path: str, headers: dict[str, str]) -> Answer:
    """Ask the host's site from the host itself, which is a trusted proxy."""
    code = f"""
import http.client, json
connection = http.client.HTTPConnection({address(host)!r}, timeout=10)
connection.request("GET", {path!r}, headers={ {"Host": name, **headers}!r})
answer = connection.getresponse()
print(json.dumps([answer.status, {{name.lower(): value for name, value in answer.getheaders()}}, answer.read().decode()]))
"""
    status, received, body = python(host, code)
    return Answer(status, received, body.encode())


def headers_of(site: Site, method: str, path: str, **headers: str) -> list[tuple[str, str]]:
    """Return the headers of an answer, each as often as it came."""
    connection = http.client.HTTPConnection(site.address)
    connection.sock = site.connect()
    try:
        connection.request(method, path, headers={"Host": site.host, **headers})
        return [(name.lower(), value) for name, value in connection.getresponse().getheaders()]
    finally:
        connection.close()


# Names


def test_a_site_answers_to_its_names(host: Host, shop: Site) -> None:
    assert shop.get("/whoami").json["app"] == "shop"
    assert Site(address(host), "any.shop.test", https=True).get("/whoami").json["app"] == "shop"
    assert Site(address(host), "sample.test").get("/whoami").json["app"] == "sample"


@pytest.mark.parametrize("name", ["unknown.test", "shop.test.evil.test", "sample", "192.0.2.1", "-"])
def test_a_name_of_no_site_gets_nothing_of_any(host: Host, name: str) -> None:
    answer = Site(address(host), name).get("/whoami")
    assert answer.status == 404
    assert b"app" not in answer.body
    assert answer.headers["server"] == "nginx", "without its version"


@pytest.mark.parametrize("name", ["a b", "shop.test/", "sho\\p.test", ".."])
def test_a_malformed_name_is_refused(host: Host, name: str) -> None:
    answer = Site(address(host), name).get("/whoami")
    assert answer.status in (400, 404)
    assert b"pid" not in answer.body


def test_a_client_without_a_name_gets_the_site_without_one(host: Host) -> None:
    with socket.create_connection((address(host), 8080), timeout=10) as connection:
        connection.sendall(b"GET /whoami HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["host"] == "localhost"


def test_a_site_is_served_over_ipv6(host: Host) -> None:
    code = """
import http.client, json
connection = http.client.HTTPConnection("::1", 80, timeout=10)
connection.request("GET", "/whoami", headers={"Host": "sample.test"})
print(connection.getresponse().read().decode())
"""
    assert python(host, code).items() >= {"app": "sample", "remote_ip": "::1"}.items()


def test_over_tls_a_name_of_no_site_gets_no_handshake_and_no_answer_of_another_site(host: Host, shop: Site) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Site(address(host), "unknown.test", https=True).get("/")
    assert shop.request("GET", "/whoami", headers={"Host": "unknown.test"}).status == 404
    assert shop.request("GET", "/whoami", headers={"Host": "sample.test"}).status == 404


@pytest.mark.parametrize("https", [False, True])
def test_an_alias_is_redirected_to_the_first_name(host: Host, *, https: bool) -> None:
    answer = Site(address(host), "old.test", https=https).request("POST", "/a?b=c%20d")
    assert (answer.status, answer.headers["location"]) == (308, "https://shop.test/a?b=c%20d")


def test_http_is_sent_to_https_and_only_there_browsers_are_told_to_stay(host: Host, shop: Site) -> None:
    answer = Site(address(host), "b.shop.test").request("POST", "/echo?a=%2F", b"x")
    assert (answer.status, answer.headers["location"]) == (308, "https://b.shop.test/echo?a=%2F")
    assert "strict-transport-security" not in answer.headers
    assert shop.get("/").headers["strict-transport-security"] == "max-age=3600"
    assert shop.get("/whoami").json["protocol"] == "https"


def test_http_2_is_spoken_over_tls(shop: Site) -> None:
    context = shop.tls
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection((shop.address, 443), timeout=10)
    with context.wrap_socket(plain, server_hostname=shop.name) as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() == "TLSv1.3"
        # The client's preface and empty SETTINGS, RFC 9113; the server's SETTINGS (type 4) come first.
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        assert connection.recv(9)[3] == 4


# Static files


def test_static_files_come_from_the_release(shop: Site) -> None:
    version = hashlib.sha512(shop.get("/static/app.js").body).hexdigest()
    assert f"/static/app.js?v={version}" in shop.get("/").body.decode()
    cached, asked = shop.get(f"/static/app.js?v={version}"), shop.get("/static/app.js")
    assert (cached.body, cached.headers["content-type"]) == (asked.body, asked.headers["content-type"])
    assert "max-age=31" in cached.headers["cache-control"]
    assert asked.headers["cache-control"] == "no-cache"
    assert shop.get("/robots.txt").body == shop.get("/static/robots.txt").body != b""


def test_what_was_compressed_before_is_sent_to_who_takes_it(shop: Site) -> None:
    answer = shop.get("/static/app.js", Accept_Encoding="gzip")
    assert (answer.headers["content-encoding"], gzip.decompress(answer.body)) == ("gzip", b"// compressed before\n")
    assert answer.headers["content-type"] == shop.get("/static/app.js").headers["content-type"]


@pytest.mark.parametrize("path", [".git/config", "passwd", "code", "..%2f..%2frelease.json", "%2e%2e/web.py", "", "nothing"])
def test_nothing_else_is_a_static_file(shop: Site, path: str) -> None:
    answer = shop.get(f"/static/{path}")
    assert answer.status in (400, 403, 404)
    assert not re.search(rb"secret|root:|revision|def make_app", answer.body)


def test_pages_of_the_release_before_find_their_files_after_a_switch(
    directory: Path, variables: dict[str, Any], host: Host, shop: Site
) -> None:
    static = Path(variables["tornado_apps"]["shop"]["source"]["path"]) / "sample_app/static"
    before = (static / "style.css").read_bytes(), (static / "only-before.txt").read_bytes()
    version = hashlib.sha512(before[0]).hexdigest()
    name = host.check_output("hostname")
    try:
        (static / "style.css").write_bytes(b"/* new */")
        (static / "only-before.txt").unlink()
        expect_success(deploy("shop", name, directory, variables))
        assert shop.get("/static/style.css").body == b"/* new */", "at once, whatever nginx has open"
        assert shop.get(f"/static/style.css?v={hashlib.sha512(b'/* new */').hexdigest()}").body == b"/* new */"
        old = shop.get(f"/static/style.css?v={version}")
        assert (old.body, old.headers["content-type"]) == (before[0], "text/css")
        assert "max-age=31" in old.headers["cache-control"]
        assert shop.get("/static/only-before.txt").body == before[1]
        assert shop.get("/static/style.css?v=../../../secrets").body == b"/* new */"
        unknown = shop.get(f"/static/style.css?v={'0' * 128}")
        assert (unknown.body, unknown.headers["cache-control"]) == (b"/* new */", "no-cache"), "it may be another host's"
        assert shop.get(f"/static/only-before.txt?v={'0' * 128}").headers["cache-control"] == "no-cache"

        expect_success(run_playbook("playbooks/restart.yml", name, "-e", "app=shop", *extra(directory, variables)))
        assert shop.get(f"/static/style.css?v={version}").body == before[0], "new processes are no other release"
    finally:
        (static / "style.css").write_bytes(before[0])
        (static / "only-before.txt").write_bytes(before[1])
        expect_success(deploy("shop", name, directory, variables))
    assert shop.get("/static/style.css").body == before[0]


# Long requests


@pytest.mark.parametrize("name", ["sample", "shop", "ported", "slow"])
def test_events_arrive_as_they_are_sent(host: Host, name: str) -> None:
    """Over HTTP and HTTPS; as EventSource asks for them from a program that knows nothing of nginx, below a path, too."""
    site = Site(address(host), f"{name}.test", https=name != "sample")
    accept = "Accept: text/event-stream\r\n" if name in ("ported", "slow") else ""
    began = time.monotonic()
    with site.connect() as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: {site.host}\r\n{accept}\r\n".encode())
        answer = b""
        while b"data: 3\n" not in answer:
            answer += connection.recv(4096)
            assert time.monotonic() - began < 5, answer


def test_a_websocket_passes(shop: Site) -> None:
    async def talk(connection: WebSocketClientConnection) -> object:
        await connection.write_message("funnel")
        return await connection.read_message()

    assert shop.websocket("/ws", talk) == "funnel"


def test_how_long_an_answer_may_take_is_set_by_path(shop: Site, sample: Site) -> None:
    assert shop.get("/sleep?seconds=3").status == 504
    assert sample.get("/sleep?seconds=3").status == 200


def post(site: Site, path: str, size: int) -> int:
    """Return the status of an upload; nginx answers at the headers and closes, which can overtake its own answer."""
    try:
        return site.request("POST", path, b"x" * size).status
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        return site.request("POST", path, headers={"Content-Length": str(size)}).status


def test_the_size_of_an_upload_is_set_by_path_and_the_runner_takes_the_largest(host: Host, shop: Site) -> None:
    assert [post(shop, "/echo", size) for size in (MEGABYTE, MEGABYTE + 1)] == [200, 413]
    assert [post(shop, "/upload", size) for size in (3 * MEGABYTE, 3 * MEGABYTE + 1)] == [200, 413]
    statuses = python(
        host,
        f"""
import http.client, json, socket
statuses = []
for size in ({3 * MEGABYTE}, {3 * MEGABYTE + 1}):
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("/srv/shop/live/run/0.sock")
    connection.putrequest("POST", "/upload")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    try:
        connection.send(b"x" * size)
    except OSError:
        pass
    statuses.append(connection.getresponse().status)
print(json.dumps(statuses))
""",
    )
    assert statuses == [200, 400]


# Who is let in


def test_a_password_is_asked_for_and_kept(host: Host, guarded: Site) -> None:
    assert guarded.get("/").status == 401
    assert guarded.request("GET", "/", headers=login("wrong")).status == 401
    assert guarded.request("GET", "/", headers=login()).status == 200
    assert host.check_output("stat --format '%a %U:%G' /etc/nginx/sites-enabled/app.guarded.htpasswd") == "640 root:www-data"
    assert host.run("grep --recursive --files-with-matches --fixed-strings %s /srv/guarded/releases", HASH).rc == 1


def test_addresses_are_let_in_and_kept_out_by_path(guarded: Site, shop: Site) -> None:
    assert guarded.request("GET", "/headers", headers=login()).status == 403
    assert guarded.request("GET", "/healthz", headers=login()).status == 200
    assert shop.get("/notes").status == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/private/x", 403),
        ("//private/x", 403),
        ("/%70rivate/x", 403),
        ("/private/../x", 400),
        ("/private/%2e%2e/x", 400),
        ("/private/.%2E/x", 400),
        ("/private/..%2fx", 400),
        ("/private/..%5cx", 400),
        ("/private/..\\x", 400),
        ("/private/./../x", 400),
        ("/private/..", 400),
        ("/private/..?x", 400),
        ("/private/..#x", 400),
        ("/x/../static/app.js", 400),
        ("/x/%2e%2e/notes", 400),
    ],
)
def test_no_detour_leads_past_the_settings_of_a_path(shop: Site, path: str, status: int) -> None:
    answer = shop.get(path)
    assert answer.status == status
    assert "x-frame-options" in answer.headers
    assert b"pid" not in answer.body


def test_what_only_looks_like_a_detour_is_passed_on(host: Host, shop: Site, guarded: Site) -> None:
    assert shop.get("/whoami?next=/a/../b").json["app"] == "shop"
    assert shop.get("//whoami").status == 404, "the app's own answer"
    assert guarded.request("GET", "/private/x..y/...", headers=login()).json["app"] == "guarded", "where no path is denied"
    for name in ("shop.test", "old.test", "sample.test"):
        assert Site(address(host), name).get("/a/../b").status == 400


#: What is answered by locations of their own: the app's, robots.txt as well as favicon.ico, static files, events.
EVERYWHERE: list[tuple[str, dict[str, str]]] = [
    ("/healthz", {}),
    ("/robots.txt", {}),
    ("/static/index.html", {}),
    ("/healthz", {"Accept": "text/event-stream"}),
]


@pytest.mark.parametrize(("path", "headers"), EVERYWHERE)
def test_who_is_let_in_holds_for_all_of_a_site(host: Host, path: str, headers: dict[str, str]) -> None:
    assert Site(address(host), "closed.test").request("GET", path, headers=headers | login()).status == 403
    for client, known, status in (
        (NOBODY, {}, 401),
        (NOBODY, login("wrong"), 401),
        (NOBODY, login(), 200),
        ("192.0.2.2", login(), 403),
    ):
        assert from_host(host, "closed.test", path, headers | known | {"X-Forwarded-For": client}).status == status


@pytest.mark.parametrize(("path", "headers"), EVERYWHERE)
def test_limits_hold_for_all_of_a_site(host: Host, path: str, headers: dict[str, str]) -> None:
    slow = Site(address(host), "slow.test", https=True)
    eventually(lambda: slow.request("GET", path, headers=headers).status == 200, 10)
    assert 429 in [slow.request("GET", path, headers=headers).status for _ in range(3)]


def test_a_certificate_authority_is_let_in_always(host: Host) -> None:
    url = "/.well-known/acme-challenge/token"
    for https in (False, True):
        site = Site(address(host), "closed.test", https=https)
        assert (site.get(url).status, site.get(url).body, site.get("/").status) == (200, b"proof\n", 403)
        host.check_output(f"touch {CLOSED}")
        try:
            assert (site.get(url).status, site.get("/").status) == (200, 503)
        finally:
            host.check_output(f"rm {CLOSED}")


def test_a_client_that_asks_too_often_is_told_so(guarded: Site) -> None:
    statuses = [guarded.request("GET", "/whoami", headers=login()).status for _ in range(5)]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses
    eventually(lambda: guarded.request("GET", "/whoami", headers=login()).status == 200, 10)


def test_a_client_with_too_many_requests_in_progress_is_told_so(guarded: Site) -> None:
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(guarded.request("GET", "/sleep?seconds=2", headers=login()).status)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 429, 429]


# Headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/whoami", 200),
        ("GET", "/missing", 404),
        ("GET", "/static/style.css", 200),
        ("GET", "/static/no", 404),
        ("GET", "/notes", 403),
    ],
)
def test_security_headers_are_on_every_answer_and_may_be_changed(shop: Site, method: str, path: str, status: int) -> None:
    answer = shop.request(method, path)
    assert answer.status == status
    wanted = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "x-shop": "open"}
    assert wanted.items() <= answer.headers.items()
    assert "referrer-policy" not in answer.headers


def test_redirects_and_refusals_of_nginx_have_them_as_well(host: Host, sample: Site, guarded: Site) -> None:
    redirect = Site(address(host), "shop.test").get("/")
    assert (redirect.status, redirect.headers["x-frame-options"]) == (308, "DENY")
    for answer in (guarded.get("/"), sample.request("POST", "/", headers={"Content-Length": str(1 << 40)})):
        assert answer.status in (401, 413)
        assert SECURITY_HEADERS.items() <= answer.headers.items()


def test_what_a_path_adds_takes_nothing_away(shop: Site) -> None:
    answer = shop.request("GET", "/headers", headers={"X-Real-IP": "6.6.6.6", "X-Forwarded-For": "6.6.6.6", "X-Scheme": "http"})
    assert answer.json["X-Path"] == "1"
    wanted = {"Host": "shop.test", "X-Real-Ip": shop.client_address, "X-Forwarded-For": shop.client_address, "X-Scheme": "https"}
    assert wanted.items() <= answer.json.items()
    found = headers_of(shop, "GET", "/headers")
    assert [value for name, value in found if name == "x-frame-options"] == ["SAMEORIGIN"], "in place of the site's"
    assert {("x-path", "1"), ("x-content-type-options", "nosniff"), ("x-shop", "open")} <= set(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [("/static/app.js", "no-cache"), ("/static/app.js?v=1", "max-age=315360000"), ("/", "no-store"), ("/ws", "private")],
)
def test_how_long_an_answer_is_kept_is_said_once(shop: Site, path: str, value: str) -> None:
    assert [found for name, found in headers_of(shop, "GET", path) if name == "cache-control"] == [value]


def test_a_header_that_the_app_sends_itself_comes_once(sample: Site) -> None:
    for path in ("/whoami", "/notes"):  # the second one sends it
        found = headers_of(sample, "GET", path)
        assert [value for name, value in found if name == "x-content-type-options"] == ["nosniff"]
        assert len([value for name, value in found if name == "x-request-id"]) == 1


# Logs and ids


def logged(host: Host, request_id: str) -> dict[str, Any]:
    """Return the line of the access log, which is JSON, that tells of a request."""
    line = eventually(lambda: host.check_output("grep --text --fixed-strings %s /var/log/nginx/access.log", request_id))
    return dict(json.loads(line))


def test_an_id_leads_from_the_answer_to_the_app_and_to_both_logs(host: Host, sample: Site) -> None:
    answer = sample.get("/headers", User_Agent='"\\,{')
    request_id = answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", request_id)
    assert answer.json["X-Request-Id"] == request_id
    line = logged(host, request_id)
    assert (line["status"], line["request"], line["http_user_agent"]) == ("200", "GET /headers HTTP/1.1", '"\\,{')
    assert line["upstream_addr"].startswith("unix:/srv/sample/live/run/")
    assert float(line["upstream_response_time"]) >= 0
    assert (line["remote_addr"], line["scheme"]) == (sample.client_address, "http")
    pattern = f"200 GET /headers .* request={request_id}$"
    eventually(lambda: host.run("grep --quiet --recursive %s /var/log/sample", pattern).rc == 0)


# Proxies in front


def test_a_trusted_proxy_says_who_asks_how_and_by_which_id(host: Host) -> None:
    theirs = f"proxy-{uuid.uuid4()}"
    said = {"X-Forwarded-For": "6.6.6.6, 198.51.100.7", "X-Forwarded-Proto": "https", "X-Request-ID": theirs}
    answer = from_host(host, "sample.test", "/whoami", said)
    assert (answer.json["remote_ip"], answer.json["protocol"]) == ("198.51.100.7", "https")
    assert answer.headers["x-request-id"] == theirs
    assert logged(host, theirs)["remote_addr"] == "198.51.100.7"
    assert from_host(host, "shop.test", "/whoami", {"X-Forwarded-Proto": "https"}).json["app"] == "shop", "it is HTTPS already"
    odd = {"X-Forwarded-Proto": "gopher", "X-Request-ID": 'a"b c'}
    answer = from_host(host, "sample.test", "/whoami", odd)
    assert answer.json["protocol"] == "http"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_nobody_else_is_believed(sample: Site, host: Host) -> None:
    said = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "X-Request-ID": "from-a-client"}
    answer = sample.request("GET", "/whoami", headers=said)
    assert (answer.json["remote_ip"], answer.json["protocol"]) == (sample.client_address, "http")
    assert answer.headers["x-request-id"] != "from-a-client"
    assert Site(address(host), "shop.test").request("GET", "/whoami", headers=said).status == 308


# Maintenance


def maintenance(app: str, state: str, directory: Path, variables: dict[str, Any], *options: str) -> str:
    command = ("playbooks/maintenance.yml", ALL, "-e", f"app={app}", "-e", f"state={state}", *extra(directory, variables))
    return expect_success(run_playbook(*command, *options))


def test_a_site_in_maintenance_says_so_to_all_but_who_works_on_it(
    directory: Path, variables: dict[str, Any], host: Host, shop: Site, guarded: Site
) -> None:
    maintenance("shop", "on", directory, variables, "--check")
    assert shop.get("/whoami").status == 200
    maintenance("shop", "on", directory, variables)
    try:
        for method in ("GET", "POST"):
            answer = shop.request(method, "/whoami")
            assert (answer.status, answer.headers["retry-after"]) == (503, "77")
            assert answer.body == b"<p>Painting</p>"
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert (answer.headers["x-frame-options"], answer.headers["cache-control"]) == ("DENY", "no-store")
        too_large = shop.request("POST", "/echo", headers={"Content-Length": str(1 << 40)})
        assert (too_large.status, too_large.headers["retry-after"]) == (503, "77")
        assert shop.get("/.funnel/maintenance.html").status == 404
        assert shop.get("/.funnel/anything").status == 503
        assert re.search(r"changed=0.*\n.*changed=0", maintenance("shop", "on", directory, variables))
        assert "changed=0" in expect_success(run_site(host.check_output("hostname"), directory, variables))
        assert shop.get("/whoami").status == 503
        assert "shop is in maintenance mode since 20" in expect_success(
            run_playbook("playbooks/status.yml", ALL, *extra(directory, variables))
        )
        assert Site(address(host), "sample.test").get("/whoami").status == 200
    finally:
        maintenance("shop", "off", directory, variables)
    assert shop.get("/whoami").status == 200

    maintenance("guarded", "on", directory, variables)
    try:
        assert guarded.request("GET", "/healthz", headers=login()).status == 200, "its allow list has this client"
        elsewhere = from_host(host, "guarded.test", "/healthz", login())
        assert (elsewhere.status, elsewhere.headers["retry-after"]) == (503, "300")
        assert b"Back in a moment" in elsewhere.body
    finally:
        maintenance("guarded", "off", directory, variables)


@pytest.mark.parametrize(
    ("app", "state", "message"), [("shpo", "on", "app must be one of"), ("shop", "maybe", "state must be on or off; found maybe")]
)
def test_what_is_no_app_or_no_state_is_refused(
    directory: Path, variables: dict[str, Any], app: str, state: str, message: str
) -> None:
    options = ["-e", f"app={app}", "-e", f"state={state}", *extra(directory, variables)]
    status, output = run_playbook("playbooks/maintenance.yml", ALL, *options)
    assert status != 0
    assert message in output


# Snippets and mistakes


def test_snippets_are_served(shop: Site) -> None:
    assert (shop.get("/extra").status, shop.get("/ticks").status) == (204, 204)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"extra": "frobnicate on;"}, ["tornado_apps.shop.extra is refused", "frobnicate on;", 'unknown directive "frobnicate"']),
        ({"extra": "}"}, ["tornado_apps.shop.extra is refused", 'unexpected "}"']),
        ({"paths": {"/live/": {"extra": "proxy_pass;"}}}, ["tornado_apps.shop.paths./live/.extra is refused", "proxy_pass"]),
        ({"allow": ["10.0.0.0/33"]}, ["tornado_apps.shop.allow[0]: must be an IP address or a network", "10.0.0.0/33"]),
        ({"maintenance": {"allow": ["here"]}}, ["tornado_apps.shop.maintenance.allow[0]: must be an IP address or a network"]),
        ({"domains": ["shop_1.test"]}, ["tornado_apps.shop.domains[0]: must be a domain name"]),
        ({"aliases": ["sample.test"]}, ["tornado_apps.shop.aliases: sample.test already belongs to tornado_apps.sample"]),
        ({"basic_auth": {"ann": "hunter2"}}, ["tornado_apps.shop.basic_auth.ann: must be a hash", "(not shown)"]),
        ({"static": {"path": "../../../etc"}}, ["tornado_apps.shop.static.path: must be a directory inside the source"]),
    ],
)
def test_a_mistake_is_said_with_its_key_and_changes_nothing(
    directory: Path, variables: dict[str, Any], keys: dict[str, Any], words: list[str]
) -> None:
    entries = variables["tornado_apps"]
    status, output = run_site(
        "debian12", directory, variables | {"tornado_apps": entries | {"shop": entries["shop"] | keys}}, "--diff"
    )
    folded = re.sub(r"\s+", " ", output)
    assert status != 0
    for word in words:
        assert word in folded
    assert "hunter2" not in output
    assert Site(address(hosts()["debian12"]), "shop.test", https=True).get("/whoami").json["app"] == "shop"
    found = hosts()["debian12"].check_output("nginx -T 2>/dev/null")
    assert "frobnicate" not in found
    assert "location = /extra { return 204; }" in found


def test_a_dry_run_has_nginx_look_at_what_is_there(directory: Path, variables: dict[str, Any]) -> None:
    entries = variables["tornado_apps"]
    missing = {"sample": entries["sample"] | {"tls": {"provider": "self_signed"}}}
    expect_success(run_site("debian12", directory, variables | {"tornado_apps": entries | missing}, "--check"))
    wrong = {"shop": entries["shop"] | {"domains": ["shop.test", "another.test"], "extra": "frobnicate on;"}}
    status, output = run_site("debian12", directory, variables | {"tornado_apps": entries | wrong}, "--check")
    assert status != 0
    assert 'unknown directive "frobnicate"' in re.sub(r"\s+", " ", output)


def findings(configuration: str, file: Path) -> set[str]:
    """Return what a linter finds that is of medium severity or worse."""
    file.write_text(configuration)
    found = subprocess.run(["gixy", "--format", "json", "-ll", str(file)], capture_output=True, text=True, check=False)
    return {finding["plugin"] for finding in json.loads(found.stdout)}


def test_a_linter_finds_what_was_decided_and_nothing_else(host: Host, tmp_path: Path) -> None:
    """HSTS is left to the user; a refusal, or what leads to a location with the same lists, need not wait for allow and deny."""
    rendered = host.check_output("nginx -T 2>/dev/null")
    assert findings(rendered, tmp_path / "nginx.conf") == {"hsts_header", "return_bypasses_allow_deny"}
    start = rendered.rindex("\nserver {") + len("\nserver {")
    wrong = f"{rendered[:start]}\nlocation /wrong/ {{ return 302 https://x$uri; }}\n{rendered[start:]}"
    assert "http_splitting" in findings(wrong, tmp_path / "wrong.conf"), "it reads all of it"
