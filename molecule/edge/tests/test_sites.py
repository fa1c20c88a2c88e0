"""Sites in nginx: domains, static files, access control, limits, headers, logs, trusted proxies and maintenance mode."""

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
    APP_GROUP,
    PORT_APP,
    ROOT,
    Response,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    hosts,
    python,
    run_playbook,
    run_site,
    sample_app_source,
)

testinfra_hosts = ["ansible://app_hosts"]

PASSWORD = "opensesame"
HASH = "$6$pepper$G/7gYp4xKnO6p6NU38Wgib.pvlUttw5wpjIGMPM6WTEZBCFQxydtvr2DUWr3kblI0ZLcRgOhDkT/C.9CVckKb."
UNUSED_ADDRESS = "192.0.2.1"  # TEST-NET-1 (RFC 5737), which no client uses
CERTIFICATE = "/etc/ssl/own.pem"
CHALLENGES = "/var/lib/own-challenges"
CLOSED = "/run/closed"
MEGABYTE = 1 << 20
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "strict-origin-when-cross-origin",
}


def live_upstream(app: str) -> dict[str, str]:
    """Return the live upstream of an app, for a site of another set."""
    return {"include": f"/srv/{app}/live/upstream.conf"}


#: Sites that belong to no app: a default site, one that denies everyone, and one with strict rate limits.
SITES = {
    "unnamed": {"listen": ["8080"], "upstream": live_upstream("sample")},
    "closed": {
        "domains": ["closed.test"],
        "upstream": live_upstream("sample"),
        "tls": {"certificate": CERTIFICATE, "key": CERTIFICATE, "acme_clients": ["127.0.0.1:402"], "redirect": False},
        "static": [{"url": "/static/", "path": "/usr/share/nginx/html"}],
        "allow": [UNUSED_ADDRESS],
        "deny": ["192.0.2.2"],
        "basic_auth": {"ann": HASH},
        "maintenance": {"file": CLOSED},
    },
    "slow": {
        "domains": ["slow.test"],
        "upstream": live_upstream("ported"),
        "tls": {"certificate": CERTIFICATE, "key": CERTIFICATE},
        "static": [{"url": "/static/", "path": "/usr/share/nginx/html"}],
        "limits": {"requests": 1, "burst": 0},
        "paths": {"/events": {"read_timeout": 60, "limits": {"requests": 100}}},
    },
}


