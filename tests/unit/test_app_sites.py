from __future__ import annotations

import dataclasses
from typing import Any

from ansible_collections.funnel.tornado.plugins.filter.app_sites import app_sites
from ansible_collections.funnel.tornado.plugins.module_utils.nginx import Addresses, Site, site_files


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
    files = site_files({"shop": found}, {}, name="app", addresses=Addresses(["80"], ["443"]))
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


def test_an_app_has_every_key_of_a_site_that_is_about_no_place_on_the_host() -> None:
    only = {"upstream", "tls", "static", "maintenance", "listen", "websocket", "origin"}
    assert site().keys() >= {option.name for option in dataclasses.fields(Site)} - only
