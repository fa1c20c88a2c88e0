from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.filter.app_backends import app_backends
from ansible_collections.funnel.tornado.plugins.filter.app_socket_backends import app_socket_backends
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import UNTRUSTED_HEADERS
from ansible_collections.funnel.tornado.plugins.plugin_utils.haproxy_rendering import Frontend, haproxy_files
from tests.support.haproxy import configuration

SHOP = {"domains": ["shop.example.com"], "servers": {"web1": "192.0.2.11", "web2": "192.0.2.12"}}
PLAIN = Frontend(["80", "[::]:80"], ["443", "[::]:443"])
TLS = Frontend(["80"], ["443"], ["/etc/ssl/funnel/app.shop.pem"])
APP = {"source": {"path": "."}, "run": {"app": "shop:make_app"}}


def render(backends: dict[str, Any], frontend: Frontend = PLAIN, openssl: str = "3.0.17") -> list[str]:
    """Return the lines of haproxy.cfg, without comments and blank lines."""
    lines = [line.strip() for line in configuration(backends, frontend, openssl=openssl).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def section(lines: list[str], name: str) -> list[str]:
    """Return the lines of a section, such as ``backend shop``."""
    start = lines.index(name) + 1
    words = ("global", "defaults ", "frontend ", "backend ")
    return lines[start : next((i for i in range(start, len(lines)) if lines[i].startswith(words)), len(lines))]


def problems(backends: dict[str, Any], frontend: Frontend = PLAIN) -> list[str]:
    with pytest.raises(InvalidDataError) as caught:
        haproxy_files(backends, frontend)
    return caught.value.problems


def test_client_headers_are_overwritten() -> None:
    http = section(render({"shop": SHOP}), "frontend http")
    assert [line for line in http if "-header" in line and "http-request" in line] == [
        "http-request del-header '[^A-Za-z0-9-]' -m reg",
        "http-request del-header X-Forwarded- -m beg",
        *(f"http-request del-header {name}" for name in UNTRUSTED_HEADERS if not name.startswith("X-Forwarded-")),
        "http-request set-header X-Forwarded-For %[src]",
        "http-request set-header X-Real-IP %[src]",
        "http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]",
        "http-request set-header X-Scheme %[ssl_fc,iif(https,http)]",
        "http-request set-header X-Request-ID %[unique-id]",
    ]


def test_exact_domains_precede_wildcards_and_long_wildcards_short_ones() -> None:
    backends = {
        "all": {"servers": {"web1": "192.0.2.11"}},
        "masks": {**SHOP, "domains": ["*.example.com", "*.b.example.com"]},
        "shop": {**SHOP, "aliases": ["a.example.com"]},
    }
    http = section(render(backends), "frontend http")
    assert [line for line in http if line.startswith(("use_backend", "default_backend"))] == [
        "use_backend shop if { var(txn.name) -m str shop.example.com }",
        "use_backend shop if { var(txn.name) -m str a.example.com }",
        "use_backend masks if { var(txn.name) -m end .b.example.com }",
        "use_backend masks if { var(txn.name) -m end .example.com }",
        "default_backend all",
    ]


def test_unknown_names_get_404() -> None:
    lines = render({"shop": SHOP})
    assert "default_backend unknown.name" in lines
    assert section(lines, "backend unknown.name") == [
        'http-request return status 404 content-type text/plain string "Not found\\n"'
    ]


def test_single_server_has_no_passive_health_check() -> None:
    several = section(render({"shop": SHOP}), "backend shop")
    assert "server web1 192.0.2.11:80 check weight 100 observe layer4 error-limit 3 on-error mark-down" in several
    single = section(render({"shop": {"servers": {"web1": "192.0.2.11:8080"}}}), "backend shop")
    assert "server web1 192.0.2.11:8080 check weight 100" in single


def test_server_options() -> None:
    server = {"address": "[2001:db8::1]", "weight": 50, "max_connections": 9, "backup": True}
    lines = section(render({"shop": {"servers": {"web1": server}, "proxy_protocol": True, "affinity": "cookie"}}), "backend shop")
    [cookie] = [line.split()[-1] for line in lines if line.startswith("server")]
    assert f"server web1 [2001:db8::1]:80 check weight 50 maxconn 9 backup send-proxy-v2 cookie {cookie}" in lines
    assert "web1" not in cookie


def test_servers_time_out_before_the_load_balancer() -> None:
    lines = section(render({"shop": {**SHOP, "read_timeout": 3600}}), "backend shop")
    assert {"timeout server 3605s", "timeout tunnel 3605s", "timeout queue 30s"} <= set(lines)


def test_https_has_certificates_redirects_and_headers() -> None:
    shop = {**SHOP, "redirect": True, "challenges": True, "hsts": 60, "aliases": ["*.example.org"]}
    lines = render({"shop": shop}, TLS)
    assert 'bind "${BIND_1}" ssl crt certificates strict-sni alpn h2,http/1.1' in section(lines, "frontend http")
    assert "presetenv BIND_1 *:443" in section(lines, "global")
    assert [line for line in section(lines, "backend shop") if "redirect" in line or "Strict" in line] == [
        "http-request redirect prefix https://shop.example.com code 308 if alias !challenge",
        "http-request redirect scheme https code 308 if !challenge !{ ssl_fc }",
        'http-after-response set-header Strict-Transport-Security "max-age=60" '
        "if { ssl_fc } !{ res.hdr(Strict-Transport-Security) -m found }",
    ]
    assert {path: entry["link"] for path, entry in haproxy_files({"shop": SHOP}, TLS).items() if "link" in entry} == {
        "certificates/app.shop.pem": "/etc/ssl/funnel/app.shop.pem",
        "certificates/app.shop.pem.key": "/etc/ssl/funnel/app.shop.key",
    }


@pytest.mark.parametrize(("openssl", "supported"), [("3.0.17", False), ("3.5.1", True)])
def test_only_curves_that_openssl_supports_are_configured(openssl: str, *, supported: bool) -> None:
    [curves] = [line for line in render({"shop": SHOP}, TLS, openssl) if line.startswith("ssl-default-bind-curves")]
    assert ("?X25519MLKEM768" in curves) == supported
    assert curves.endswith("X25519:prime256v1:secp384r1")


def test_systemd_passes_sockets_in_the_order_of_haproxy() -> None:
    files = haproxy_files({"shop": SHOP}, Frontend(["80", "[::]:80"], ["192.0.2.1:443"], TLS.certificates))
    binds = files["/etc/systemd/system/haproxy.socket"]["vars"]["binds"]
    assert [(bind["variable"], bind["socket"], bind["stream"], bind["address"]) for bind in binds] == [
        ("BIND_0", "fd@3", "0.0.0.0:80", "*:80"),
        ("BIND_1", "fd@4", "[::]:80", "[::]:80"),
        ("BIND_2", "fd@5", "192.0.2.1:443", "192.0.2.1:443"),
        ("BIND_3", "fd@6", "127.0.0.1:8404", "127.0.0.1:8404"),
    ]
    assert files["/etc/systemd/system/haproxy.service.d/50-funnel.conf"]["vars"]["binds"] == binds


def test_no_tls_termination_without_certificates() -> None:
    lines = render({"shop": SHOP})
    assert not [line for line in lines if "ssl-default" in line or "ssl crt" in line]
    assert "tcp-request connection reject" in section(lines, "frontend tls")
    assert "frontend tls" not in render({"shop": SHOP}, Frontend(["80"]))


def test_tls_passthrough_routes_by_server_name() -> None:
    shop = {**SHOP, "tls": "pass", "proxy_protocol": True, "tls_port": 8443}
    lines = render({"shop": shop, "plain": {"servers": {"web1": "192.0.2.11"}}})
    tls = section(lines, "frontend tls")
    assert [line for line in tls if not line.startswith("tcp-request")] == [
        'bind "${BIND_2}"',
        'bind "${BIND_3}" v6only',
        "use_backend shop.tls if { req.ssl_sni,lower -m str shop.example.com }",
    ]
    assert "server web1 192.0.2.11:8443 track shop/web1 weight 100 send-proxy-v2" in section(lines, "backend shop.tls")
    assert "backend plain.tls" not in lines


def test_socket_backends_require_group_www_data_and_no_chroot() -> None:
    sockets = render({"shop": {"servers": {"p0": "unix@/srv/shop/live/run/0.sock"}}})
    assert "group www-data" in section(sockets, "global")
    assert not [line for line in sockets if line.startswith("chroot")]
    assert "chroot /var/lib/haproxy" in section(render({"shop": SHOP}), "global")


@pytest.mark.parametrize(
    ("backends", "frontend", "expected"),
    [
        ({}, PLAIN, ["haproxy_backends: is empty; add a backend, such as {shop: {servers: {web1: 192.0.2.11}}}"]),
        (
            {"a b": SHOP, "shop": {**SHOP, "affinty": "cookie", "sticky": True, "queue": 0}},
            PLAIN,
            [
                "haproxy_backends.a b: must be a name of letters, digits, _ and -",
                "haproxy_backends.shop.affinty: unknown key; did you mean affinity?",
                "haproxy_backends.shop.sticky: was replaced by affinity; set affinity: cookie",
                "haproxy_backends.shop.queue: must be from 1 to 86400; found 0",
            ],
        ),
        (
            {"a": {"servers": {}}, "b": {"servers": {"w 1": "x"}, "aliases": ["b.test"], "redirect": True}, "c": SHOP, "d": SHOP},
            PLAIN,
            [
                "haproxy_backends.a.servers: is empty; a backend requires at least one server",
                "haproxy_backends.b.servers.w 1: must be a name of letters, digits, . _ and -",
                "haproxy_backends.b.aliases: redirect to the first of domains, which must be a name without *",
                "haproxy_backends.b.redirect: requires HTTPS; add the certificate to haproxy_certificates",
                "haproxy_backends.d.domains: shop.example.com already belongs to haproxy_backends.c; names must be unique",
            ],
        ),
        (
            {"a": {"servers": {"x": "unix@/run/x.sock"}, "tls": "pass", "affinity": "cookie", "origin": "tornado_apps.a"}},
            Frontend(["80x"], [], ["shop.pem"]),
            [
                "haproxy_listen[0]: must be a port, such as \"80\", or address:port; found '80x'",
                "haproxy_certificates[0]: must be the absolute path of a file that ends with .pem; found 'shop.pem'",
                "haproxy_certificates: require an address to listen on, such as haproxy_listen_tls: ['443', '[::]:443']",
                "haproxy_certificates: a passes TLS through, so HAProxy cannot terminate it; remove one of them",
                "tornado_apps.a.tls: requires an address to listen on, such as haproxy_listen_tls: ['443', '[::]:443']",
                "tornado_apps.a.affinity: requires a cookie, which HAProxy cannot add to TLS that it passes through; use address",
                "tornado_apps.a.servers.x: is a socket; TLS passthrough requires a host",
            ],
        ),
    ],
)
def test_all_problems_are_reported_at_once(backends: dict[str, Any], frontend: Frontend, expected: list[str]) -> None:
    assert problems(backends, frontend) == expected


def test_alias_of_a_backend_must_not_be_its_domain() -> None:
    assert problems({"shop": {**SHOP, "aliases": SHOP["domains"]}}) == [
        "haproxy_backends.shop.aliases: shop.example.com is listed twice"
    ]


def test_only_one_backend_may_be_the_default() -> None:
    assert problems({"a": {"servers": {"x": "y"}}, "b": {"servers": {"x": "y"}}}) == [
        "haproxy_backends.b.domains: haproxy_backends.a is already the default for other names; only one may have no domains"
    ]


HOSTS = {"web1": "192.0.2.11", "web2": "2001:db8::2"}
ENTRY = {
    **APP,
    "domains": ["shop.example.com"],
    "aliases": ["www.example.com"],
    "tls": {"provider": "self_signed", "hsts": 9},
    "affinity": "cookie",
    "balance": {"connections": 50, "queue": 5},
    "paths": {"/live/": {"read_timeout": 3600}},
}


def test_app_backend_has_all_hosts() -> None:
    found = app_backends({"shop": ENTRY, "blog": APP}, HOSTS)
    assert found["shop"] == {
        "servers": {
            "web1": {"address": "192.0.2.11", "max_connections": 50},
            "web2": {"address": "[2001:db8::2]", "max_connections": 50},
        },
        "health": {"path": "/.funnel/health/shop", "host": "funnel.invalid", "verdict": "X-Funnel-Health"},
        "affinity": "cookie",
        "queue": 5,
        "read_timeout": 3600,
        "origin": "tornado_apps.shop",
        "domains": ["shop.example.com"],
        "aliases": ["www.example.com"],
        "redirect": True,
        "hsts": 9,
        "acme_clients": [],
    }
    assert not found["blog"]["redirect"]
    haproxy_files(found, TLS)


def test_app_with_tls_at_the_app_hosts_uses_passthrough() -> None:
    entry = {**ENTRY, "affinity": "address", "balance": {}}
    found = app_backends({"shop": entry, "blog": APP}, HOSTS, "app_hosts")
    assert found["shop"]["domains"] == ["shop.example.com", "www.example.com"]
    assert (found["shop"]["tls"], found["blog"]["tls"]) == ("pass", "end")
    assert found["shop"]["proxy_protocol"]
    lines = render(found, PLAIN)
    for name in ("shop", "shop.tls"):
        assert {"balance source", "hash-type consistent"} <= set(section(lines, f"backend {name}"))


def test_app_with_prefix_shares_the_backend_of_its_site() -> None:
    api = {**APP, "prefix": "/api/", "domains": ["shop.example.com"], "read_timeout": 9000}
    found = app_backends({"shop": ENTRY, "api": api}, HOSTS)
    assert list(found) == ["shop"]
    assert found["shop"]["read_timeout"] == 9000


@pytest.mark.parametrize(
    ("of_site", "of_part", "expected"),
    [("none", "address", "address"), ("address", "cookie", "cookie"), ("cookie", "none", "cookie"), ("none", "none", "none")],
)
def test_backend_has_the_strictest_affinity_of_the_apps_of_its_site(of_site: str, of_part: str, expected: str) -> None:
    api = {**APP, "prefix": "/api/", "domains": ["shop.example.com"], "affinity": of_part}
    assert app_backends({"shop": {**ENTRY, "affinity": of_site}, "api": api}, HOSTS)["shop"]["affinity"] == expected


def test_each_process_is_a_server_with_haproxy_as_the_reverse_proxy() -> None:
    entry = {**ENTRY, "processes": 2, "paths": {}, "headers": {"X-Frame-Options": "", "X-Shop": "1"}}
    found = app_socket_backends({"shop": entry}, 8)
    assert found["shop"]["servers"] == {
        "0": "unix@/srv/shop/live/run/0.sock",
        "1": "unix@/srv/shop/live/run/1.sock",
    }
    lines = section(render(found, TLS), "backend shop")
    assert len({line.rpartition(" cookie ")[2] for line in lines if line.startswith("server ")}) == 2
    assert 'http-after-response set-header X-Shop "1" if !{ res.hdr(X-Shop) -m found }' in lines
    assert 'http-after-response set-header X-Content-Type-Options "nosniff"' in {line.partition(" if ")[0] for line in lines}
    assert not [line for line in lines if "X-Frame-Options" in line]


def test_load_balancers_forward_challenges_to_each_other() -> None:
    found = app_backends({"shop": {**ENTRY, "tls": {"provider": "acme"}}}, HOSTS, acme_peers=["192.0.2.2", "2001:db8::2"])
    lines = render(found, TLS)
    rules = [line for line in section(lines, "frontend http") if line.startswith("use_backend")]
    challenges = "use_backend shop.challenges if { path_beg /.well-known/acme-challenge/ } { var(txn.name) -m str "
    assert rules[0] == challenges + "shop.example.com }", "before the rule for the domain"
    assert section(lines, "backend shop.challenges")[-3:] == [
        "server client1 127.0.0.1:402",
        "server client2 192.0.2.2:402",
        "server client3 [2001:db8::2]:402",
    ]
    entry = {**APP, "domains": ["shop.example.com"], "tls": {"provider": "acme"}}
    passed = app_backends({"shop": entry}, HOSTS, "app_hosts", ["192.0.2.2"])
    assert "challenges" not in "".join(render(passed)), "the app hosts answer them"


def test_options_that_require_nginx_are_rejected_with_haproxy() -> None:
    entry = {**ENTRY, "static": {}, "basic_auth": {"ann": "$6$salt$hash"}}
    with pytest.raises(InvalidDataError) as caught:
        app_socket_backends({"shop": entry}, 8)
    assert str(caught.value).splitlines() == [
        "tornado_apps.shop.basic_auth: requires nginx, but app_proxy selects HAProxy; remove it",
        "tornado_apps.shop.paths: requires nginx, but app_proxy selects HAProxy; remove it",
        "tornado_apps.shop.static: requires nginx, but app_proxy selects HAProxy; remove it",
    ]


def test_backends_of_one_origin_are_all_checked() -> None:
    first, second = {**SHOP, "origin": "shared"}, {**SHOP, "origin": "shared", "servers": {}}
    found = problems({"a": first, "b": second})
    assert "shared.servers: is empty; a backend requires at least one server" in found
    assert "shared.domains: shop.example.com already belongs to shared; names must be unique" in found
