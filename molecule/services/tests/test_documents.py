"""Documents of the sample app in MongoDB: requests, cross-origin access, and outages of the database."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.support.browser import chromium
from tests.support.flaky import FlakyServer
from tests.support.remote import Response, Site, address, eventually, hosts, processes, run_site

testinfra_hosts = ["ansible://debian12"]

#: The only origin whose pages may access the documents.
FRONT = "http://plain.test"

#: Maximum response time in seconds, also during outages of the database.
PATIENCE = 6

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def deployed(serve: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return serve(SAMPLE_ORIGINS=FRONT)


def send(site: Site, method: str, path: str, document: dict[str, Any] | None = None) -> Response:
    return site.request(method, path, json.dumps(document) if document else None, JSON)


def all_documents(site: Site) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    last = ""
    while page := site.get(f"/documents?limit=1000{last}").json["documents"]:
        found += page
        last = f"&after={page[-1]['id']}"
    return found


def all_keys(site: Site) -> set[str]:
    return {document["id"] for document in all_documents(site)}


def titles(site: Site) -> set[str]:
    return {document["title"] for document in all_documents(site)}


def test_documents_are_created_read_updated_and_deleted_on_any_host(sites: dict[str, Site]) -> None:
    first, second = sites.values()
    created = send(first, "POST", "/documents", {"title": "One", "text": "first"})
    assert created.status == 201
    location = created.headers["location"]
    document = {"id": location.rpartition("/")[2], "title": "One", "text": "first"}
    assert created.json == document
    assert second.get(location).json == document
    assert send(second, "PUT", location, {"title": "Two"}).json == document | {"title": "Two", "text": ""}
    assert first.get(location).json["title"] == "Two"
    assert document["id"] in all_keys(first)
    assert first.request("DELETE", location).status == 204
    assert [site.get(location).status for site in (first, second)] == [404, 404]
    assert send(second, "PUT", location, {"title": "Two"}).status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", "/documents", "{", 400, "the body is not JSON"),
        ("POST", "/documents", '{"text": "no title"}', 400, "title must be"),
        ("POST", "/documents", '{"title": "x", "author": "y"}', 400, "unknown key; a document has only title, text"),
        ("GET", "/documents/000000000000000000000000", None, 404, "no such document"),
        ("GET", "/documents/1", None, 404, "Not Found"),
        ("PATCH", "/documents", "{}", 405, "Method Not Allowed"),
    ],
)
def test_errors_are_returned_as_json(
    sites: dict[str, Site], method: str, path: str, body: str | None, status: int, reason: str
) -> None:
    response = sites["debian12"].request(method, path, body, JSON)
    assert (response.status, response.json["error"]["status"]) == (status, status)
    assert reason in response.json["error"]["reason"]
    assert status != 405 or "POST" in response.headers["allow"]


@dataclass
class Writers:
    """Results of clients that write continuously: the acknowledged keys, rejected requests and errors."""

    acknowledged: set[str] = field(default_factory=set)
    rejected: int = 0
    errors: list[str] = field(default_factory=list)


@contextmanager
def write_continuously(sites: dict[str, Site]) -> Iterator[Writers]:
    """Let clients of both hosts write until the block ends."""
    found, stop = Writers(), threading.Event()

    def write(site: Site) -> None:
        while not stop.is_set():
            began = time.monotonic()
            response = send(site, "POST", "/documents", {"title": "load"})
            seconds = time.monotonic() - began
            if response.status == 201:
                found.acknowledged.add(response.json["id"])
            elif response.status == 503 and response.json["error"]["reason"] and response.headers.get("retry-after"):
                found.rejected += 1
            else:
                found.errors.append(f"{response.status} {response.body[:200]!r}")
            if seconds > PATIENCE:
                found.errors.append(f"{response.status} after {seconds:.1f} s")
            time.sleep(0.02)

    threads = [threading.Thread(target=write, args=[site]) for site in sites.values() for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("end", ["systemctl stop mongod", "systemctl kill --signal=KILL mongod"])
def test_database_outage_loses_no_acknowledged_document(sites: dict[str, Site], end: str) -> None:
    before = {name: processes(host, "sample") for name, host in hosts().items()}
    database = hosts("db")["db"]
    with write_continuously(sites) as found:
        eventually(lambda: len(found.acknowledged) > 50)
        database.run_expect([0], end)
        eventually(lambda: found.rejected > 0)
        assert sites["debian12"].get("/whoami").status == 200
        assert sites["debian12"].get("/healthz").status == 200
        database.run_expect([0], "systemctl start mongod")
        # Both hosts must reconnect without a restart of their processes.
        reached = len(found.acknowledged)
        eventually(lambda: len(found.acknowledged) > reached + 50)
        eventually(lambda: all(site.get("/readyz").status == 200 for site in sites.values()))
    assert found.errors == []
    assert found.acknowledged <= all_keys(sites["debian13"])
    assert {name: processes(host, "sample") for name, host in hosts().items()} == before


def test_rejected_database_password_is_reported_and_previous_release_stays(
    deployed: dict[str, Any], sites: dict[str, Site], tmp_path: Path
) -> None:
    sample = deployed["tornado_apps"]["sample"]
    services = {**sample["services"], "mongodb": sample["services"]["mongodb"] | {"password": "not-the-word"}}
    entries = deployed["tornado_apps"] | {"sample": sample | {"services": services, "health": {"path": "/readyz", "timeout": 20}}}
    release = sites["debian12"].get("/whoami").json["release"]
    status, output = run_site("debian12", tmp_path, {"tornado_apps": entries})
    assert status != 0
    assert "debian12: tornado_apps.sample: release" in output
    assert re.search(r"did not go live: process [01] answered GET /readyz with 503 Service Unavailable.* within 20 s", output)
    assert "the database rejected the credentials of this app: Authentication failed" in output
    assert "not-the-word" not in output
    assert sites["debian12"].get("/whoami").json["release"] == release
    assert sites["debian12"].get("/documents").status == 200


#: Browsers send forms without a preflight request and hide the response, so the site must reject them.
FORM = """
const [url, title, done] = arguments;
fetch(url, {method: "POST", body: new URLSearchParams({title}), mode: "no-cors", credentials: "include"})
    .then(answer => done(answer.type), error => done(String(error)));
