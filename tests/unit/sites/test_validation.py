from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import NginxOptions
from ansible_collections.funnel.tornado.plugins.module_utils.sites.validation import parse_sites

API = {"servers": ["127.0.0.1:9000"]}
TLS = {"certificate": "/etc/ssl/shop.pem", "key": "/etc/ssl/shop.key"}


def problems(
    sites: Mapping[str, Any], upstreams: Mapping[str, Any] | None = None, trusted_proxies: Sequence[str] = ()
) -> list[str]:
    """Return the problems of sites that must not be valid."""
    options = NginxOptions(["80", "[::]:80"], ["443"], trusted_proxies)
    with pytest.raises(InvalidDataError) as caught:
        parse_sites(sites, upstreams or {}, name="nginx", options=options)
    return caught.value.problems


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"static": ["/s/", "/s/"]},
            ["nginx_sites.shop.static[1].url: /s/ is already in use or reserved; choose another path"],
        ),
        (
            {"static": ["/.funnel/", "/.well-known/acme-challenge/x/"]},
            [
                "nginx_sites.shop.static[0].url: /.funnel/ is already in use or reserved; choose another path",
                "nginx_sites.shop.static[1].url: /.well-known/acme-challenge/x/ is already in use or reserved; "
                "choose another path",
            ],
        ),
        (
            {"static": ["/api/s/"], "paths": {"/api/up": {}, "/ap": {}}, "mounts": {"/api/": {"upstream": API}}},
            [
                "nginx_sites.shop.static[0].url: /api/s/ lies below /api/, which nginx_sites.shop.mounts./api/ serves; move it "
                "there or choose another path",
                "nginx_sites.shop.paths./api/up: /api/up lies below /api/, which nginx_sites.shop.mounts./api/ serves; move it "
                "there or choose another path",
            ],
        ),
        (
            {
                "mounts": {
                    "/a/": {"upstream": API, "paths": {"/a/b/c/d": {}}},
                    "/a/b/": {"upstream": API},
                    "/a/b/c/": {"upstream": API},
                }
            },
            [
                "nginx_sites.shop.mounts./a/.paths./a/b/c/d: /a/b/c/d lies below /a/b/c/, which "
                "nginx_sites.shop.mounts./a/b/c/ serves; move it there or choose another path",
            ],
        ),
    ],
)
def test_each_url_path_belongs_to_one_part_of_the_site(keys: dict[str, Any], expected: list[str]) -> None:
    static = [{"url": url, "path": "/srv/static"} for url in keys.get("static", [])]
    shop = {"domains": ["shop.example.com"], "upstream": API, **keys, "static": static}
    assert problems({"shop": shop}) == expected


INVALID_PATHS = ("//admin/", "/a/../b", "/a/.", "/a//", "/.funnel/maintenance.html")


