from __future__ import annotations

import dataclasses
from typing import Any

from ansible_collections.funnel.tornado.plugins.filter.app_sites import app_sites
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import NginxOptions, Site
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import site_files


def site(**keys: Any) -> dict[str, Any]:
    return app_sites({"shop": {"source": {"path": "."}, "run": {"app": "web:app"}, **keys}})["shop"]


def test_all_that_a_site_names_of_the_host_leads_through_the_link_that_a_switch_renames() -> None:
    found = site(static={"path": "www"})
    assert found["upstream"] == {"include": "/srv/shop/live/upstream.conf"}
    assert found["static"] == [{"url": "/static/", "live": "/srv/shop/live"}]
    assert found["maintenance"]["file"] == "/srv/shop/maintenance"


def test_the_nginx_role_takes_the_site_of_any_app() -> None:
    found = site(
        domains=["shop.test", "www.shop.test"],
        aliases=["shop.example"],
        tls={"provider": "acme", "hsts": 60},
        paths={"/live/": {"read_timeout": 3600, "limits": {"requests": 1}}},
        basic_auth={"ann": "$6$salt$hash"},
        maintenance={"retry_after": 60},
        static={},
        extra="etag off;",
    )
    files = site_files({"shop": found}, {}, name="app", options=NginxOptions(["80"], ["443"]))
    assert files["sites-enabled/app.shop.conf"]["label"] == "tornado_apps.shop"
    variables = files["sites-enabled/app.shop.conf"]["vars"]
    assert (variables["read_timeout"], variables["maintenance"]["retry_after"]) == (200, 60)
    assert variables["tls"] == {
        "certificate": "/etc/ssl/funnel/app.shop.pem",
        "key": "/etc/ssl/funnel/app.shop.key",
        "redirect": True,
        "hsts": 60,
        "challenges": "/var/lib/acme-challenges",
    }


def test_behind_a_balancer_that_ends_tls_a_site_is_plain_http() -> None:
    entry = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["shop.test"], "tls": {"provider": "self_signed"}}
    with_tls, without = (app_sites({"shop": entry}, tls=tls)["shop"] for tls in (True, False))
    assert with_tls["tls"]["redirect"]
    assert without == with_tls | {"tls": None}


def test_an_app_with_a_prefix_is_a_part_of_the_other_ones_site() -> None:
    source = {"source": {"path": "."}, "run": {"app": "web:app"}}
    api = {
        "prefix": "/api/",
        "upload_size": "1m",
        "paths": {"/api/x": {"limits": {"requests": 1}}},
        "static": {"url": "/api/static/"},
        "extra": "etag off;",
        "deny": ["192.0.2.1"],
    }
    found = app_sites({"shop": source, "api": source | api})
    assert found.keys() == {"shop"}
    mount = found["shop"]["mounts"]["/api/"]
    assert (mount["upload_size"], mount["read_timeout"], mount["extra"], mount["deny"]) == ("1m", 200, "etag off;", ["192.0.2.1"])
    assert mount["upstream"] == {"include": "/srv/api/live/upstream.conf"}
    assert mount["static"] == [{"url": "/api/static/", "live": "/srv/api/live"}]
    assert mount["maintenance_file"] == "/srv/api/maintenance"
    files = site_files(found, {}, name="app", options=NginxOptions(["80"], ["443"]))
    assert {path: file["label"] for path, file in files.items()} == {
        "sites-enabled/app.shop.conf": "tornado_apps.shop",
        "sites-enabled/app.shop.html": "tornado_apps.shop.maintenance.page",
        "sites-enabled/app.shop.0.extra": "tornado_apps.api.extra",
    }


def test_what_is_run_where_it_lies_sends_its_own_static_files() -> None:
    assert site(source={"directory": "/home/ann/shop"}, debug=True, static={"path": "www"})["static"] == []


def test_an_app_has_every_key_of_a_site_that_is_about_no_place_on_the_host() -> None:
    only = {"upstream", "tls", "static", "maintenance", "listen", "websocket", "origin", "mounts"}
    assert site().keys() >= {option.name for option in dataclasses.fields(Site)} - only