def apply_own_sites(directory: Path, variables: dict[str, Any], sites: dict[str, Any]) -> None:
    """Apply a separate set of sites beside those of the apps, like another role."""
    task = {
        "name": "Apply the sites",
        "ansible.builtin.include_role": {"name": "funnel.tornado.nginx", "tasks_from": "sites"},
        "vars": {"nginx_set": "own", "nginx_sites": sites},
    }
    playbook = directory / "own-sites.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": APP_GROUP, "gather_facts": False, "tasks": [task]}]))
    expect_success(run_playbook(str(playbook), APP_GROUP, *extra_vars(directory, variables)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


@pytest.fixture(scope="module")
def variables(directory: Path) -> dict[str, Any]:
    """Return variables with an app that sets every key, one with access control, one with only a domain, and one on ports."""
    common = {"run": {"app": "sample_app.web:make_app"}, "health": {"path": "/healthz"}, "processes": 1, "drain": 2}
    web = (ROOT / "files/sample_app/sample_app/web.py").read_text()
    shop = common | sample_app_source(directory, web=web.replace('(r"/notes"', '(r"/private/.*", WhoAmIHandler), (r"/notes"'))
    static = Path(shop["source"]["path"]) / "sample_app/static"  # type: ignore[index]  # the schema, not mypy, checks the types of an entry
    (static / "app.js.gz").write_bytes(gzip.compress(b"// compressed before\n"))
    subprocess.run(["git", "init", "--quiet", str(static)], check=True)
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
        "paths": {"/headers": {"allow": [UNUSED_ADDRESS]}, "/whoami": {"limits": {"requests": 1, "burst": 1}}},
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
    """Provision both hosts; remove the additional apps after the module."""
    for host in hosts().values():
        host.check_output(
            f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=own -out {CERTIFICATE} -keyout {CERTIFICATE}.key && "
            f"cat {CERTIFICATE}.key >> {CERTIFICATE} && rm {CERTIFICATE}.key && "
            f"install -d {CHALLENGES}/.well-known/acme-challenge && echo proof > {CHALLENGES}/.well-known/acme-challenge/token"
        )
    assert HASH not in expect_success(run_site(APP_GROUP, directory, variables, "--diff", "-v"))
    apply_own_sites(directory, variables, SITES)
    yield
    apply_own_sites(directory, variables, {})
    expect_success(run_site(APP_GROUP, directory, apps(sample={"domains": ["sample.test"]})))
    for name in ("shop", "guarded", "ported"):
        expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", f"app={name}", *extra_vars(directory, {})))
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


def from_host(host: Host, name: str, path: str, headers: dict[str, str]) -> Response:
    """Send a request to the host's site from the host itself, which is a trusted proxy."""
    code = f"""
import http.client, json
connection = http.client.HTTPConnection({address(host)!r}, timeout=10)
connection.request("GET", {path!r}, headers={ {"Host": name, **headers}!r})
answer = connection.getresponse()
print(json.dumps([answer.status, {{name.lower(): value for name, value in answer.getheaders()}}, answer.read().decode()]))
"""
    status, received, body = python(host, code)
    return Response(status, received, body.encode())


def headers_of(site: Site, method: str, path: str, **headers: str) -> list[tuple[str, str]]:
    """Return the headers of a response, including repeated ones."""
    connection = http.client.HTTPConnection(site.address)
    connection.sock = site.connect()
    try:
        connection.request(method, path, headers={"Host": site.host, **headers})
        return [(name.lower(), value) for name, value in connection.getresponse().getheaders()]
    finally:
        connection.close()


# Domains


def test_site_is_served_at_its_domains(host: Host, shop: Site) -> None:
    assert shop.get("/whoami").json["app"] == "shop"
    assert Site(address(host), "any.shop.test", https=True).get("/whoami").json["app"] == "shop"
    assert Site(address(host), "sample.test").get("/whoami").json["app"] == "sample"


@pytest.mark.parametrize("name", ["unknown.test", "shop.test.evil.test", "sample", "192.0.2.1", "-"])
def test_unknown_domain_returns_404(host: Host, name: str) -> None:
    response = Site(address(host), name).get("/whoami")
    assert response.status == 404
    assert b"app" not in response.body
    assert response.headers["server"] == "nginx", "the header must not contain the version"


@pytest.mark.parametrize("name", ["a b", "shop.test/", "sho\\p.test", ".."])
def test_malformed_domain_is_rejected(host: Host, name: str) -> None:
    response = Site(address(host), name).get("/whoami")
    assert response.status in (400, 404)
    assert b"pid" not in response.body


def test_request_without_host_header_reaches_default_site(host: Host) -> None:
    with socket.create_connection((address(host), 8080), timeout=10) as connection:
        connection.sendall(b"GET /whoami HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["host"] == "localhost"


def test_site_is_served_over_ipv6(host: Host) -> None:
    code = """
import http.client, json
connection = http.client.HTTPConnection("::1", 80, timeout=10)
connection.request("GET", "/whoami", headers={"Host": "sample.test"})
print(connection.getresponse().read().decode())
"""
    assert python(host, code).items() >= {"app": "sample", "remote_ip": "::1"}.items()


def test_unknown_domain_gets_no_tls_handshake_or_other_site(host: Host, shop: Site) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Site(address(host), "unknown.test", https=True).get("/")
    assert shop.request("GET", "/whoami", headers={"Host": "unknown.test"}).status == 404
    assert shop.request("GET", "/whoami", headers={"Host": "sample.test"}).status == 404


@pytest.mark.parametrize("https", [False, True])
def test_alias_redirects_to_first_domain(host: Host, *, https: bool) -> None:
    response = Site(address(host), "old.test", https=https).request("POST", "/a?b=c%20d")
    assert (response.status, response.headers["location"]) == (308, "https://shop.test/a?b=c%20d")


def test_http_redirects_to_https_and_hsts_is_sent_only_over_https(host: Host, shop: Site) -> None:
    response = Site(address(host), "b.shop.test").request("POST", "/echo?a=%2F", b"x")
    assert (response.status, response.headers["location"]) == (308, "https://b.shop.test/echo?a=%2F")
    assert "strict-transport-security" not in response.headers
    assert shop.get("/").headers["strict-transport-security"] == "max-age=3600"
    assert shop.get("/whoami").json["protocol"] == "https"


def test_http_2_is_available_over_tls(shop: Site) -> None:
    context = shop.tls
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection((shop.address, 443), timeout=10)
    with context.wrap_socket(plain, server_hostname=shop.name) as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() == "TLSv1.3"
        # The client sends its preface and empty SETTINGS (RFC 9113); the server must send SETTINGS (type 4) first.
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        assert connection.recv(9)[3] == 4


# Static files


def test_static_files_are_served_from_the_release(shop: Site) -> None:
    version = hashlib.sha512(shop.get("/static/app.js").body).hexdigest()
    assert f"/static/app.js?v={version}" in shop.get("/").body.decode()
    cached, unversioned = shop.get(f"/static/app.js?v={version}"), shop.get("/static/app.js")
    assert (cached.body, cached.headers["content-type"]) == (unversioned.body, unversioned.headers["content-type"])
    assert "max-age=31" in cached.headers["cache-control"]
    assert unversioned.headers["cache-control"] == "no-cache"
    assert shop.get("/robots.txt").body == shop.get("/static/robots.txt").body != b""


def test_precompressed_files_are_served_to_clients_that_accept_gzip(shop: Site) -> None:
    response = shop.get("/static/app.js", Accept_Encoding="gzip")
    assert (response.headers["content-encoding"], gzip.decompress(response.body)) == ("gzip", b"// compressed before\n")
    assert response.headers["content-type"] == shop.get("/static/app.js").headers["content-type"]


@pytest.mark.parametrize("path", [".git/config", "passwd", "code", "..%2f..%2frelease.json", "%2e%2e/web.py", "", "nothing"])
def test_hidden_linked_and_outside_files_are_not_served(shop: Site, path: str) -> None:
    response = shop.get(f"/static/{path}")
    assert response.status in (400, 403, 404)
    assert not re.search(rb"repositoryformatversion|root:|revision|def make_app", response.body)


def test_static_files_of_previous_release_stay_available_after_switch(
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
        assert shop.get("/static/style.css").body == b"/* new */", "nginx must not serve a cached open file"
        assert shop.get(f"/static/style.css?v={hashlib.sha512(b'/* new */').hexdigest()}").body == b"/* new */"
        old = shop.get(f"/static/style.css?v={version}")
        assert (old.body, old.headers["content-type"]) == (before[0], "text/css")
        assert "max-age=31" in old.headers["cache-control"]
        assert shop.get("/static/only-before.txt").body == before[1]
        assert shop.get("/static/style.css?v=../../../secrets").body == b"/* new */"
        unknown = shop.get(f"/static/style.css?v={'0' * 128}")
        assert (unknown.body, unknown.headers["cache-control"]) == (b"/* new */", "no-cache"), (
            "another host may have this version"
        )
        assert shop.get(f"/static/only-before.txt?v={'0' * 128}").headers["cache-control"] == "no-cache"

        expect_success(run_playbook("playbooks/restart.yml", name, "-e", "app=shop", *extra_vars(directory, variables)))
        assert shop.get(f"/static/style.css?v={version}").body == before[0], "a restart must not change the previous release"
    finally:
        (static / "style.css").write_bytes(before[0])
        (static / "only-before.txt").write_bytes(before[1])
        expect_success(deploy("shop", name, directory, variables))
    assert shop.get("/static/style.css").body == before[0]


# Long requests


@pytest.mark.parametrize("name", ["sample", "shop", "ported", "slow"])
def test_server_sent_events_are_not_buffered(host: Host, name: str) -> None:
    """Over HTTP and HTTPS, from the runner, and from a program on ports with EventSource's Accept header, also below a path."""
    site = Site(address(host), f"{name}.test", https=name != "sample")
    accept = "Accept: text/event-stream\r\n" if name in ("ported", "slow") else ""
    began = time.monotonic()
    with site.connect() as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: {site.host}\r\n{accept}\r\n".encode())
        response = b""
        while b"data: 3\n" not in response:
            response += connection.recv(4096)
            assert time.monotonic() - began < 5, response


def test_websocket_is_proxied(shop: Site) -> None:
    async def talk(connection: WebSocketClientConnection) -> object:
        await connection.write_message("funnel")
        return await connection.read_message()

    assert shop.websocket("/ws", talk) == "funnel"


def test_read_timeout_is_set_by_path(shop: Site, sample: Site) -> None:
    assert shop.get("/sleep?seconds=3").status == 504
    assert sample.get("/sleep?seconds=3").status == 200


def post(site: Site, path: str, size: int) -> int:
    """Return the status of an upload; nginx responds to the headers and closes, and the reset can overtake the response."""
    try:
        return site.request("POST", path, b"x" * size).status
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        return site.request("POST", path, headers={"Content-Length": str(size)}).status


def test_upload_size_is_set_by_path_and_runner_accepts_the_largest(host: Host, shop: Site) -> None:
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


# Access control


def test_password_is_required_and_its_hash_is_protected(host: Host, guarded: Site) -> None:
    assert guarded.get("/").status == 401
    assert guarded.request("GET", "/", headers=login("wrong")).status == 401
    assert guarded.request("GET", "/", headers=login()).status == 200
    assert host.check_output("stat --format '%a %U:%G' /etc/nginx/funnel/app.guarded.htpasswd") == "640 root:www-data"
    assert host.run("grep --recursive --files-with-matches --fixed-strings %s /srv/guarded/releases", HASH).rc == 1


def test_addresses_are_allowed_and_denied_by_path(guarded: Site, shop: Site) -> None:
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
def test_path_variants_do_not_bypass_settings_of_a_path(shop: Site, path: str, status: int) -> None:
    response = shop.get(path)
    assert response.status == status
    assert "x-frame-options" in response.headers
    assert b"pid" not in response.body


def test_harmless_dots_and_slashes_are_passed_to_the_app(host: Host, shop: Site, guarded: Site) -> None:
    assert shop.get("/whoami?next=/a/../b").json["app"] == "shop"
    assert shop.get("//whoami").status == 404, "the app itself must respond"
    assert guarded.request("GET", "/private/x..y/...", headers=login()).json["app"] == "guarded", "no path of this site is denied"
    for name in ("shop.test", "old.test", "sample.test"):
        assert Site(address(host), name).get("/a/../b").status == 400


#: Requests that reach different nginx locations: the app, robots.txt, static files, events.
LOCATIONS: list[tuple[str, dict[str, str]]] = [
    ("/healthz", {}),
    ("/robots.txt", {}),
    ("/static/index.html", {}),
    ("/healthz", {"Accept": "text/event-stream"}),
]


@pytest.mark.parametrize(("path", "headers"), LOCATIONS)
def test_access_control_applies_to_all_locations(host: Host, path: str, headers: dict[str, str]) -> None:
    assert Site(address(host), "closed.test").request("GET", path, headers=headers | login()).status == 403
    for client, credentials, status in (
        (UNUSED_ADDRESS, {}, 401),
        (UNUSED_ADDRESS, login("wrong"), 401),
        (UNUSED_ADDRESS, login(), 200),
        ("192.0.2.2", login(), 403),
    ):
        assert from_host(host, "closed.test", path, headers | credentials | {"X-Forwarded-For": client}).status == status


@pytest.mark.parametrize(("path", "headers"), LOCATIONS)
def test_rate_limits_apply_to_all_locations(host: Host, path: str, headers: dict[str, str]) -> None:
    slow = Site(address(host), "slow.test", https=True)
    eventually(lambda: slow.request("GET", path, headers=headers).status == 200, 10)
    assert 429 in [slow.request("GET", path, headers=headers).status for _ in range(3)]


@pytest.fixture
def acme_client(host: Host) -> Iterator[None]:
    """Run a server in place of an ACME client that has a challenge."""
    host.check_output(f"systemd-run --unit=acme-client python3 -m http.server --directory {CHALLENGES} 402")
    eventually(lambda: ":402 " in host.check_output("ss -Hltn"))
    yield
    host.check_output("systemctl stop acme-client")


@pytest.mark.usefixtures("acme_client")
def test_acme_challenges_are_always_accessible(host: Host) -> None:
    url = "/.well-known/acme-challenge/token"
    assert Site(address(host), "closed.test").get(f"{url}x").status == 404
    for https in (False, True):
        site = Site(address(host), "closed.test", https=https)
        assert (site.get(url).status, site.get(url).body, site.get("/").status) == (200, b"proof\n", 403)
        host.check_output(f"touch {CLOSED}")
        try:
            assert (site.get(url).status, site.get("/").status) == (200, 503)
        finally:
            host.check_output(f"rm {CLOSED}")


def test_request_rate_above_limit_returns_429(guarded: Site) -> None:
    statuses = [guarded.request("GET", "/whoami", headers=login()).status for _ in range(5)]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses
    eventually(lambda: guarded.request("GET", "/whoami", headers=login()).status == 200, 10)


def test_concurrent_requests_above_limit_return_429(guarded: Site) -> None:
    statuses: list[int] = []

    def send() -> None:
        statuses.append(guarded.request("GET", "/sleep?seconds=2", headers=login()).status)

    threads = [threading.Thread(target=send) for _ in range(4)]
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
def test_security_headers_are_configurable_and_on_every_response(shop: Site, method: str, path: str, status: int) -> None:
    response = shop.request(method, path)
    assert response.status == status
    expected = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "x-shop": "open"}
    assert expected.items() <= response.headers.items()
    assert "referrer-policy" not in response.headers


def test_redirects_and_errors_of_nginx_have_security_headers(host: Host, sample: Site, guarded: Site) -> None:
    redirect = Site(address(host), "shop.test").get("/")
    assert (redirect.status, redirect.headers["x-frame-options"]) == (308, "DENY")
    for response in (guarded.get("/"), sample.request("POST", "/", headers={"Content-Length": str(1 << 40)})):
        assert response.status in (401, 413)
        assert SECURITY_HEADERS.items() <= response.headers.items()


def test_headers_of_a_path_extend_those_of_the_site(shop: Site) -> None:
    response = shop.request("GET", "/headers", headers={"X-Real-IP": "6.6.6.6", "X-Forwarded-For": "6.6.6.6", "X-Scheme": "http"})
    assert response.json["X-Path"] == "1"
    expected = {
        "Host": "shop.test",
        "X-Real-Ip": shop.client_address,
        "X-Forwarded-For": shop.client_address,
        "X-Scheme": "https",
    }
    assert expected.items() <= response.json.items()
    found = headers_of(shop, "GET", "/headers")
    assert [value for name, value in found if name == "x-frame-options"] == ["SAMEORIGIN"], "must replace the header of the site"
    assert {("x-path", "1"), ("x-content-type-options", "nosniff"), ("x-shop", "open")} <= set(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [("/static/app.js", "no-cache"), ("/static/app.js?v=1", "max-age=315360000"), ("/", "no-store"), ("/ws", "private")],
)
def test_cache_control_is_sent_once(shop: Site, path: str, value: str) -> None:
    assert [found for name, found in headers_of(shop, "GET", path) if name == "cache-control"] == [value]


def test_header_sent_by_the_app_is_not_duplicated(sample: Site) -> None:
    for path in ("/whoami", "/notes"):  # the app sets the header for the second path
        found = headers_of(sample, "GET", path)
        assert [value for name, value in found if name == "x-content-type-options"] == ["nosniff"]
        assert len([value for name, value in found if name == "x-request-id"]) == 1


# Logs and request IDs


def find_log_entry(host: Host, request_id: str) -> dict[str, Any]:
    """Return the entry of a request in the JSON access log."""
    line = eventually(lambda: host.check_output("grep --text --fixed-strings %s /var/log/nginx/access.log", request_id))
    return dict(json.loads(line))


def test_request_id_links_response_app_and_both_logs(host: Host, sample: Site) -> None:
    response = sample.get("/headers", User_Agent='"\\,{')
    request_id = response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", request_id)
    assert response.json["X-Request-Id"] == request_id
    line = find_log_entry(host, request_id)
    assert (line["status"], line["request"], line["http_user_agent"]) == ("200", "GET /headers HTTP/1.1", '"\\,{')
    assert line["upstream_addr"].startswith("unix:/srv/sample/live/run/")
    assert float(line["upstream_response_time"]) >= 0
    assert (line["remote_addr"], line["scheme"]) == (sample.client_address, "http")
    pattern = f"200 GET /headers .* request={request_id}$"
    eventually(lambda: host.run("grep --quiet --recursive %s /var/log/sample", pattern).rc == 0)


# Trusted proxies


def test_headers_of_trusted_proxy_are_used(host: Host) -> None:
    proxy_id = f"proxy-{uuid.uuid4()}"
    forwarded = {"X-Forwarded-For": "6.6.6.6, 198.51.100.7", "X-Forwarded-Proto": "https", "X-Request-ID": proxy_id}
    response = from_host(host, "sample.test", "/whoami", forwarded)
    assert (response.json["remote_ip"], response.json["protocol"]) == ("198.51.100.7", "https")
    assert response.headers["x-request-id"] == proxy_id
    assert find_log_entry(host, proxy_id)["remote_addr"] == "198.51.100.7"
    assert from_host(host, "shop.test", "/whoami", {"X-Forwarded-Proto": "https"}).json["app"] == "shop", "already HTTPS"
    odd = {"X-Forwarded-Proto": "gopher", "X-Request-ID": 'a"b c'}
    response = from_host(host, "sample.test", "/whoami", odd)
    assert response.json["protocol"] == "http"
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_headers_of_untrusted_clients_are_ignored(sample: Site, host: Host) -> None:
    forwarded = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "X-Request-ID": "from-a-client"}
    response = sample.request("GET", "/whoami", headers=forwarded)
    assert (response.json["remote_ip"], response.json["protocol"]) == (sample.client_address, "http")
    assert response.headers["x-request-id"] != "from-a-client"
    assert Site(address(host), "shop.test").request("GET", "/whoami", headers=forwarded).status == 308


# Maintenance


def maintenance(app: str, state: str, directory: Path, variables: dict[str, Any], *options: str) -> str:
    command = (
        "playbooks/maintenance.yml",
        APP_GROUP,
        "-e",
        f"app={app}",
        "-e",
        f"state={state}",
        *extra_vars(directory, variables),
    )
    return expect_success(run_playbook(*command, *options))


def test_maintenance_page_is_shown_to_all_but_allowed_clients(
    directory: Path, variables: dict[str, Any], host: Host, shop: Site, guarded: Site
) -> None:
    maintenance("shop", "on", directory, variables, "--check")
    assert shop.get("/whoami").status == 200
    maintenance("shop", "on", directory, variables)
    try:
        for method in ("GET", "POST"):
            response = shop.request(method, "/whoami")
            assert (response.status, response.headers["retry-after"]) == (503, "77")
            assert response.body == b"<p>Painting</p>"
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert (response.headers["x-frame-options"], response.headers["cache-control"]) == ("DENY", "no-store")
        too_large = shop.request("POST", "/echo", headers={"Content-Length": str(1 << 40)})
        assert (too_large.status, too_large.headers["retry-after"]) == (503, "77")
        assert shop.get("/.funnel/maintenance.html").status == 404
        assert shop.get("/.funnel/anything").status == 503
        assert re.search(r"changed=0.*\n.*changed=0", maintenance("shop", "on", directory, variables))
        assert "changed=0" in expect_success(run_site(host.check_output("hostname"), directory, variables))
        assert shop.get("/whoami").status == 503
        assert "shop is in maintenance mode since 20" in expect_success(
            run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(directory, variables))
        )
        assert Site(address(host), "sample.test").get("/whoami").status == 200
    finally:
        maintenance("shop", "off", directory, variables)
    assert shop.get("/whoami").status == 200

    maintenance("guarded", "on", directory, variables)
    try:
        assert guarded.request("GET", "/healthz", headers=login()).status == 200, "the allow list contains this client"
        elsewhere = from_host(host, "guarded.test", "/healthz", login())
        assert (elsewhere.status, elsewhere.headers["retry-after"]) == (503, "300")
        assert b"Back in a moment" in elsewhere.body
    finally:
        maintenance("guarded", "off", directory, variables)


@pytest.mark.parametrize(
    ("app", "state", "message"),
    [
        ("shpo", "on", "tornado_apps: no such app shpo; did you mean shop?"),
        ("shop", "maybe", "state must be on or off; found maybe"),
    ],
)
def test_invalid_app_or_maintenance_state_is_rejected(
    directory: Path, variables: dict[str, Any], app: str, state: str, message: str
) -> None:
    options = ["-e", f"app={app}", "-e", f"state={state}", *extra_vars(directory, variables)]
    status, output = run_playbook("playbooks/maintenance.yml", APP_GROUP, *options)
    assert status != 0
    assert message in output


# Snippets and invalid configuration


def test_snippets_are_applied(shop: Site) -> None:
    assert (shop.get("/extra").status, shop.get("/ticks").status) == (204, 204)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"extra": "frobnicate on;"}, ["tornado_apps.shop.extra is refused", "frobnicate on;", 'unknown directive "frobnicate"']),
        ({"extra": "}"}, ["tornado_apps.shop.extra is refused", 'unexpected "}"']),
        (
            {"paths": {"/live/": {"extra": "proxy_pass;"}}},
            ["tornado_apps.shop.paths./live/.extra is refused", "proxy_pass"],
        ),
        ({"allow": ["10.0.0.0/33"]}, ["tornado_apps.shop.allow[0]: must be an IP address or a network", "10.0.0.0/33"]),
        ({"maintenance": {"allow": ["here"]}}, ["tornado_apps.shop.maintenance.allow[0]: must be an IP address or a network"]),
        ({"domains": ["shop_1.test"]}, ["tornado_apps.shop.domains[0]: must be a domain name"]),
        ({"aliases": ["sample.test"]}, ["tornado_apps.shop.aliases: sample.test already belongs to tornado_apps.sample"]),
        ({"basic_auth": {"ann": "hunter2"}}, ["tornado_apps.shop.basic_auth.ann: must be a hash", "(not shown)"]),
        ({"static": {"path": "../../../etc"}}, ["tornado_apps.shop.static.path: must be a directory inside the source"]),
    ],
)
def test_invalid_configuration_is_reported_with_its_key_and_changes_nothing(
    directory: Path, variables: dict[str, Any], keys: dict[str, Any], words: list[str]
) -> None:
    entries = variables["tornado_apps"]
    status, output = run_site(
        "debian12", directory, variables | {"tornado_apps": entries | {"shop": entries["shop"] | keys}}, "--diff"
    )
    collapsed = re.sub(r"\s+", " ", output)
    assert status != 0
    for word in words:
        assert word in collapsed
    assert "hunter2" not in output
    assert Site(address(hosts()["debian12"]), "shop.test", https=True).get("/whoami").json["app"] == "shop"
    found = hosts()["debian12"].check_output("nginx -T 2>/dev/null")
    assert "frobnicate" not in found
    assert "location = /extra { return 204; }" in found