def test_all_problems_are_reported_at_once() -> None:
    sites = {
        "a": {"upsteam": "x"},
        "b": {"upstream": "aip", "domains": ["Upper.example.com", "x.example.com"]},
        "c": {"upstream": "api", "domains": ["x.example.com"], "static": [{"url": "static", "path": "/a b"}]},
        "d": {"upstream": "api", "domains": ["d.example.com"], "listen": ["81"], "headers": {"A": 'say "x"'}},
        "e e": {"upstream": {"servers": ["a;b"], "include": "/x"}, "domains": ["e.example.com"]},
        "f": {"upstream": "aip", "domains": ["x.example.com"], "listen": ["82"]},
        "g": {"upstream": "api", "domains": ["x.example.com"]},
        "h": {
            "upstream": "api",
            "domains": ["*.h.example.com", "h.example.com", "h.example.com"],
            "aliases": ["x.example.com"],
            "headers": {"X Y": "1"},
            "basic_auth": {"a:b": "$6$a$b"},
            "limits": {"burst": 1},
            "paths": {"/a b": {}, "/static/": {}, "/c": {"limits": {"burst": 1}}, **{url: {} for url in INVALID_PATHS}},
            "static": [{"url": "/static/", "path": "/srv/static"}],
        },
        "i": {"upstream": "api", "domains": ["i.example.com"], "allow": ["10.0.0.1/8"], "basic_auth": {"ann": "hunter2"}},
        "j": {"upstream": "api", "domains": ["j.example.com"], "tls": TLS, "listen": ["80"]},
        "k": {
            "upstream": "api",
            "domains": ["k.example.com"],
            "deny": ["10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", "fe80::1%eth0", "10.0.0.0/", "::1"],
            "static": [{"url": "/a/../", "path": "/srv/static"}],
        },
        "l": {
            "upstream": "api",
            "domains": ["l.example.com"],
            "paths": {"/own/": {}},
            "mounts": {
                "/x": {"upstream": "aip", "limits": {"burst": 1}},
                "/own/": {"upstream": "api", "maintenance_file": "/srv/m", "paths": {"/y": {}, "/own/": {}}},
                "/z/": {"upstream": "api", "static": [{"url": "/s/", "path": "/srv/static"}], "origin": "elsewhere"},
            },
        },
    }
    found = "\n".join(problems(sites, {"api": {"servers": ["127.0.0.1:1"]}}, ["10.0.0.1", "lb"]))
    assert "hunter2" not in found
    assert "nginx_sites.k.deny[4]" not in found
    for part in (
        "nginx_sites.a.upsteam: unknown key; did you mean upstream?",
        "nginx_sites.b.domains[0]: must be a domain name in lower case",
        "nginx_sites.c.static[0].url: must be a path between slashes",
        "nginx_sites.c.static[0].path: must be an absolute path",
        "nginx_sites.d.headers.A: must be one line without double quotes",
        "nginx_sites.e e: must be a name of letters",
        "nginx_sites.e e.upstream: set exactly one of servers, include",
        "nginx_sites.e e.upstream.servers[0]: must be host:port",
        "nginx_sites.f.upstream: nginx_upstreams has no aip; did you mean api?",
        "nginx_sites.f.listen: 82 is not in nginx_listen (80, [::]:80)",
        "nginx_sites.g.domains: x.example.com already belongs to nginx_sites.f",
        "nginx_sites.h.domains: h.example.com is listed twice",
        "nginx_sites.h.aliases: x.example.com already belongs to nginx_sites.f",
        "nginx_sites.h.aliases: redirect to the first of domains",
        "nginx_sites.h.headers.X Y: a header name must consist of letters, digits and -",
        "nginx_sites.h.basic_auth.a:b: a user name must not contain colons or blanks",
        "nginx_sites.h.limits.burst: requires requests",
        "nginx_sites.h.paths./a b: must be a path of letters",
        "nginx_sites.h.paths./static/: /static/ is already in use or reserved; choose another path",
        "nginx_sites.h.paths.//admin/: must be a path of letters",
        "nginx_sites.h.paths./a/../b: must be a path of letters",
        "nginx_sites.h.paths./a/.: must be a path of letters",
        "nginx_sites.h.paths./a//: must be a path of letters",
        "nginx_sites.h.paths./.funnel/maintenance.html: /.funnel/maintenance.html is already in use or reserved",
        "nginx_sites.k.static[0].url: must be a path between slashes",
        "nginx_sites.h.paths./c.limits.burst: requires requests",
        "nginx_sites.i.allow[0]: must be an IP address or a network",
        *(f"nginx_sites.k.deny[{i}]: must be an IP address or a network" for i in range(4)),
        "nginx_sites.i.basic_auth.ann: must be a hash, as openssl passwd -6 or htpasswd -B prints it; never the password itself; "
        "found (not shown)",
        "nginx_sites.j.tls: requires an address to listen on",
        "nginx_sites.l.mounts./x: must be a path between slashes",
        "nginx_sites.l.mounts./x.upstream: nginx_upstreams has no aip; did you mean api?",
        "nginx_sites.l.mounts./x.limits.burst: requires requests",
        "nginx_sites.l.paths./own/: /own/ lies below /own/, which nginx_sites.l.mounts./own/ serves; move it there",
        "nginx_sites.l.mounts./own/.paths./y: must begin with /own/",
        "nginx_sites.l.mounts./own/.paths./own/: must be a path below /own/; set options of all of /own/ in nginx_sites.l",
        "nginx_sites.l.mounts./own/.maintenance_file: requires the site's maintenance.file",
        "elsewhere.static[0].url: must begin with /z/, the prefix of elsewhere; found '/s/'",
        "nginx_trusted_proxies[1]: must be an IP address or a network",
    ):
        assert part in found


def test_sites_of_one_origin_must_not_share_a_domain() -> None:
    site = {"upstream": "api", "domains": ["a.example.com"], "origin": "shared"}
    found = problems({"a": site, "b": site}, {"api": {"servers": ["127.0.0.1:1"]}})
    assert found == ["shared.domains: a.example.com already belongs to shared; names must be unique"]
