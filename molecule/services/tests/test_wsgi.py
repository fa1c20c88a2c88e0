"""Two Flask apps and a Tornado app that share a site, each below its own path prefix, requested through nginx."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.remote import (
    APP_GROUP,
    ROOT,
    Response,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    hosts,
    run_playbook,
)

testinfra_hosts = ["ansible://app_hosts"]

NAME = "reports.test"
THREADS = 4
UNUSED_ADDRESS = "192.0.2.1"  # TEST-NET-1 (RFC 5737), which no client uses
SPOOFED_HEADERS = {
    "X-Real-IP": "203.0.113.9",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Prefix": "/203.0.113.9",
    "X-Scheme": "https",
    "X-Forwarded-Proto": "https",
}

#: A Tornado application below a longer prefix than the API's, which returns the requests that reach it.
NEXT = """
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

class Seen(RequestHandler):
    def get(self):
        self.write({"headers": dict(self.request.headers), "path": self.request.path,
                    "remote_ip": self.request.remote_ip, "protocol": self.request.protocol})

class Leave(RequestHandler):
    def get(self):
        self.set_header("X-Accel-Redirect", "/api/kept%0a")
        self.write("stays")

class Echo(WebSocketHandler):
    async def on_message(self, message):
        await self.write_message(message)

def make_app():
    return Application([("/api/next/seen", Seen), ("/api/next/open/seen", Seen), ("/api/next/open/leave", Leave),
                        ("/api/next/echo", Echo)])
