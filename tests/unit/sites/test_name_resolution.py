"""Names that nginx resolves when it starts."""

from __future__ import annotations

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sites.name_resolution import resolution_problems, server_problem


@pytest.mark.parametrize(
    "line",
    [
        "proxy_pass http://search.internal:9200/x/;",
        "location /s/ { if ($a) { uwsgi_pass search.internal:1; } }",
        "grpc_pass grpcs://search.internal;",
        "upstream search { server 192.0.2.1; server search.internal:9200 weight=2; }",
    ],
)
def test_a_name_that_could_keep_nginx_from_starting_is_reported(line: str) -> None:
    [problem] = resolution_problems(line, "tornado_apps.shop.extra")
    assert problem.startswith("tornado_apps.shop.extra: nginx resolves search.internal when it starts, and serves no site at all")


@pytest.mark.parametrize(
    "line",
    [
        "proxy_pass http://192.0.2.1:80;",
        "proxy_pass http://[2001:db8::1]:80;",
        "proxy_pass http://shop;",
        "proxy_pass http://localhost:8080;",
        "proxy_pass http://unix:/run/a.sock:/;",
        'set $backend "search.internal"; proxy_pass http://$backend:9200;',
        "add_header X http://search.internal;",
        "upstream search { zone s 64k; server search.internal resolve; }",
        "server { listen 80; server_name search.internal; }",
        "proxy_pass",
    ],
)
def test_addresses_upstreams_and_variables_need_no_resolution_at_the_start(line: str) -> None:
    assert list(resolution_problems(line, "x")) == []


def test_a_server_of_an_upstream_must_be_an_address() -> None:
    assert (
        server_problem("192.0.2.1:80", "x")
        == server_problem("unix:/run/a.sock", "x")
        == server_problem("localhost:80", "x")
        == ""
    )
    problem = server_problem("db.internal:80", "nginx_upstreams.db.servers[0]")
    assert problem.startswith("nginx_upstreams.db.servers[0]: nginx resolves db.internal when it starts")
