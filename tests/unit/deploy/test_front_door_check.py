from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import HealthCheck, ReleaseManifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import front_door_check
from ansible_collections.funnel.tornado.plugins.module_utils.sites.front_door import FrontDoor
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

RELEASE = "0123456789ab"
REFUSED = (
    "2026/11/28 18:00:00 [crit] 7#7: *3 connect() to unix:/srv/shop/live/run/0.sock failed (13: Permission denied) while "
    'connecting to upstream, client: 127.0.0.1, server: shop.test, request: "GET /.funnel/health/shop HTTP/1.1", upstream: "x"\n'
)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Return an app whose release is live, on a host where nginx runs."""
    layout = Layout("shop", tmp_path)
    health = HealthCheck("/healthz", status=["204"])
    layout.release(RELEASE).mkdir(parents=True)
    layout.manifest(RELEASE).write_text(ReleaseManifest(app="shop", id=RELEASE, revision="r", health=health).to_json())
    layout.slot("a").mkdir(parents=True)
    (layout.slot("a") / "release").symlink_to(f"../../releases/{RELEASE}")
    layout.live.symlink_to("slots/a")
    for directory in ("etc/nginx/funnel", "etc/haproxy/doors", "var/log/nginx"):
        (tmp_path / directory).mkdir(parents=True)
    monkeypatch.setattr(systemd, "query", lambda name: SimpleNamespace(active=name == "nginx"))
    return layout


@contextmanager
def nginx(layout: Layout, status: int, headers: dict[str, str], error: str = "", proxy: str = "nginx") -> Iterator[None]:
    """Answer at the front door of the app, and log an error of nginx."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with (layout.base / front_door_check.ERROR_LOG).open("a") as log:
                log.write(error)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Disable the log."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        file = layout.base / front_door_check.FILES[proxy].format(app="shop")
        file.write_text(FrontDoor("127.0.0.1", server.server_port, "shop.test").to_json())
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def answer(release: str = RELEASE, health: str = "healthy") -> dict[str, str]:
    return {"X-Funnel-Release": release, "X-Funnel-Health": health}


def test_an_app_without_a_site_or_with_a_healthy_release_has_no_problem(layout: Layout) -> None:
    assert front_door_check.problem(layout) == ""
    with nginx(layout, 204, answer()):
        assert front_door_check.problem(layout) == ""
        assert front_door_check.problems(["no-such-app"]) == {}


def test_a_site_of_an_inactive_reverse_proxy_is_not_asked(layout: Layout) -> None:
    with nginx(layout, 503, {}, proxy="haproxy"):
        assert front_door_check.problem(layout) == ""


def test_another_release_is_named(layout: Layout) -> None:
    with nginx(layout, 204, answer("ba9876543210")):
        assert front_door_check.problem(layout) == "http://shop.test is served by release ba9876543210"


def test_the_error_of_nginx_is_the_reason(layout: Layout) -> None:
    (layout.base / front_door_check.ERROR_LOG).write_text(REFUSED.replace("Permission denied", "an earlier request"))
    with nginx(layout, 502, answer(health="unhealthy"), REFUSED):
        found = front_door_check.problem(layout)
    assert found == (
        "http://shop.test: GET /healthz through nginx answered 502 Bad Gateway: "
        "connect() to unix:/srv/shop/live/run/0.sock failed (13: Permission denied) while connecting to upstream"
    )


def test_text_of_a_client_in_the_log_of_nginx_is_examined_in_linear_time() -> None:
    text = REFUSED.replace("\n", f', referrer: "{"*1 , client: " * 150}"\n') * 3000
    began = time.monotonic()
    assert front_door_check.last_error(text, "/.funnel/health/other") == ""
    assert front_door_check.last_error(text, "/.funnel/health/shop").endswith(
        "(13: Permission denied) while connecting to upstream"
    )
    assert time.monotonic() - began < 2


def test_releases_that_are_not_verified_yet_are_no_problem_of_the_sites(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door_check, "Layout", lambda _app: layout)
    with nginx(layout, 404, {}):
        assert front_door_check.problems(["shop"]).keys() == {"tornado_apps.shop"}
        layout.verification_marker("a").touch()
        assert front_door_check.problems(["shop"]) == {}


def test_haproxy_is_asked_for_the_health_path_itself(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "query", lambda name: SimpleNamespace(active=name == "haproxy"))
    with nginx(layout, 204, {"X-Release": RELEASE}, proxy="haproxy"):
        assert front_door_check.problem(layout) == ""
    with nginx(layout, 200, {}, proxy="haproxy"):
        assert front_door_check.problem(layout) == "http://shop.test: GET /healthz through HAProxy answered 200 OK"
    with nginx(layout, 204, {"X-Release": "ba9876543210"}, proxy="haproxy"):
        assert front_door_check.problem(layout) == "http://shop.test is served by release ba9876543210"