"""


#: A line of the API, and a replacement that makes it fail although its health check passes.
LISTS = 'status = request.args.get("status")'
FAILS = 'raise RuntimeError("no database")'


def entries(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of the site's apps."""
    code = directory / "next"
    code.mkdir(exist_ok=True)
    (code / "app.py").write_text(NEXT)
    (code / "requirements.txt").write_text("tornado==6.6.1\n")
    common = {"domains": [NAME], "processes": 1, "drain": 5}
    return {
        "reporting_app": {
            **common,
            "source": {"path": str(ROOT / "files/reporting_app")},
            "run": {"wsgi": "reporting_app.web:app"},
            "static": {"path": "reporting_app/static"},
            "health": {"path": "/healthz"},
            "env": {"REST_API_URL": f"http://{NAME}/api/"},
            "maintenance": {"page": "<p>Painting</p>"},
        },
        "rest_api": {
            **common,
            "source": {"path": str(ROOT / "files/rest_api")},
            "run": {"wsgi": "rest_api.web:app", "threads": THREADS},
            "prefix": "/api/",
            "health": {"path": "/api/healthz"},
            "upload_size": "1k",
            "paths": {"/api/kept/": {"deny": ["0.0.0.0/0"]}, "/api/kept/slow/": {"read_timeout": 600}},
        },
        "next_api": {
            **common,
            "source": {"path": str(code)},
            "run": {"app": "app:make_app"},
            "prefix": "/api/next/",
            "health": {"path": "/api/next/seen"},
            "allow": [UNUSED_ADDRESS],
            "paths": {
                "/api/next/open/": {"allow": ["0.0.0.0/0"], "extra": "add_header X-Open 1;"},
                "/api/next/echo": {"deny": [UNUSED_ADDRESS]},
            },
        },
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wsgi")


@pytest.fixture(scope="module", autouse=True)
def provisioned(directory: Path) -> Iterator[None]:
    """Deploy the apps to both hosts, where the site's domain resolves; remove them after the module."""
    for host in hosts().values():
        host.check_output(f"echo 127.0.0.1 {NAME} >> /etc/hosts")
    expect_success(run_playbook("playbooks/deploy.yml", APP_GROUP, *extra_vars(directory, apps(**entries(directory)))))
    yield
    names = json.dumps({"app_names": ["next_api", "rest_api", "reporting_app"]})
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=all", "-e", names, *extra_vars(directory, {})))
    for host in hosts().values():
        host.check_output(f"grep -v {NAME} /etc/hosts > /etc/hosts.new; cat /etc/hosts.new > /etc/hosts; rm /etc/hosts.new")


@pytest.fixture
def site(host: Host) -> Site:
    return Site(address(host), NAME)


def log(host: Host, app: str) -> str:
    """Return the logs of the app's processes."""
    return host.check_output("cat /var/log/%s/*.log", app)


def find_log_lines(host: Host, app: str, response: Response) -> list[str]:
    """Return the lines of a request in the app's log."""
    suffix = f" request={response.headers['x-request-id']}"
    return eventually(lambda: [line for line in log(host, app).splitlines() if line.endswith(suffix)])


def test_app_without_prefix_reads_from_app_below_prefix(site: Site) -> None:
    assert site.get("/api/runs?status=failed").json["total"] == 1
    page = site.get("/").body.decode()
    assert "<title>Sequencing runs</title>" in page
    assert "3 in total" in page
    assert "<dt>Status</dt><dd>failed</dd>" in site.get("/runs/160708_E00306").body.decode()
    assert site.get("/runs/none").status == 404
    assert site.get("/static/style.css").headers["content-type"] == "text/css"


def test_full_paths_are_passed_and_longest_prefix_wins(site: Site) -> None:
    seen = site.get("/api/next/open/seen?a=b").json
    assert seen["path"] == "/api/next/open/seen"
    assert site.get("/api/nowhere").json["error"]["status"] == 404, "the API must respond"
    moved = site.get("/api")
    assert (moved.status, moved.headers["location"]) == (308, "/api/"), "the method is preserved"


def test_spoofed_headers_are_ignored_below_a_prefix(host: Host, site: Site) -> None:
    seen = site.get("/api/next/open/seen", **{name.replace("-", "_"): value for name, value in SPOOFED_HEADERS.items()}).json
    assert (seen["remote_ip"], seen["protocol"]) == (site.client_address, "http")
    assert "203.0.113.9" not in str(seen["headers"])
    response = site.get("/api/runs", **{name.replace("-", "_"): value for name, value in SPOOFED_HEADERS.items()})
    assert any(f"({site.client_address})" in line for line in find_log_lines(host, "rest_api", response))
    assert "203.0.113.9" not in log(host, "rest_api")


def test_responses_below_a_prefix_have_the_headers_of_the_site(site: Site) -> None:
    for path in ("/", "/api/runs", "/api/fail", "/api/next/open/seen"):
        headers = site.get(path).headers
        assert headers["x-frame-options"] == "SAMEORIGIN", path
        assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"]), path
    assert site.get("/api/next/open/seen").headers["x-open"] == "1"


def test_dot_segments_do_not_escape_a_prefix(site: Site) -> None:
    for path in ("/api/../healthz", "/api/next/../kept/x", "/api/next/open/..%2f..%2fkept/"):
        assert site.get(path).status == 400, path


def test_app_cannot_lead_a_request_past_the_access_control_of_another(site: Site) -> None:
    """For such a header, nginx selects the location again, here by a path that clients cannot send."""
    assert site.get("/api/kept").status == 403
    assert site.get("/api/kept%0a").status == 400
    response = site.get("/api/next/open/leave")
    assert (response.status, response.body) == (200, b"stays")


def test_each_app_has_its_own_limits_and_access_control(site: Site) -> None:
    assert site.request("POST", "/api/runs", body=b"x" * 2000).status == 413
    assert site.request("POST", "/", body=b"x" * 2000).status == 405
    assert site.get("/api/kept/x").status == site.get("/api/kept/slow/x").status == 403
    assert site.get("/api/next/seen").status == 403
    assert site.get("/api/next/open/seen").status == 200


def test_websocket_is_proxied_below_a_prefix(site: Site) -> None:
    async def talk(connection: WebSocketClientConnection) -> Any:
        await connection.write_message("hello")
        return await connection.read_message()

    assert site.websocket("/api/next/echo", talk) == "hello"


def test_slow_requests_run_concurrently(site: Site) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.monotonic()
        slow = [pool.submit(site.get, "/api/sleep?seconds=2") for _ in range(THREADS - 1)]
        time.sleep(0.5)
        assert site.get("/api/healthz").status == 200, "one thread must be free"
        assert site.get("/healthz").status == 200
        assert not any(response.done() for response in slow)
        assert {response.result().status for response in slow} == {200}
        assert time.monotonic() - began < 2 * len(slow), "requests must run concurrently"


def test_requests_above_thread_count_wait_without_failing(site: Site) -> None:
    with ThreadPoolExecutor(3 * THREADS) as pool:
        began = time.monotonic()
        responses = list(pool.map(site.get, ["/api/sleep?seconds=0.5"] * 3 * THREADS))
        seconds = time.monotonic() - began
    assert {response.status for response in responses} == {200}
    assert len({response.json["pid"] for response in responses}) == 1
    assert 3 * 0.5 <= seconds < 3 * THREADS * 0.5, f"{3 * THREADS} requests of half a second, {THREADS} at a time"


def test_exception_is_logged_but_not_sent_to_clients(host: Host, site: Site) -> None:
    response = site.get("/api/fail")
    assert (response.status, response.json["error"]["status"]) == (500, 500)
    assert b"intentional failure" not in response.body
    lines = find_log_lines(host, "rest_api", response)
    assert all(re.search(r"Z (ERROR|WARNI|INFO) .* \[rest_api [ab]/0 [0-9a-f]{12} pid \d+\] ", line) for line in lines), lines
    assert any("rest_api.web [" in line and "Exception on /api/fail [GET]" in line for line in lines)
    assert any("tornado.access [" in line and "500 GET /api/fail" in line for line in lines), "same format"
    assert "\n    RuntimeError: intentional failure" in log(host, "rest_api"), "the traceback must be indented"


@pytest.mark.parametrize(
    ("app", "closed", "opened"),
    [
        ("rest_api", ["/api/runs", "/api/kept/x"], ["/healthz", "/static/style.css", "/api/next/open/seen"]),
        ("next_api", ["/api/next/open/seen"], ["/healthz", "/api/runs"]),
        ("reporting_app", ["/", "/static/style.css"], ["/api/runs", "/api/next/open/seen"]),
    ],
)
def test_maintenance_mode_affects_one_app_of_the_site(directory: Path, app: str, closed: list[str], opened: list[str]) -> None:
    sites = [Site(address(host), NAME) for host in hosts().values()]
    options = ["-e", f"app={app}", *extra_vars(directory, apps(**entries(directory)))]
    before = {path: {site.get(path).status for site in sites} for path in closed}
    expect_success(run_playbook("playbooks/maintenance.yml", APP_GROUP, "-e", "state=on", *options))
    try:
        for site in sites:
            for path in closed:
                response = site.get(path)
                assert (response.status, response.body, response.headers["retry-after"]) == (503, b"<p>Painting</p>", "300"), path
            assert {site.get(path).status for path in opened} == {200}
    finally:
        expect_success(run_playbook("playbooks/maintenance.yml", APP_GROUP, "-e", "state=off", *options))
    assert {path: {site.get(path).status for site in sites} for path in closed} == before


def test_second_deploy_changes_nothing(directory: Path) -> None:
    output = expect_success(deploy("rest_api", APP_GROUP, directory, apps(**entries(directory))))
    assert output.count("changed=0 ") == len(hosts()), output


def modified_source(directory: Path, file: str, old: str, new: str) -> dict[str, Any]:
    """Return the source of a copy of the API with a replaced text in one file."""
    copied = directory / uuid.uuid4().hex
    shutil.copytree(ROOT / "files/rest_api", copied)
    text = (copied / file).read_text()
    assert old in text
    (copied / file).write_text(text.replace(old, new))
    return {"path": str(copied)}


def test_soak_of_prefixed_app_counts_only_its_own_errors(directory: Path) -> None:
    changed = entries(directory)
    changed["rest_api"] |= {"soak": 4, "source": modified_source(directory, "rest_api/web.py", LISTS, FAILS)}
    sites = [Site(address(host), NAME) for host in hosts().values()]
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(deploy, "rest_api", APP_GROUP, directory, apps(**changed))
        while not deploying.done():
            for site in sites:
                assert site.get("/healthz").status == 200
                site.get("/api/runs")
            time.sleep(0.05)
        status, output = deploying.result()
    assert status != 0
    assert "responses were 5xx, more than 5 % (soak_errors)" in output
    assert {site.get("/api/runs").status for site in sites} == {200}


def test_tornado_is_installed_for_apps_that_do_not_name_it(directory: Path) -> None:
    changed = entries(directory)
    changed["rest_api"] |= {"source": modified_source(directory, "requirements.txt", "tornado==6.6.1\n", "")}
    expect_success(deploy("rest_api", "debian12", directory, apps(**changed)))
    assert Site(address(hosts()["debian12"]), NAME).get("/api/runs").status == 200


def test_removal_of_app_without_prefix_is_rejected_while_others_share_its_site(directory: Path) -> None:
    remaining = {name: entry for name, entry in entries(directory).items() if name != "reporting_app"}
    status, output = run_playbook(
        "playbooks/remove.yml", APP_GROUP, "-e", "app=reporting_app", *extra_vars(directory, apps(**remaining))
    )
    assert status != 0
    assert f"tornado_apps.rest_api.prefix: the site of {NAME} requires an app without a prefix" in output
    assert {Site(address(host), NAME).get("/").status for host in hosts().values()} == {200}


def test_app_below_a_prefix_is_removed_alone(directory: Path) -> None:
    remaining = {name: entry for name, entry in entries(directory).items() if name != "next_api"}
    expect_success(
        run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=next_api", *extra_vars(directory, apps(**remaining)))
    )
    for host in hosts().values():
        site = Site(address(host), NAME)
        assert site.get("/api/next/open/seen").json["error"]["status"] == 404, "the API with the shorter prefix must respond"
        assert site.get("/").status == 200