"""

FETCH = """
const [method, url, body, done] = arguments;
fetch(url, {method, body, headers: body ? {"Content-Type": "application/json"} : {}})
    .then(async answer => done([answer.status, await answer.text()]), error => done([0, String(error)]));
"""


def fetch_in_browser(browser: WebDriver, method: str, url: str, document: dict[str, Any] | None = None) -> tuple[int, str]:
    """Return the status and body that a script of the page receives; status 0 if the browser blocks the request."""
    status, body = browser.execute_async_script(FETCH, method, url, json.dumps(document) if document else None)
    return int(status), str(body)


def test_only_pages_of_allowed_origin_access_documents(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    documents = f"http://{site.address}/documents"
    with chromium(plain_test=site.address, other_test=address(hosts()["debian13"])) as browser:
        browser.get(f"{FRONT}/")
        status, body = fetch_in_browser(browser, "POST", documents, {"title": "from a page"})
        assert status == 201
        own = f"{documents}/{json.loads(body)['id']}"
        assert fetch_in_browser(browser, "PUT", own, {"title": "changed"})[0] == 200
        assert json.loads(fetch_in_browser(browser, "GET", own)[1])["title"] == "changed"
        # Browsers send a preflight request first; the notes allow no other origin.
        assert fetch_in_browser(browser, "PUT", f"http://{site.address}/notes", {"title": "x"})[0] == 0
        assert fetch_in_browser(browser, "DELETE", own)[0] == 204
        assert browser.execute_async_script(FORM, documents, "a form from a page") == "opaque"
        assert "a form from a page" in titles(site), "the form of the allowed origin must have an effect"
        browser.get(f"http://{address(hosts()['debian13'])}/")
        assert fetch_in_browser(browser, "POST", documents, {"title": "from elsewhere"})[0] == 0
        assert fetch_in_browser(browser, "GET", documents)[0] == 0
        assert browser.execute_async_script(FORM, documents, "a form from elsewhere") == "opaque", "the form is sent"
        assert "a form from elsewhere" not in titles(site)
    preflight = site.request("OPTIONS", "/documents", headers={"Origin": FRONT, "Access-Control-Request-Method": "PUT"})
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, FRONT)
    other = site.request("OPTIONS", "/documents", headers={"Origin": "http://other.test", "Access-Control-Request-Method": "PUT"})
    assert "access-control-allow-origin" not in other.headers


def test_requests_to_failing_service_are_retried_up_to_a_limit(sites: dict[str, Site], flaky_server: FlakyServer) -> None:
    site = sites["debian12"]
    flaky_server.statuses.update({"/items/twice": [503] * 2, "/items/always": [503] * 100})
    assert site.get("/fetch/never").json == {"item": {"path": "/items/never"}}
    assert site.get("/fetch/twice").json == {"item": {"path": "/items/twice"}}
    assert site.get("/fetch/always").status == 502
    assert {path: len(times) for path, times in flaky_server.request_times.items()} == {
        "/items/never": 1,
        "/items/twice": 3,
        "/items/always": 4,
    }
    assert flaky_server.request_times["/items/always"][-1] - flaky_server.request_times["/items/always"][0] > 0.6
