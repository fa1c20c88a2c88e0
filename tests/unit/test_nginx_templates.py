from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils import access_log
from ansible_collections.funnel.tornado.plugins.module_utils.nginx import server_line, site_files
from ansible_collections.funnel.tornado.plugins.module_utils.schema import InvalidDataError

TEMPLATES = Path(__file__).parents[2] / "roles/nginx/templates"
SHOP = {"domains": ["shop.example.com"], "upstream": {"servers": ["unix:/srv/shop/live/sockets/0.sock"]}}


def render(template: str, variables: dict[str, Any]) -> list[str]:
    """Return the directives that a template makes, without comments and blank lines."""
    templar = Templar(loader=DataLoader(), variables={"ansible_managed": "Ansible managed", **variables})
    templar = templar.copy_with_new_env(searchpath=[str(TEMPLATES)])
    text = templar.template(
        trust_as_template((TEMPLATES / template).read_text()), overrides={"trim_blocks": True, "lstrip_blocks": True}
    )
    lines = [re.sub(r"\s+", " ", line.strip()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def files(sites: dict[str, Any], upstreams: dict[str, Any] | None = None, name: str = "nginx") -> dict[str, Any]:
    return site_files(sites, upstreams or {}, name=name, listen=["80", "[::]:80"])


def site(**keys: Any) -> list[str]:
    (entry,) = files({"shop": {**SHOP, **keys}}).values()
    return render(entry["template"], entry["vars"])


def block(lines: list[str], opening: str) -> list[str]:
    """Return what is inside the block that ``opening`` opens, at its own level."""
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
    raise AssertionError(f"{opening} is not closed")


def test_what_a_client_says_of_itself_is_overwritten_for_every_location() -> None:
    lines = site(static=[{"url": "/static/", "path": "/srv/shop/live/static/"}])
    server = block(lines, "server")
    assert {line for line in server if line.startswith("proxy_set_header")} == {
        "proxy_set_header Host $http_host;",
        "proxy_set_header X-Real-IP $remote_addr;",
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Scheme $scheme;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        'proxy_set_header Forwarded "";',
        "proxy_set_header Upgrade $funnel_upgrade;",
        "proxy_set_header Connection $funnel_connection;",
    }
    for location in ("location /", "location @upstream"):
        assert block(lines, location) == ["proxy_pass http://shop;"], "a header set here would undo those of the server"


def test_a_failed_connection_is_tried_once_more_and_a_timeout_never() -> None:
    server = block(site(), "server")
    assert "proxy_next_upstream error;" in server
    assert "proxy_next_upstream_tries 2;" in server
    assert "proxy_pass_header Server;" in server


def test_an_upstream_balances_before_it_keeps_connections() -> None:
    lines = block(site(), "upstream shop")
    assert lines == [
        "zone shop 256k;",
        "least_conn;",
        "server unix:/srv/shop/live/sockets/0.sock max_fails=0;",
        "keepalive 256;",
        "keepalive_time 2s;",
        "keepalive_timeout 2s;",
    ]


def test_an_included_upstream_may_be_missing() -> None:
    lines = block(site(upstream={"include": "/srv/shop/live/upstream.conf"}), "upstream shop")
    assert "include /srv/shop/live/upstream.con[f];" in lines
    assert any(line.startswith("server ") and line.endswith(" down;") for line in lines)


def test_servers_may_have_weights_and_backups() -> None:
    servers = ["10.0.0.1:8000", {"address": "10.0.0.2:8000", "weight": 3}, {"address": "unix:/run/b", "backup": True}]
    (entry,) = files({}, {"api": {"servers": servers, "balance": "round_robin"}}).values()
    lines = block(render(entry["template"], entry["vars"]), "upstream api")
    assert lines[1:4] == [
        "server 10.0.0.1:8000 max_fails=0;",
        "server 10.0.0.2:8000 weight=3 max_fails=0;",
        "server unix:/run/b max_fails=0 backup;",
    ]
    assert server_line("10.0.0.1:8000") == lines[1]


def test_static_files_favicon_and_robots_come_from_the_directory() -> None:
    lines = site(static=[{"url": "/static/", "path": "/srv/shop/live/static/"}])
    assert block(lines, "location ^~ /static/") == ["alias /srv/shop/live/static/;", "expires $funnel_static_expires;"]
    for name in ("favicon.ico", "robots.txt"):
        assert block(lines, f"location = /{name}") == ["root /srv/shop/live/static;", "try_files $uri @upstream;"]


def test_without_static_files_there_are_no_such_locations() -> None:
    assert [line for line in site() if line.startswith("location")] == ["location / {"]


def test_only_versioned_addresses_are_cached_for_long() -> None:
    lines = render("nginx.conf.j2", BASE)
    assert block(lines, "map $arg_v $funnel_static_expires") == ["default max;", '"" -1;']


def test_only_websockets_are_upgraded() -> None:
    lines = render("nginx.conf.j2", BASE)
    assert block(lines, "map $http_upgrade $funnel_upgrade") == ['default "";', "websocket websocket;"]
    server = block(site(websocket=False), "server")
    assert 'proxy_set_header Connection "";' in server
    assert not [line for line in server if "Upgrade" in line]


BASE = {
    "nginx_worker_processes": 1,
    "nginx_open_files": 16384,
    "nginx_worker_connections": 8192,
    "nginx_backlog": 4096,
    "nginx_listen": ["80", "[::]:80"],
    "nginx_extra": "",
    "__nginx_packages": {"versions": {"nginx": "1.26.3"}},
}


@pytest.mark.parametrize(("version", "has_it"), [("1.22.1", False), ("1.26.3", False), ("1.27.4", True), ("1.30.0", True)])
def test_a_reload_leaves_idle_clients_some_time_where_nginx_can(version: str, *, has_it: bool) -> None:
    lines = render("nginx.conf.j2", BASE | {"__nginx_packages": {"versions": {"nginx": version}}})
    assert ("keepalive_min_timeout 5s;" in lines) == has_it


def test_the_answers_that_a_watched_release_is_judged_by_are_in_the_access_log() -> None:
    template = (TEMPLATES / "nginx.conf.j2").read_text()
    [log_format] = re.findall(r"log_format funnel ([^;]*);", template)
    values = {"$status": "502", "$body_bytes_sent": "1", "$upstream_addr": "unix:/srv/shop/live/run/0.sock"}
    text = "".join(re.findall(r"'([^']*)'", log_format))
    logged = re.sub(r"\$\w+", lambda name: values.get(name[0], "-"), text)
    found = access_log.LINE.search(logged)
    assert found
    assert (found["status"], found["upstream"]) == ("502", "unix:/srv/shop/live/run/0.sock")


def test_the_base_answers_unknown_names_itself() -> None:
    lines = render("nginx.conf.j2", BASE)
    assert block(lines, "server") == [
        "listen 80 default_server backlog=4096;",
        "listen [::]:80 default_server backlog=4096;",
        "server_name _;",
        "return 404;",
    ]
    assert "worker_rlimit_nofile 16384;" in lines


def test_the_base_includes_nothing_by_an_absolute_path() -> None:
    includes = [line for line in render("nginx.conf.j2", BASE) if line.startswith("include ")]
    assert len(includes) == 4
    assert not [line for line in includes if "/" in line.split()[1][:1]]


def test_a_site_without_names_takes_those_of_no_other() -> None:
    assert 'server_name "" ~^;' in block(site(domains=[]), "server")
    assert "server_name a.example.com *.b.example.com;" in block(site(domains=["a.example.com", "*.b.example.com"]), "server")
    assert not [line for line in site(domains=[]) if "default_server" in line]


def test_sites_take_sizes_times_headers_and_lines() -> None:
    server = block(
        site(upload_size="1g", read_timeout=30, headers={"X-Frame-Options": "DENY"}, extra="etag off;\nmax_ranges 1;\n"),
        "server",
    )
    assert "client_max_body_size 1g;" in server
    assert "proxy_read_timeout 30s;" in server
    assert 'add_header X-Frame-Options "DENY" always;' in server
    assert server[-2:] == ["etag off;", "max_ranges 1;"]


def test_files_are_named_after_the_set_and_labelled_after_their_variable() -> None:
    found = files({"shop": {**SHOP, "extra": "x;", "origin": "tornado_apps.shop"}, "blog": {**SHOP, "domains": []}}, name="apps")
    assert {path: entry["label"] for path, entry in found.items()} == {
        "sites-enabled/apps.shop.conf": "tornado_apps.shop.extra",
        "sites-enabled/apps.blog.conf": "nginx_sites.blog",
    }


def test_all_mistakes_come_at_once() -> None:
    sites = {
        "a": {"upsteam": "x"},
        "b": {"upstream": "aip", "domains": ["Upper.example.com", "x.example.com"]},
        "c": {"upstream": "api", "domains": ["x.example.com"], "static": [{"url": "static", "path": "/a b"}]},
        "d": {"upstream": "api", "domains": ["d.example.com"], "listen": ["81"], "headers": {"A": 'say "x"'}},
        "e e": {"upstream": {"servers": ["a;b"], "include": "/x"}, "domains": ["e.example.com"]},
        "f": {"upstream": "aip", "domains": ["x.example.com"], "listen": ["82"]},
        "g": {"upstream": "api", "domains": ["x.example.com"]},
    }
    with pytest.raises(InvalidDataError) as caught:
        files(sites, {"api": {"servers": ["127.0.0.1:1"]}})
    for part in (
        "nginx_sites.a.upsteam: no such key; did you mean upstream?",
        "nginx_sites.b.domains[0]: must be a domain name in lower case",
        "nginx_sites.c.static[0].url: must be a path between slashes",
        "nginx_sites.c.static[0].path: must be an absolute path",
        "nginx_sites.d.headers.A: must be one line without double quotes",
        "nginx_sites.e e: must be a name of letters",
        "nginx_sites.e e.upstream: exactly one of servers, include is wanted",
        "nginx_sites.e e.upstream.servers[0]: must be host:port",
        "nginx_sites.f.upstream: nginx_upstreams has no aip; did you mean api?",
        "nginx_sites.f.listen: 82 is not in nginx_listen (80, [::]:80)",
        "nginx_sites.g.domains: x.example.com is f's, too",
    ):
        assert part in str(caught.value)
