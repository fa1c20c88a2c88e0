from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.filter.app_sites import app_sites
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.front_door import FrontDoor
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import NginxOptions, Site
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import site_files


def site(**keys: Any) -> dict[str, Any]:
    return app_sites({"shop": {"source": {"path": "."}, "run": {"app": "web:app"}, **keys}})["shop"]


def test_paths_of_a_site_use_the_live_link() -> None:
    found = site(static={"path": "www"})
    assert found["upstream"] == {"include": "/srv/shop/live/upstream.conf", "affinity": "none"}
    assert found["static"] == [{"url": "/static/", "live": "/srv/shop/live"}]
    assert found["maintenance"]["file"] == "/srv/shop/maintenance"


def test_shared_directories_with_a_url_are_served_without_following_links() -> None:
    found = site(static={}, shared={"media": {"url": "/media/"}, "instance": {}})
    assert found["static"] == [
        {"url": "/static/", "live": "/srv/shop/live"},
        {"url": "/media/", "path": "/srv/shop/shared/media", "untrusted": "/srv/shop"},
    ]


def test_nginx_role_accepts_the_site_of_an_app() -> None:
    found = site(
        domains=["shop.test", "www.shop.test"],
        aliases=["shop.example"],
        tls={"provider": "acme", "hsts": 60},
        paths={"/live/": {"read_timeout": 3600, "limits": {"requests": 1}}},
        basic_auth={"ann": "$6$salt$hash"},
        maintenance={"retry_after": 60},
        static={},
        shared={"media": {"url": "/media/"}},
        extra="etag off;",
    )
    files = site_files({"shop": found}, {}, name="app", options=NginxOptions(["80"], ["443"]))
    assert files["funnel/app.shop.conf"]["label"] == "tornado_apps.shop"
    variables = files["funnel/app.shop.conf"]["vars"]
    assert (variables["read_timeout"], variables["maintenance"]["retry_after"]) == (200, 60)
    assert variables["tls"] == {
        "certificate": "/etc/ssl/funnel/app.shop.pem",
        "key": "/etc/ssl/funnel/app.shop.key",
        "redirect": True,
        "hsts": 60,
        "acme_clients": ["127.0.0.1:402"],
    }


def test_site_is_plain_http_behind_a_load_balancer_that_terminates_tls() -> None:
    entry = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["shop.test"], "tls": {"provider": "self_signed"}}
    with_tls, without = (app_sites({"shop": entry}, tls=tls)["shop"] for tls in (True, False))
    assert with_tls["tls"]["redirect"]
    assert without == with_tls | {"tls": None}


def test_app_with_prefix_is_a_mount_of_the_site() -> None:
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
    assert mount["upstream"] == {"include": "/srv/api/live/upstream.conf", "affinity": "none"}
    assert mount["static"] == [{"url": "/api/static/", "live": "/srv/api/live"}]
    assert mount["maintenance_file"] == "/srv/api/maintenance"
    files = site_files(found, {}, name="app", options=NginxOptions(["80"], ["443"]))
    assert {path: file["label"] for path, file in files.items() if "label" in file} == {
        "funnel/app.shop.conf": "tornado_apps.shop",
        "funnel/app.shop.html": "tornado_apps.shop.maintenance.page",
        "funnel/app.shop.0.extra": "tornado_apps.api.extra",
    }


def test_each_app_of_a_site_has_a_health_check_and_a_front_door_at_its_domain() -> None:
    source = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["*.shop.test"]}
    sites = app_sites({"shop": source | {"tls": {"provider": "self_signed"}}, "api": source | {"prefix": "/api/"}})
    files = site_files(sites, {}, name="app", options=NginxOptions(["80"], ["192.0.2.1:443", "[::]:443"], proxy_protocol=True))
    door = FrontDoor("192.0.2.1", 443, "funnel.shop.test", tls=True, proxy_protocol=True)
    for app in ("shop", "api"):
        assert FrontDoor.from_json(files[f"funnel/app.{app}.door"]["content"]) == door
        health = files[f"funnel/app.{app}.health"]["vars"]
        assert (health["url"], health["live"]) == (f"/.funnel/health/{app}", f"/srv/{app}/live")
    assert [each["health"] for each in files["funnel/app.shop.conf"]["vars"]["apps"]] == [
        "funnel/app.shop.health",
        "funnel/app.api.health",
    ]


def test_app_run_in_place_serves_its_own_static_files() -> None:
    assert site(source={"directory": "/home/ann/shop"}, debug=True, static={"path": "www"})["static"] == []


def test_app_site_sets_every_shared_option() -> None:
    site_only = {"upstream", "tls", "static", "maintenance", "listen", "websocket", "origin", "mounts", "health"}
    assert site().keys() >= {option.name for option in dataclasses.fields(Site)} - site_only


def test_options_of_the_live_release_replace_those_of_the_entry() -> None:
    entry = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["shop.test"]}
    earlier = {"shop": entry | {"limits": {"requests": 5}}, "api": entry | {"prefix": "/old/", "static": {"url": "/old/files/"}}}
    options = {name: app_sites(earlier)["shop"]["options"] for name in ["shop"]}
    options["api"] = app_sites(earlier)["shop"]["mounts"]["/old/"]["options"]
    present = {
        "shop": entry | {"limits": {"requests": 9}, "upload_size": "9m", "headers": {"X-New": "1"}},
        "api": entry | {"prefix": "/new/"},
    }
    found = app_sites(present, options=options | {"absent": options["shop"]})["shop"]
    assert (found["limits"], found["upload_size"], found["headers"]) == ({"requests": 5}, "50m", {"X-New": "1"})
    assert list(found["mounts"]) == ["/old/"]
    assert found["mounts"]["/old/"]["static"] == [{"url": "/old/files/", "live": "/srv/api/live"}]
    files = site_files({"shop": found}, {}, name="app", options=NginxOptions(["80"]))
    assert {name: files[f"funnel/app.{name}.options"]["content"] for name in options} == options


def test_mistakes_caused_by_the_options_of_the_live_release_blame_no_key_of_the_inventory() -> None:
    entry = {"source": {"path": "."}, "run": {"app": "web:app"}, "domains": ["shop.test"]}
    earlier = {"shop": entry | {"paths": {"/api/v1/": {"read_timeout": 9}}}}
    options = {"shop": app_sites(earlier)["shop"]["options"]}
    present = {"shop": entry, "api": entry | {"prefix": "/api/"}}
    with pytest.raises(InvalidDataError) as caught:
        app_sites(present, options=options)
    assert str(caught.value).startswith(
        "with the site options of the release that is live, not those of the inventory: tornado_apps.shop.paths./api/v1/: "
        "/api/v1/ lies below /api/, which tornado_apps.api serves"
    )
    with pytest.raises(InvalidDataError) as caught:
        app_sites(present | {"blog": entry | {"paths": []}}, options=options)
    assert str(caught.value).startswith("tornado_apps.blog.paths: must be dict")