def test_check_mode_validates_the_nginx_configuration(directory: Path, variables: dict[str, Any]) -> None:
    entries = variables["tornado_apps"]
    missing = {"sample": entries["sample"] | {"tls": {"provider": "self_signed"}}}
    expect_success(run_site("debian12", directory, variables | {"tornado_apps": entries | missing}, "--check"))
    wrong = {"shop": entries["shop"] | {"domains": ["shop.test", "another.test"], "extra": "frobnicate on;"}}
    status, output = run_site("debian12", directory, variables | {"tornado_apps": entries | wrong}, "--check")
    assert status != 0
    assert 'unknown directive "frobnicate"' in re.sub(r"\s+", " ", output)


def findings(configuration: str, file: Path) -> set[str]:
    """Return the findings of the linter gixy of at least medium severity."""
    file.write_text(configuration)
    found = subprocess.run(["gixy", "--format", "json", "-ll", str(file)], capture_output=True, text=True, check=False)
    return {finding["plugin"] for finding in json.loads(found.stdout)}


def test_linter_reports_only_accepted_findings(host: Host, tmp_path: Path) -> None:
    """HSTS is optional; denials and internal redirects to locations with the same lists may precede allow and deny.

    The health check passes a variable path to an upstream, whose name needs no resolver.
    """
    rendered = host.check_output("nginx -T 2>/dev/null")
    assert findings(rendered, tmp_path / "nginx.conf") == {"hsts_header", "missing_resolver", "return_bypasses_allow_deny"}
    start = rendered.rindex("\nserver {") + len("\nserver {")
    wrong = f"{rendered[:start]}\nlocation /wrong/ {{ return 302 https://x$uri; }}\n{rendered[start:]}"
    assert "http_splitting" in findings(wrong, tmp_path / "wrong.conf"), "the linter must read the whole configuration"
