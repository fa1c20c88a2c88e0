"""Names that nginx resolves when it starts."""

from __future__ import annotations

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.sites.name_resolution import resolution_problems


@pytest.mark.parametrize(
    "line",
    [
        "proxy_pass http://search.internal:9200/x/;",
        "location /s/ { if ($a) { uwsgi_pass search.internal:1; } }",
        "grpc_pass grpcs://search.internal;",
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
        "proxy_pass",
    ],
)
def test_addresses_upstreams_and_variables_need_no_resolution_at_the_start(line: str) -> None:
    assert list(resolution_problems(line, "x")) == []
