from __future__ import annotations

from typing import Any

from ansible_collections.funnel.tornado.plugins.filter.app_sites import app_sites
from ansible_collections.funnel.tornado.plugins.module_utils.nginx import site_files


def site(**keys: Any) -> dict[str, Any]:
    return app_sites({"shop": {"source": {"path": "."}, "run": {"app": "web:app"}, **keys}})["shop"]


def test_all_that_a_site_names_of_the_host_leads_through_the_link_that_a_switch_renames() -> None:
    found = site(static={"path": "www"})
    assert found["upstream"] == {"include": "/srv/shop/live/upstream.conf"}
    assert found["static"] == [{"url": "/static/", "path": "/srv/shop/live/static"}]


def test_the_nginx_role_takes_the_site_of_any_app() -> None:
    found = site(domains=["*.shop.test"], upload_size="1g", extra="add_header X 1;", static={})
    files = site_files({"shop": found}, {}, name="app", listen=["80"])
    assert files["sites-enabled/app.shop.conf"]["label"] == "tornado_apps.shop.extra"
