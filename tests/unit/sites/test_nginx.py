from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import HealthCheck, ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import access_log
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.front_door_check import publish_health_check
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import (
    HEALTH_HEADER,
    HEALTH_HOST,
    HEALTHY,
    UNTRUSTED_HEADERS,
    NginxOptions,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import server_line, site_files

TEMPLATES = Path(__file__).parents[3] / "roles/nginx/templates"
SHOP = {"domains": ["shop.example.com"], "upstream": {"servers": ["unix:/srv/shop/live/sockets/0.sock"]}}


def render(template: str, variables: dict[str, Any]) -> list[str]:
    """Return the directives of a rendered template, without comments and blank lines."""
    templar = Templar(loader=DataLoader(), variables={"ansible_managed": "Ansible managed", **variables})
    templar = templar.copy_with_new_env(searchpath=[str(TEMPLATES)])
    text = templar.template(
        trust_as_template((TEMPLATES / template).read_text()), overrides={"trim_blocks": True, "lstrip_blocks": True}
    )
    lines = [re.sub(r"\s+", " ", line.strip()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def yaml_file(name: str) -> dict[str, Any]:
    """Return the variables of a file of the role, as Ansible loads them."""
    return dict(DataLoader().load_from_file(str(TEMPLATES.parent / name), trusted_as_template=True))


OPTIONS = NginxOptions(["80", "[::]:80"], ["443"])
TLS = {"certificate": "/etc/ssl/shop.pem", "key": "/etc/ssl/shop.key"}


def files(
    sites: dict[str, Any], upstreams: dict[str, Any] | None = None, name: str = "nginx", options: NginxOptions = OPTIONS
) -> dict[str, Any]:
    return site_files(sites, upstreams or {}, name=name, options=options)


def site(**keys: Any) -> list[str]:
    entry = files({"shop": {**SHOP, **keys}})["funnel/nginx.shop.conf"]
    return render(entry["template"], entry["vars"])


def block(lines: list[str], opening: str) -> list[str]:
    """Return the directives of the block that ``opening`` opens, without nested blocks."""
    start = lines.index(f"{opening} {{") + 1
    depth = 1
    inside: list[str] = []
    for line in lines[start:]:
        depth -= line == "}"
        if depth == 0:
            return inside
        if depth == 1 and line != "}" and not line.endswith("{"):
            inside.append(line)
        depth += line.endswith("{")
    raise AssertionError(f"the block {opening} has no end")


def test_every_location_overwrites_client_headers() -> None:
    lines = site(static=[{"url": "/static/", "live": "/srv/shop/live"}], paths={"/live/": {}, "/once": {}})
    server = block(lines, "server")
    assert {line for line in server if line.startswith("proxy_set_header")} == {
        "proxy_set_header Host $funnel_host$funnel_port;",
        "proxy_set_header X-Real-IP $remote_addr;",
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Scheme $funnel_scheme;",
        "proxy_set_header X-Forwarded-Proto $funnel_scheme;",
        *(f'proxy_set_header {name} "";' for name in UNTRUSTED_HEADERS),
        "proxy_set_header X-Request-ID $funnel_request_id;",
        "proxy_set_header Upgrade $funnel_upgrade;",
        "proxy_set_header Connection $funnel_connection;",
    }
    for location in ("@events", "@events.0", "@events.1"):
        assert block(lines, f"location {location}") == ["proxy_buffering off;", "proxy_pass http://shop;"]
    for location in ("/", "@upstream", "^~ /live/", "= /once"):
        inside = [line for line in block(lines, f"location {location}") if not line.startswith("set ")]
        assert inside == ["proxy_pass http://shop;"], "a header set here would replace those of the server"


def test_extra_lines_of_a_path_keep_the_site_headers() -> None:
    lines = site(paths={"/live/": {"extra": "proxy_set_header X-Live 1; add_header X-Live 1;"}})
    server = [line for line in block(lines, "server") if line.startswith(("proxy_set_header", "add_header"))]
    assert len(server) == 8 + len(UNTRUSTED_HEADERS) + 4
    for location in ("^~ /live/", "@events.0"):
        inside = block(lines, f"location {location}")
        own = inside.index("include funnel/nginx.shop.0.extra;")
        assert sorted(inside[own + 1 :]) == sorted(server), "the site headers follow those of the path"


def test_path_that_ends_with_a_slash_covers_itself_without_it() -> None:
    guarded = {"deny": ["192.0.2.1"], "upload_size": "9m"}
    paths = {"/a/": guarded, "/c": {}, "/c/": {"read_timeout": 9}, "/robots.txt/": {}, "/d/": {"extra": "location /d/e/ {}"}}
    lines = site(paths=paths, mounts={"/m/": {"upstream": API, "paths": {"/m/n/": {"read_timeout": 9}}}})
    for location, expected in {
        "= /a": ["deny 192.0.2.1;", "client_max_body_size 9m;", "proxy_pass http://shop;"],
        "^~ /a/": ["deny 192.0.2.1;", "client_max_body_size 9m;", "proxy_pass http://shop;"],
        "= /c": ["proxy_pass http://shop;"],
        "= /m/n": ["proxy_read_timeout 9s;", "proxy_pass http://shop.0;"],
        "= /m": ["return 308 /m/$is_args$args;"],
    }.items():
        inside = [line for line in block(lines, f"location {location}") if not line.startswith("set ")]
        assert inside == expected, location
    opened = [line for line in lines if line.startswith("location")]
    assert len(set(opened)) == len(opened)
    assert not {"location = /d {", "location = /robots.txt {"} & set(opened)


def test_path_of_static_files_without_the_slash_belongs_to_the_app() -> None:
    served = [{"url": "/static/", "live": "/srv/shop/live"}, {"url": "/media/", "path": "/srv/shop/shared/media"}]
    lines = site(static=served)
    for url in ("/static", "/media"):
        inside = block(lines, f"location ^~ {url}/")
        assert not [line for line in inside if line.startswith(("proxy_pass", "return 30"))], "nginx would redirect it"
        assert not [line for line in lines if line.startswith("location") and line.endswith(f" {url} {{")]


def test_event_streams_are_unbuffered_unless_the_path_sets_buffering() -> None:
    lines = site(paths={"/a/": {"read_timeout": 9}, "/b/": {"buffering": True}, "/c/": {"buffering": False}})
    assert block(lines, "location @events.0") == ["proxy_buffering off;", "proxy_read_timeout 9s;", "proxy_pass http://shop;"]
    assert "location @events.1 {" not in lines
    assert "location @events.2 {" not in lines
    first = lines.index("location ^~ /a/ {")
    assert lines[first + 1 : first + 4] == ["set $funnel_named_location @events.0;", "if ($funnel_events) {", "return 418;"]
    assert block(lines, "location ^~ /b/") == ["proxy_pass http://shop;"]


API = {"servers": ["127.0.0.1:9000"]}


def test_mount_proxies_to_its_upstream_with_the_site_headers() -> None:
    lines = site(mounts={"/api/": {"upstream": API, "paths": {"/api/x": {}}}, "/api/v2/": {"upstream": API}})
    assert "server 127.0.0.1:9000 max_fails=0;" in block(lines, "upstream shop.0")
    assert "server 127.0.0.1:9000 max_fails=0;" in block(lines, "upstream shop.1")
    for location, upstream in (("/", "shop"), ("^~ /api/", "shop.0"), ("= /api/x", "shop.0"), ("^~ /api/v2/", "shop.1")):
        inside = [line for line in block(lines, f"location {location}") if not line.startswith("set ")]
        assert inside == [f"proxy_pass http://{upstream};"], "a header set here would replace those of the server"
    for number, upstream in ((0, "shop.0"), (1, "shop.1"), (2, "shop.0")):
        assert block(lines, f"location @events.{number}") == ["proxy_buffering off;", f"proxy_pass http://{upstream};"]


def test_path_of_a_mount_inherits_from_the_mount() -> None:
    mount = {
        "upstream": API,
        "read_timeout": 9,
        "upload_size": "1m",
        "limits": {"requests": 5, "connections": 2},
        "deny": ["192.0.2.1"],
        "extra": "etag off;",
        "paths": {
            "/api/x": {"upload_size": "9m"},
            "/api/y/": {"limits": {"requests": 7}, "allow": ["192.0.2.2"], "buffering": True},
        },
    }
    lines = site(mounts={"/api/": mount})
    own = [line for line in lines if line.startswith("limit_req_zone")]
    assert [re.findall(r"zone=(\S+?):.* rate=(\S+);", line)[0] for line in own] == [
        ("nginx.shop.0.requests", "5r/s"),
        ("nginx.shop.2.requests", "7r/s"),
    ]
    shared = ["limit_conn nginx.shop.0.connections 2;", "proxy_read_timeout 9s;", "proxy_pass http://shop.0;"]
    x, y = block(lines, "location @events.1"), block(lines, "location ^~ /api/y/")
    assert sorted(x) == sorted(
        [
            *shared,
            "limit_req zone=nginx.shop.0.requests burst=5 nodelay;",
            "deny 192.0.2.1;",
            "client_max_body_size 9m;",
            "proxy_buffering off;",
        ]
    )
    access = ["allow 192.0.2.2;", "deny all;"]
    assert sorted(y) == sorted(
        [*shared, "limit_req zone=nginx.shop.2.requests burst=7 nodelay;", *access, "client_max_body_size 1m;"]
    )
    assert [line for line in lines if line.endswith(".extra;")] == ["include funnel/nginx.shop.0.extra;"] * 2


def test_static_files_of_a_mount_inherit_its_access_control() -> None:
    static = [{"url": "/api/static/", "live": "/srv/api/live"}]
    lines = site(mounts={"/api/": {"upstream": API, "static": static, "deny": ["192.0.2.1"]}})
    assert block(lines, "location ^~ /api/static/")[:2] == ["deny 192.0.2.1;", "root /srv/api/live;"]
    assert "location = /robots.txt {" not in lines, "only the site itself has them"


ACCESS = ["allow 10.0.0.0/8;", "deny all;"]
PRIVATE = {"allow": ["10.0.0.0/8"]}


def access(lines: list[str], location: str) -> list[str]:
    return [line for line in block(lines, f"location {location}") if line.startswith(("allow ", "deny "))]


def test_access_control_of_a_path_applies_to_everything_below_it() -> None:
    files_below = {"url": "/api/x/files/", "live": "/srv/api/live"}
    lines = site(
        paths={
            "/a/": PRIVATE,
            "/a/b/": {"read_timeout": 9},
            "/a/b/c": {"upload_size": "1m"},
            "/a/open/": {"allow": ["0.0.0.0/0"]},
        },
        static=[{"url": "/a/b/static/", "live": "/srv/shop/live"}, {"url": "/static/", "live": "/srv/shop/live"}],
        mounts={
            "/a/tools/": {"upstream": API, "paths": {"/a/tools/x": {}}, "static": [{"url": "/a/tools/s/", "path": "/srv"}]},
            "/a/own/": {"upstream": API, "allow": ["192.0.2.1"]},
            "/api/": {"upstream": API, "paths": {"/api/x/": PRIVATE, "/api/x/y/": {}}, "static": [files_below]},
            "/api/x/other/": {"upstream": API},
        },
    )
    inside = ["^~ /a/b/", "= /a/b/c", "^~ /a/b/static/", "^~ /a/tools/", "= /a/tools/x", "^~ /a/tools/s/"]
    inside += ["^~ /api/x/y/", "^~ /api/x/files/", "^~ /api/x/other/"]
    assert {location: access(lines, location) for location in inside} == dict.fromkeys(inside, ACCESS)
    events = [match for line in lines if (match := re.search(r"location (@events\.\d+) {", line))]
    assert len(events) == 11
    assert sum(access(lines, match[1]) == ACCESS for match in events) == 8, "/a/, /api/x/ and all below them except static files"
    assert access(lines, "^~ /a/open/") == ["allow 0.0.0.0/0;", "deny all;"]
    assert access(lines, "^~ /a/own/") == ["allow 192.0.2.1;", "deny all;"]
    assert access(lines, "^~ /api/") == access(lines, "^~ /static/") == access(lines, "/") == []


def test_path_without_trailing_slash_contains_no_other_path() -> None:
    lines = site(paths={"/a": PRIVATE, "/a/b": {}, "/ab/": {}}, mounts={"/a/c/": {"upstream": API}})
    assert access(lines, "= /a") == ACCESS
    assert access(lines, "= /a/b") == access(lines, "^~ /ab/") == access(lines, "^~ /a/c/") == []


def test_path_inherits_all_options_and_a_mount_only_limits_and_access_control() -> None:
    around = {"read_timeout": 9, "upload_size": "1g", "buffering": False, "limits": {"connections": 2}, "extra": "etag off;"}
    lines = site(paths={"/a/": around, "/a/b/": {"read_timeout": 7}}, mounts={"/a/c/": {"upstream": API}})
    inside = [line for line in block(lines, "location ^~ /a/b/") if not line.startswith("set ")]
    connections = "limit_conn nginx.shop.0.connections 2;"
    assert sorted(inside) == [
        "client_max_body_size 1g;",
        connections,
        "proxy_buffering off;",
        "proxy_pass http://shop;",
        "proxy_read_timeout 7s;",
        "proxy_request_buffering off;",
    ]
    mounted = block(lines, "location ^~ /a/c/")
    assert mounted == ["set $funnel_named_location @events.2;", connections, "proxy_pass http://shop.0;"]


def test_basic_auth_applies_to_every_path() -> None:
    lines = site(
        basic_auth={"ann": "$6$salt$hash"},
        paths={"/a/": PRIVATE},
        static=[{"url": "/a/static/", "live": "/srv/shop/live"}],
        mounts={"/a/tools/": {"upstream": API}},
    )
    assert 'auth_basic "shop.example.com";' in block(lines, "server")
    assert [line for line in lines if line.startswith("auth_basic ")] == ['auth_basic "shop.example.com";']


def test_each_upstream_has_its_own_maintenance_file() -> None:
    mounts = {
        "/a.b/": {"upstream": API, "maintenance_file": "/srv/ab/maintenance"},
        "/a.b/c/": {"upstream": API, "maintenance_file": "/srv/abc/maintenance"},
        "/d/": {"upstream": API},
    }
    lines = site(maintenance={"file": "/srv/shop/maintenance"}, mounts=mounts)
    default, *rules = block(lines, "map $uri $funnel_nginx__shop__maintenance_file")
    assert "if (-f $funnel_nginx__shop__maintenance_file) {" in lines
    found = [re.findall(r'"~(.*)" (.*);', rule)[0] for rule in rules]
    for uri, app in (("/a.b/x", "ab"), ("/a.b/c/x", "abc"), ("/d/x", "shop"), ("/acb/", "shop"), ("/x/a.b/", "shop")):
        [file, *_] = [*(file for pattern, file in found if re.search(pattern, uri)), default.split()[1].rstrip(";")]
        assert file == f"/srv/{app}/maintenance", uri


def test_every_server_rejects_bad_paths() -> None:
    lines = site(domains=["a.test"], aliases=["b.test"])
    first, second = (i for i, line in enumerate(lines) if line == "server {")
    for part in (lines[first:second], lines[second:]):
        assert block(part, "if ($funnel_bad_path)") == ["return 400;"]


@pytest.mark.parametrize(
    "uri",
    [
        "/a/../b",
        "/a/./b",
        "/a/..",
        "/a/.",
        "/..",
        "/a/%2e%2e/b",
        "/a/.%2E/b",
        "/a/..%2fb",
        "/a%2F..%2fb",
        "//../b",
        "/a/..\\b",
        "/a%5c../b",
        "/a/..%5Cb",
        "/a/..?c",
        "/a/..#c",
        "/a#/../b",
        "/a/..;/b",
        "/a/..%3Bx=1/b",
        "/a%0a",
        "/a%0A?b",
        "/%00",
        "/a%1fb",
        "/a%7F",
        "/a\x7f",
        "/a\tb",
    ],
)
def test_paths_that_the_app_may_interpret_differently_are_bad(uri: str) -> None:
    assert bad_path(uri)


@pytest.mark.parametrize(
    "uri",
    [
        *("/", "/a.b/..c/c../...", "/.well-known/x", "/a?b=/../c", "/a?/..", "/%2e%2ea/", "/a/.../b"),
        *("/a?b=%0a%00", "/a%20b", "/%80%ff", "/%e2%82%ac", "/a%2f%250a", "/a;b=1"),
    ],
)
def test_dots_in_names_queries_and_other_characters_are_accepted(uri: str) -> None:
    assert not bad_path(uri)


def bad_path(uri: str) -> bool:
    default, *lines = block(base(), "map $request_uri $funnel_bad_path")
    assert default == 'default "";'
    patterns = [re.findall(r'^"~\*(.*)" 1;$', line)[0] for line in lines]
    assert patterns == BASE["__nginx_bad_paths"]
    return any(python_pattern(pattern, re.IGNORECASE).search(uri) for pattern in patterns)


def python_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Compile a PCRE in the syntax of Python."""
    return re.compile(pattern.replace(r"\z", r"\Z").replace("?<", "?P<"), flags)


def test_regular_expressions_do_not_match_before_a_trailing_line_feed() -> None:
    mounts = {"/api/": {"upstream": API, "maintenance_file": "/srv/api/maintenance"}}
    lines = base() + site(mounts=mounts, maintenance={"file": "/srv/shop/maintenance"}, domains=[])
    assert len([line for line in lines if r"\z" in line]) >= 7
    assert [line for line in lines if re.search(r'~.*\$("|\||\))', line)] == []


def test_failed_connection_is_retried_once_and_a_timeout_never() -> None:
    server = block(site(), "server")
    assert "proxy_next_upstream error;" in server
    assert "proxy_next_upstream_tries 2;" in server
    assert "proxy_pass_header Server;" in server


def test_upstream_sets_the_balancing_method_before_keepalive() -> None:
    lines = block(site(), "upstream shop")
    assert lines == [
        "zone shop 256k;",
        "least_conn;",
        "server unix:/srv/shop/live/sockets/0.sock max_fails=0;",
        "keepalive 256;",
        "keepalive_timeout 2s;",
        "include funnel.keepalive;",
    ]


def test_client_stays_with_a_server_by_a_cookie_of_its_upstream() -> None:
    api = {**API, "affinity": "cookie"}
    shop = {"include": "/srv/shop/live/upstream.conf", "affinity": "cookie"}
    lines = site(upstream=shop, mounts={"/a/": {"upstream": API}, "/my-api/": {"upstream": api, "extra": "etag off;"}})
    assert block(lines, "map $cookie_funnel_shop $funnel_affinity_shop") == [
        "default $cookie_funnel_shop;",
        '"" $request_id;',
    ]
    assert "hash $funnel_affinity_shop;" in block(lines, "upstream shop")
    assert "least_conn;" in block(lines, "upstream shop.0")
    assert "hash $funnel_affinity_shop_2fmy_2dapi;" in block(lines, "upstream shop.1")
    variable = "$funnel_nginx__shop__affinity__shop__1"
    default, rule = block(lines, f'map "$proxy_host $cookie_funnel_shop_2fmy_2dapi:$upstream_http_cache_control" {variable}')
    pattern, value = re.findall(r'"~\*(.*)" "(.*)";', rule)[0]
    assert value == "funnel_shop_2fmy_2dapi=$request_id; Path=/my-api/; HttpOnly; SameSite=Lax$funnel_secure"
    for source, sets in {
        "shop.1 :": True,
        "shop.1 :private, max-age=60": True,
        "shop.1 :public, max-age=60": False,
        "shop.1 4f2e:": False,
        "shop :": False,
        " :": False,
    }.items():
        assert bool(re.search(pattern, source, re.IGNORECASE)) == sets, source
    assert default == 'default "";'
    setting = f"add_header Set-Cookie {variable} always;"
    assert setting in block(lines, "server")
    assert setting in block(lines, "location ^~ /my-api/"), "a location with an add_header of its own inherits none"


def test_a_shared_upstream_has_one_cookie_for_the_site() -> None:
    sites = {"shop": {**SHOP, "upstream": "api", "mounts": {"/api/": {"upstream": "api"}}}}
    found = files(sites, {"api": {**API, "affinity": "cookie"}})
    entry = found["funnel/nginx.shop.conf"]
    cookies = [line for line in render(entry["template"], entry["vars"]) if "funnel_api=" in line]
    assert [re.findall(r"Path=(.*?);", line) for line in cookies] == [["/"]]


def test_client_stays_with_a_server_by_its_address() -> None:
    lines = site(upstream={**API, "affinity": "address"})
    assert "hash $remote_addr;" in block(lines, "upstream shop")
    assert not [line for line in lines if "Set-Cookie" in line]


def test_included_upstream_file_may_be_missing() -> None:
    lines = block(site(upstream={"include": "/srv/shop/live/upstream.conf"}), "upstream shop")
    assert "include /srv/shop/live/upstream.con[f];" in lines
    assert any(line.startswith("server ") and line.endswith(" down;") for line in lines)


def test_upstream_servers_have_weights_and_backups() -> None:
    servers = ["10.0.0.1:8000", {"address": "10.0.0.2:8000", "weight": 3}, {"address": "unix:/run/b", "backup": True}]
    (entry,) = files({}, {"api": {"servers": servers, "balance": "round_robin"}}).values()
    lines = block(render(entry["template"], entry["vars"]), "upstream api")
    assert lines[1:4] == [
        "server 10.0.0.1:8000 max_fails=0;",
        "server 10.0.0.2:8000 weight=3 max_fails=0;",
        "server unix:/run/b max_fails=0 backup;",
    ]
    assert server_line("10.0.0.1:8000") == lines[1]


def test_favicon_and_robots_are_served_from_the_static_directory() -> None:
    lines = site(static=[{"url": "/static/", "path": "/srv/shop/static/"}])
    assert "alias /srv/shop/static/;" in block(lines, "location ^~ /static/")
    for name in ("favicon.ico", "robots.txt"):
        assert block(lines, f"location = /{name}") == ["root /srv/shop/static/;", "try_files $uri @upstream;"]


def test_directories_that_an_app_writes_are_served_without_links_scripts_and_icons() -> None:
    uploads = {"url": "/media/", "path": "/srv/shop/shared/media", "untrusted": "/srv/shop"}
    lines = site(static=[uploads])
    served = block(lines, "location ^~ /media/")
    assert "disable_symlinks on from=/srv/shop;" in served
    assert "add_header X-Content-Type-Options nosniff always;" in served
    assert "add_header Content-Security-Policy \"script-src 'none'\" always;" in served
    assert any(line.startswith("add_header Referrer-Policy ") for line in served), "the headers of the site"
    assert "location = /favicon.ico {" not in lines
    own = block(site(static=[uploads], headers={"content-security-policy": "sandbox"}), "location ^~ /media/")
    assert not any("script-src" in line for line in own)
    mixed = site(static=[uploads, {"url": "/static/", "path": "/srv/shop/static"}], paths={"/robots.txt/x": {}})
    assert block(mixed, "location = /robots.txt") == ["root /srv/shop/static;", "try_files $uri @upstream;"]


def test_static_files_fall_back_to_the_previous_release() -> None:
    lines = site(static=[{"url": "/a/b/", "live": "/srv/shop/live"}])
    by_path = ["try_files /release/public$uri /before/public$uri =404;", "expires $funnel_live_expires;"]
    start = ["root /srv/shop/live;", "gzip_static on;"]
    assert block(lines, "location ^~ /a/b/")[:5] == [*start, "set $funnel_named_location @versions.0;", *by_path]
    assert block(lines, "if ($funnel_version)") == ["return 418;"]
    versions = block(lines, "location @versions.0")
    assert "try_files /release/versions/$funnel_version /before/versions/$funnel_version @files.0;" in versions
    assert "open_file_cache_valid 10s;" in versions
    files_ = block(lines, "location @files.0")
    assert files_[-2:] == by_path
    assert not [line for line in files_ if "open_file_cache" in line], "an open file of the previous release would be served"
    assert block(lines, "location = /robots.txt")[0] == "root /srv/shop/live/release/public/a/b/;"


def test_version_argument_cannot_contain_a_path() -> None:
    [pattern] = re.findall(r'"~(\^\(\?<funnel_hash>.*?)"', (TEMPLATES / "nginx.conf.j2").read_text())
    version = python_pattern(pattern)
    digest = "0123456789abcdef" * 8
    for uri, kind in (("/static/app.js", ".js"), ("/a.b/app", None), ("/static/x.tar.gz", ".gz")):
        found = version.match(f"{digest} {uri}")
        assert found
        assert (found["funnel_hash"], found["funnel_type"]) == (digest, kind)
    for sent in ("../../secrets", f"{digest}/..", digest.upper(), digest[:-1], ""):
        assert not version.match(f"{sent} /static/app.js")


def test_site_without_static_files_has_no_static_locations() -> None:
    locations = [line for line in site() if line.startswith("location")]
    assert locations == ["location = /.funnel/health {", "location ^~ /.funnel/health/ {", "location / {", "location @events {"]


def test_only_versioned_urls_have_a_long_cache_lifetime() -> None:
    lines = base()
    assert block(lines, "map $arg_v $funnel_static_expires") == ["default max;", '"" -1;']


@pytest.mark.parametrize(("version", "expires"), [("", "-1"), ("3", "max"), ("ab" * 64, "-1")])
def test_file_by_path_has_a_long_cache_lifetime_unless_the_version_is_of_another(version: str, expires: str) -> None:
    default, *rules = block(base(), "map $arg_v $funnel_live_expires")
    found = [rule.rstrip(";").rsplit(" ", 1) for rule in rules]
    matching = [
        value for key, value in found if key == f'"{version}"' or (key[1] == "~" and python_pattern(key[2:-1]).search(version))
    ]
    assert [*matching, default.split()[1].rstrip(";")][0] == expires


def test_only_websockets_are_upgraded() -> None:
    lines = base()
    assert block(lines, "map $http_upgrade $funnel_upgrade") == ['default "";', "websocket websocket;"]
    server = block(site(websocket=False), "server")
    assert 'proxy_set_header Connection "";' in server
    assert not [line for line in server if "Upgrade" in line]


BASE: dict[str, Any] = {
    "nginx_worker_processes": 1,
    "nginx_open_files": 16384,
    "nginx_worker_connections": 8192,
    "nginx_backlog": 4096,
    "nginx_listen": ["80", "[::]:80"],
    "nginx_listen_tls": ["443"],
    "nginx_trusted_proxies": [],
    "nginx_proxy_protocol": False,
    "nginx_access_log": "text",
    "nginx_extra": "",
    "nginx_set": "nginx",
    **yaml_file("vars/main/main.yml"),
    **yaml_file("vars/main/mozilla.yml"),
    **yaml_file("vars/main/paths.yml"),
    **yaml_file("vars/main/versions.yml"),
}


def base(nginx: str = "1.26.3", openssl: str = "3.5.1", template: str = "nginx.conf.j2", **variables: Any) -> list[str]:
    return render(template, BASE | {"__nginx_packages": {"versions": {"nginx": nginx, "openssl": openssl}}} | variables)


@pytest.mark.parametrize(
    ("nginx", "openssl", "differs"),
    [
        ("1.24.0", "3.0.13", set()),  # Ubuntu 24.04
        (
            "1.18.0",  # Ubuntu 22.04
            "3.0.2",
            {
                "-ssl_conf_command Options PrioritizeChaCha;",
                "-ssl_reject_handshake on;",
                '+map "" $funnel_nothing {',
                "+ssl_certificate data:$funnel_nothing;",
                "+ssl_certificate_key data:$funnel_nothing;",
                "-keepalive_time 2s;",
                "+keepalive_requests 1;",
            },
        ),
        (
            "1.26.3",  # Debian 13
            "3.5.1",
            {
                "-listen 443 ssl http2 default_server backlog=4096;",
                "+listen 443 ssl default_server backlog=4096;",
                "+http2 on;",
                "-ssl_ecdh_curve X25519:prime256v1:secp384r1;",
                "+ssl_ecdh_curve ?X25519MLKEM768:X25519:prime256v1:secp384r1;",
            },
        ),
    ],
)
def test_distributions_differ_only_in_the_expected_directives(nginx: str, openssl: str, differs: set[str]) -> None:
    templates = ("nginx.conf.j2", "keepalive.conf.j2")
    before = {line for template in templates for line in base("1.22.1", "3.0.17", template)}
    after = {line for template in templates for line in base(nginx, openssl, template)}
    assert {f"-{line}" for line in before - after} | {f"+{line}" for line in after - before} == differs


@pytest.mark.parametrize(("version", "supported"), [("1.22.1", False), ("1.26.3", False), ("1.27.4", True), ("1.30.0", True)])
def test_reload_keeps_idle_clients_briefly_if_nginx_supports_it(version: str, *, supported: bool) -> None:
    lines = base(version)
    assert ("keepalive_min_timeout 5s;" in lines) == supported


@pytest.mark.parametrize("kind", ["text", "json"])
def test_access_log_has_the_statuses_that_a_soak_evaluates(kind: str) -> None:
    text = " ".join(base(nginx_access_log=kind))
    [log_format] = re.findall(r"log_format funnel (?:escape=json )?((?:'[^']*' ?)+);", text)
    values = {
        "$status": "502",
        "$body_bytes_sent": "1",
        "$request_time": "0.01",
        "$upstream_addr": "unix:/srv/shop/live/run/0.sock",
    }
    logged = re.sub(r"\$\w+", lambda name: values.get(name[0], "-"), "".join(re.findall(r"'([^']*)'", log_format)))
    assert access_log.parse_line(logged) == ("502", ["unix:/srv/shop/live/run/0.sock"])


def test_default_server_rejects_unknown_names() -> None:
    lines = base()
    assert block(lines, "server") == [
        "listen 80 default_server backlog=4096;",
        "listen [::]:80 default_server backlog=4096;",
        "listen 443 ssl default_server backlog=4096;",
        "ssl_reject_handshake on;",
        "server_name _;",
        "return 404;",
    ]
    assert "worker_rlimit_nofile 16384;" in lines


@pytest.mark.parametrize(("version", "directive"), [("1.22.1", False), ("1.25.1", True), ("1.26.3", True)])
def test_http_2_uses_the_syntax_of_the_nginx_version(version: str, *, directive: bool) -> None:
    lines = base(version)
    assert ("http2 on;" in lines) == directive
    assert ("listen 443 ssl http2 default_server backlog=4096;" in lines) != directive
    assert "listen 443 ssl;" in block(site(tls=TLS), "server"), "site templates are independent of the version"


@pytest.mark.parametrize(("openssl", "supported"), [("3.0.17-1~deb12u2", False), ("3.5.1-1", True)])
def test_only_curves_that_openssl_supports_are_configured(openssl: str, *, supported: bool) -> None:
    [curves] = [line for line in base(openssl=openssl) if line.startswith("ssl_ecdh_curve")]
    assert ("MLKEM" in curves) == supported
    assert curves.endswith("X25519:prime256v1:secp384r1;")


def test_no_tls_directives_without_tls_addresses() -> None:
    assert not [line for line in base(nginx_listen_tls=[]) if "ssl" in line or "http2" in line]


def test_only_trusted_proxies_set_the_client_address() -> None:
    trusted = base(nginx_trusted_proxies=["10.0.0.0/8", "fd00::/8"])
    assert block(trusted, "geo $realip_remote_addr $funnel_trusted") == ["default 0;", "10.0.0.0/8 1;", "fd00::/8 1;"]
    assert {"set_real_ip_from 10.0.0.0/8;", "set_real_ip_from fd00::/8;", "real_ip_recursive on;"} <= set(trusted)
    assert not [line for line in base() if "real_ip" in line and not line.startswith("geo")]
    assert block(base(), "geo $realip_remote_addr $funnel_trusted") == ["default 0;"]


def test_proxy_protocol_provides_only_the_client_address() -> None:
    lines = base(nginx_trusted_proxies=["192.0.2.1"], nginx_proxy_protocol=True)
    assert {"set_real_ip_from 192.0.2.1;", "real_ip_header proxy_protocol;"} <= set(lines)
    assert block(lines, "geo $realip_remote_addr $funnel_trusted") == ["default 0;"], "headers come from the client"
    listens = [line for line in lines if line.startswith("listen ")]
    assert len(listens) == 5, "of the default server, and of the health checks"
    assert all(" proxy_protocol" in line for line in listens)
    behind = NginxOptions(["80"], ["443"], ["192.0.2.1"], proxy_protocol=True)
    entry = files({"shop": {**SHOP, "domains": ["a.test"], "tls": TLS}}, options=behind)["funnel/nginx.shop.conf"]
    own = [line for line in block(render(entry["template"], entry["vars"]), "server") if line.startswith("listen ")]
    assert own == ["listen 80 proxy_protocol;", "listen 443 ssl proxy_protocol;"], "must match the default server, or nginx warns"


def test_health_check_is_open_to_load_balancers_only_and_bypasses_access_control() -> None:
    keys = {
        "health": "/healthz",
        "basic_auth": {"ann": "$6$salt$hash"},
        "limits": {"requests": 1},
        "allow": ["10.0.0.0/8"],
        "maintenance": {"file": "/srv/shop/maintenance"},
        "tls": TLS,
    }
    balancers = NginxOptions(["80"], ["443"], ["192.0.2.1", "192.0.2.2"])
    entry = files({"shop": {**SHOP, **keys}}, options=balancers)["funnel/nginx.shop.conf"]
    lines = render(entry["template"], entry["vars"])
    inside = block(lines, "location = /.funnel/health")
    assert inside[:5] == ["allow 192.0.2.1;", "allow 192.0.2.2;", "deny all;", "auth_basic off;", "access_log off;"]
    assert inside[-1] == "proxy_pass http://shop/healthz;"
    [open_in_maintenance] = [line for line in lines if line.startswith("if ($uri ~ ")]
    assert python_pattern(open_in_maintenance.split('"')[1]).search("/.funnel/health")
    assert [line for line in lines if line.startswith("limit_req_zone")] == [
        "limit_req_zone $funnel_client zone=nginx.shop.requests:10m rate=1r/s;"
    ]
    _default, unlimited = block(base(), "map $uri $funnel_client")
    assert unlimited.endswith('"";'), "requests without a key are not limited"
    for url in ("/.funnel/health", "/.funnel/health/shop"):
        assert python_pattern(unlimited.split('"')[1][1:]).search(url)
        assert python_pattern(open_in_maintenance.split('"')[1]).search(url)
        assert not any(is_redirected(variable, url) for variable in ("$funnel_insecure", "$funnel_insecure_acme"))
    assert is_redirected("$funnel_insecure", "/.funnel/healthy")
    assert block(site(), "location = /.funnel/health") == ["return 404;"], "not proxied without a health check"
    assert block(site(), "location ^~ /.funnel/health/") == ["return 404;"], "nothing below it reaches the app"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", None),
        ("::1", None),
        ("::ffff:192.0.2.1", None),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2"),
        ("2001:db8:1:2::9", "2001:db8:1:2"),
        ("2001:db8::9", "2001:db8"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1"),
    ],
)
def test_limits_apply_to_an_ipv6_network(address: str, key: str | None) -> None:
    default, network = block(base(), "map $remote_addr $funnel_network")
    assert default.split()[1] == "$binary_remote_addr;"
    matched = python_pattern(network.split('"')[1][1:]).search(address)
    assert (matched and matched["funnel_prefix"]) == key
    assert block(base(), "map $uri $funnel_client")[0].split()[1] == "$funnel_network;"


APP = {**SHOP, "app": "shop"}


def test_health_check_of_an_app_is_open_to_its_host_and_the_load_balancers() -> None:
    entry = files({"shop": APP}, options=NginxOptions(["80"], [], ["192.0.2.1"]))["funnel/nginx.shop.health"]
    inside = block(render(entry["template"], entry["vars"]), "location = /.funnel/health/shop")
    assert inside[:4] == ["allow 127.0.0.1;", "allow ::1;", "allow 192.0.2.1;", "deny all;"]
    assert {"auth_basic off;", "proxy_read_timeout 1s;", "proxy_pass_request_headers off;"} <= set(inside)
    assert "include /srv/shop/live/health.con[f];" in inside
    assert f"add_header {HEALTH_HEADER} $funnel_check_result always;" in inside
    lines = site(app="shop")
    assert "include funnel/nginx.shop.health;" in lines
    assert block(lines, "location = /.funnel/health") == ["rewrite ^ /.funnel/health/shop last;"]
    assert "keepalive 256;" not in block(lines, "upstream shop.health"), "an idle connection may lead to the previous release"
    assert f"server_name {HEALTH_HOST};" in base()


@pytest.mark.parametrize(
    ("health", "path", "healthy"),
    [
        ({}, "/", {200: True, 204: True, 308: True, 401: False, 502: False}),
        (
            {"path": "/a/b/?x=1.path", "status": ["204", "401-403"]},
            "/a/b/?x=1.path",
            {204: True, 200: False, 402: True, 404: False},
        ),
        ({"path": "/health/", "status": ["410"]}, "/health/", {410: True, 200: False, 510: False}),
    ],
)
def test_nginx_reads_the_health_check_from_the_live_slot(
    tmp_path: Path, health: dict[str, Any], path: str, healthy: dict[int, bool]
) -> None:
    layout = Layout("shop", tmp_path)
    layout.slot("b").mkdir(parents=True)
    layout.live.symlink_to("slots/b")
    check = HealthCheck(**health, headers={"host": "in.test:80", "X-Key": "a b"})
    publish_health_check(layout, "b", ReleaseManifest(app="shop", id="0123456789ab", revision="r", health=check))
    real = str((layout.live / "health").resolve(strict=True))

    def found(variable: str) -> str:
        pattern = block(base(), f"map $realpath_root {variable}")[1].split('"')[1]
        match = python_pattern(pattern[1:]).search(real)
        assert match, real
        return match[1]

    assert [found(f"$funnel_check_{name}") for name in ("release", "host", "path")] == ["0123456789ab", "in.test:80", path]
    assert layout.health_headers("b").read_text() == 'proxy_set_header x-key "a b";\n'
    default, line = block(base(), 'map "$upstream_status $realpath_root" $funnel_check_result')
    assert (default, line.split()[-1]) == ("default unhealthy;", f"{HEALTHY};")
    pattern = python_pattern(line.split('"')[1][1:])
    assert {status: bool(pattern.search(f"{status} {real}")) for status in healthy} == healthy
    assert bool(pattern.search(f"502, {min(healthy)} {real}")) == healthy[min(healthy)], "after a retry"


def is_redirected(variable: str, uri: str) -> bool:
    """Return whether ``variable`` redirects an HTTP request."""
    default, line = block(base(), f"map $funnel_scheme$uri {variable}")
    assert default == "default 0;"
    return python_pattern(re.findall(r'^"~(.*)" 1;$', line)[0]).search(f"http{uri}") is not None


def test_only_sites_with_acme_certificates_answer_challenges_over_http() -> None:
    challenge = "/.well-known/acme-challenge/x"
    assert is_redirected("$funnel_insecure", challenge)
    assert not is_redirected("$funnel_insecure_acme", challenge)
    maintenance = {"file": "/srv/shop/maintenance"}
    for clients, variable in (([], "$funnel_insecure"), (["127.0.0.1:402"], "$funnel_insecure_acme")):
        lines = site(domains=["a.test"], tls={**TLS, "acme_clients": clients}, maintenance=maintenance)
        assert f"if ({variable}) {{" in lines
        [opened] = [python_pattern(line.split('"')[1]) for line in lines if line.startswith("if ($uri ~ ")]
        assert bool(opened.search(challenge)) == bool(clients)


def test_nginx_conf_has_no_absolute_includes() -> None:
    includes = [line for line in base() if line.startswith("include ")]
    assert len(includes) == 6
    assert not [line for line in includes if "/" in line.split()[1][:1]]


def test_site_without_domains_accepts_only_unclaimed_names() -> None:
    assert 'server_name "" ~^;' in block(site(domains=[]), "server")
    assert "server_name a.example.com *.b.example.com;" in block(site(domains=["a.example.com", "*.b.example.com"]), "server")
    assert not [line for line in site(domains=[]) if "default_server" in line]


def test_sites_and_paths_set_upload_size_and_read_timeout() -> None:
    lines = site(upload_size="1g", read_timeout=30, paths={"/up/": {"upload_size": "5g", "read_timeout": 9, "buffering": False}})
    assert {"client_max_body_size 1g;", "proxy_read_timeout 30s;"} <= set(block(lines, "server"))
    assert block(lines, "location ^~ /up/") == [
        "client_max_body_size 5g;",
        "proxy_read_timeout 9s;",
        "proxy_buffering off;",
        "proxy_request_buffering off;",
        "proxy_pass http://shop;",
    ]


def test_maintenance_page_ignores_the_upload_size() -> None:
    inside = block(site(maintenance={"file": "/srv/shop/maintenance"}), "location = /.funnel/maintenance.html")
    assert "client_max_body_size 0;" in inside


def test_request_without_host_gets_a_default_host() -> None:
    assert block(base(), "map $host $funnel_host") == ["default $host;", '"" localhost;']


def test_response_headers_are_added_unless_the_app_sends_them() -> None:
    lines = site(headers={"x-frame-options": "DENY", "Referrer-Policy": "", "X-Shop": "a; b"}, tls={**TLS, "hsts": 60})
    prefix = "$funnel_nginx__shop__"
    assert block(lines, f"map $sent_http_x_frame_options {prefix}x_frame_options") == ['default "";', '"" "DENY";']
    assert block(lines, f"map $sent_http_x_shop {prefix}x_shop") == ['default "";', '"" "a; b";']
    hsts = f"{prefix}strict_transport_security"
    source = "$funnel_scheme$sent_http_strict_transport_security"
    assert block(lines, f"map {source} {hsts}") == ['default "";', 'https "max-age=60";']
    added = [line.split()[1] for line in block(lines, "server") if line.startswith("add_header")]
    assert added == ["X-Content-Type-Options", "x-frame-options", "X-Shop", "Strict-Transport-Security", "X-Request-ID"]


def test_sites_have_distinct_variables() -> None:
    names = {line for key in ("a-b", "a_b", "a_2db", "A-b") for line in site_lines(key) if line.startswith("map ")}
    assert len(names) == 4 * 3


def site_lines(key: str) -> list[str]:
    entry = files({key: SHOP})[f"funnel/nginx.{key}.conf"]
    return render(entry["template"], entry["vars"])


def test_access_control_and_limits() -> None:
    lines = site(
        allow=["10.0.0.0/8"],
        deny=["10.1.0.0/16"],
        limits={"requests": 5, "connections": 9},
        paths={"/admin/": {"allow": ["10.2.0.0/16"], "limits": {"requests": 1, "burst": 0}}},
    )
    guards = [line for line in block(lines, "server") if line.split()[0] in ("deny", "allow", "limit_req", "limit_conn")]
    assert guards == [
        "limit_req zone=nginx.shop.requests burst=5 nodelay;",
        "limit_conn nginx.shop.connections 9;",
        "deny 10.1.0.0/16;",
        "allow 10.0.0.0/8;",
        "deny all;",
    ]
    assert (
        block(lines, "location @events.0")[1:-1]
        == block(lines, "location ^~ /admin/")[1:-1]
        == [
            "limit_req zone=nginx.shop.0.requests;",
            "allow 10.2.0.0/16;",
            "deny all;",
        ]
    )
    assert [line for line in lines if "_zone " in line] == [
        "limit_req_zone $funnel_client zone=nginx.shop.requests:10m rate=5r/s;",
        "limit_conn_zone $funnel_client zone=nginx.shop.connections:10m;",
        "limit_req_zone $funnel_client zone=nginx.shop.0.requests:10m rate=1r/s;",
    ]


def test_basic_auth_is_a_secret_file_readable_by_nginx() -> None:
    entries = files({"shop": {**SHOP, "basic_auth": {"ann": "$6$salt$hash"}}})
    assert entries["funnel/nginx.shop.htpasswd"] == {
        "content": "ann:$6$salt$hash\n",
        "mode": "0640",
        "group": "www-data",
        "secret": True,
    }
    lines = render("site.conf.j2", entries["funnel/nginx.shop.conf"]["vars"])
    assert "auth_basic_user_file funnel/nginx.shop.htpasswd;" in block(lines, "server")


def test_aliases_and_http_redirect_to_the_first_domain_over_https() -> None:
    lines = site(
        domains=["a.test", "b.test"], aliases=["c.test"], tls={**TLS, "acme_clients": ["127.0.0.1:402", "[2001:db8::2]:402"]}
    )
    first, second = (i for i, line in enumerate(lines) if line == "server {")
    for part in (lines[first:second], lines[second:]):
        assert {"listen 80;", "listen 443 ssl;", "ssl_certificate /etc/ssl/shop.pem;"} <= set(part)
        assert "proxy_pass http://nginx.shop.challenges;" in block(part, "location ^~ /.well-known/acme-challenge/")
    assert block(lines, "upstream nginx.shop.challenges") == [
        "server 127.0.0.1:402 max_fails=0;",
        "server [2001:db8::2]:402 max_fails=0 backup;",
    ]
    assert block(lines[first:second], "if ($funnel_insecure_acme)") == ["return 308 https://$host$request_uri;"]
    assert block(lines[second:], "location /") == ["return 308 https://a.test$request_uri;"]
    assert "server_name c.test;" in lines[second:]


def test_snippets_are_separate_files_labeled_with_their_key() -> None:
    entries = files(
        {
            "shop": {**SHOP, "extra": "x;", "paths": {"/live/": {"extra": "y;"}}, "origin": "tornado_apps.shop"},
            "blog": {**SHOP, "domains": []},
        },
        name="apps",
    )
    assert {path: entry["label"] for path, entry in entries.items()} == {
        "funnel/apps.shop.conf": "tornado_apps.shop",
        "funnel/apps.shop.extra": "tornado_apps.shop.extra",
        "funnel/apps.shop.0.extra": "tornado_apps.shop.paths./live/.extra",
        "funnel/apps.blog.conf": "nginx_sites.blog",
    }
    lines = render("site.conf.j2", entries["funnel/apps.shop.conf"]["vars"])
    assert block(lines, "server")[-1] == "include funnel/apps.shop.extra;"
    assert "include funnel/apps.shop.0.extra;" in block(lines, "location ^~ /live/")


def test_an_app_cannot_redirect_requests_internally_in_a_site_with_others() -> None:
    ignored = "proxy_ignore_headers X-Accel-Redirect;"
    assert ignored in block(site(mounts={"/api/": {"upstream": API}}), "server")
    assert ignored not in site()


def listens(existing: dict[str, Any]) -> list[str]:
    return [line for line in base(__nginx_existing=existing) if line.startswith("listen ")]


def test_a_server_of_the_host_stays_the_default_of_its_address() -> None:
    other = {"listen": [{"address": "80", "default": False}, {"address": "443", "default": True}]}
    defaults = [line for line in listens({"servers": [other]}) if "default_server" in line]
    assert defaults == ["listen [::]:80 default_server backlog=4096;"]
    everywhere = {"listen": [{"address": address, "default": False} for address in ("80", "[::]:80", "443")]}
    lines = base(__nginx_existing={"servers": [other, everywhere]})
    assert lines.count("server {") == 1, "of the health checks, whose name no client sends"
    assert lines.index("include sites-enabled/*;") < lines.index("server {"), "which is not the first at an address either"


def test_nginx_does_not_listen_on_ipv6_if_the_kernel_lacks_it() -> None:
    assert [line for line in listens({"ipv6": False}) if "[::]" in line] == []


def test_nginx_does_not_take_clients_from_sites_that_listen_on_ipv4_only() -> None:
    assert [line for line in listens({"ipv4_only": ["[::]:80"]}) if "[::]:80" in line] == []
    assert [line for line in listens({"ipv4_only": ["[::]:8080"]}) if "[::]:80" in line]


def test_kept_lines_of_the_host_replace_those_of_the_collection() -> None:
    kept = {"funnel.http.conf": {"content": ""}, "funnel.main.conf": {"content": ""}}
    before, after = base(), base(__nginx_existing={"kept": kept, "names": ["gzip_types", "keepalive_timeout"]})
    removed = [line for line in before if line not in after]
    assert len(removed) == 4
    assert (removed[0], removed[1].split()[0]) == ("keepalive_timeout 65;", "gzip_types")
    assert after.index("include funnel.http.conf;") < after.index("include conf.d/*.conf;")
    assert after.index("include funnel.main.conf;") < after.index("events {")
    assert "pid /run/nginx.pid;" in after
    own = base(__nginx_existing={"kept": {"funnel.main.conf": {"content": "# Kept\npid /run/x.pid;\n"}}})
    assert [line for line in own if line.startswith("pid ")] == []


def test_sites_of_the_host_are_included_as_by_the_distribution() -> None:
    lines = base()
    assert lines.index("include sites-enabled/*;") < lines.index("include funnel/*.conf;")
    earlier = base(__nginx_existing={"obsolete": ["sites-enabled/app.shop.conf", "sites-enabled/app.shop.extra"]})
    assert "include sites-enabled/*.conf;" in earlier
