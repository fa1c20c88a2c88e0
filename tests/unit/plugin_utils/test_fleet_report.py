from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_report import Report, age, make_report, size

NOW = 1_800_000_000.0
ENTRY = {"source": {"path": "shop"}, "run": {"app": "shop.web:app"}, "domains": ["shop.example.com"], "processes": 2}
MACHINE = {
    "distribution": "Debian 13.1",
    "kernel": "6.12.48",
    "python": "3.13.5",
    "cpus": 4,
    "load": 0.25,
    "memory": 4 << 30,
    "memory_free": 2 << 30,
    "disk": "/",
    "disk_size": 40 << 30,
    "disk_free": 20 << 30,
    "backlog": 4096,
    "uptime": 93_784,
    "reboot": [],
    "problem": "",
}
NGINX = {
    "name": "nginx",
    "version": "1.26.3-3",
    "active": True,
    "pid": 711,
    "uptime": 600,
    "open_files": 40,
    "open_files_limit": 50_000,
    "rss": 12 << 20,
    "role": "",
    "problem": "",
}
APP = {
    "app": "shop",
    "release": "3f1c0a9be2d4",
    "revision": "8f2b1c0d9e3a77",
    "content": "c0ffee",
    "slot": "a",
    "since": "2026-01-02T03:04:05+00:00",
    "by": "alice",
    "processes": 2,
    "tornado": "6.6",
    "python": "3.13.5",
    "maintenance": "",
    "undone": [],
    "awaited": False,
    "problem": "",
}
PROCESS = {
    "app": "shop",
    "slot": "a",
    "live": True,
    "worker": "",
    "process": 0,
    "release": "3f1c0a9be2d4",
    "state": "RUNNING",
    "pid": 812,
    "uptime": 93_784,
    "restarts": 0,
    "connections": 3,
    "open_files": 20,
    "open_files_limit": 16_384,
    "rss": 31 << 20,
    "health": 200,
    "problem": "",
}
CERTIFICATE = {
    "app": "shop",
    "kind": "acme",
    "names": ["shop.example.com"],
    "issuer": "CN=ca",
    "until": "2030-01-01",
    "days": 60,
    "lacking": [],
    "stale": [],
    "problem": "",
}


def result(**parts: Any) -> dict[str, Any]:
    """Return the status result of a healthy app host with changed ``parts``."""
    healthy = {
        "machine": MACHINE,
        "services": [NGINX],
        "apps": [APP],
        "processes": [PROCESS, PROCESS | {"process": 1, "pid": 813}],
        "certificates": [CERTIFICATE],
        "servers": [],
        "addresses": [],
    }
    status = copy.deepcopy(healthy | parts)
    return {
        "status": status,
        "problems": [
            entry["problem"] for part in status.values() if part is not status["machine"] for entry in part if entry["problem"]
        ],
    }


def balancer(*servers: str, held: bool = False) -> dict[str, Any]:
    listed = [
        {"backend": "shop", "server": name, "status": "UP", "sessions": 2, "weight": 100, "problem": ""} for name in servers
    ]
    address = {"address": "192.0.2.100", "held": held, "problem": ""}
    return result(services=[], apps=[], processes=[], certificates=[], servers=listed, addresses=[address])


def fleet_report(results: dict[str, Any], entries: dict[str, dict[str, Any]] | None = None) -> Report:
    """Return the report on a fleet; ``entries`` replace `ENTRY` on some hosts."""
    return make_report(results, {host: load({"shop": (entries or {}).get(host, ENTRY)}) for host in results}, NOW)


FLEET = {
    "lb1": balancer("web1", "web2", held=True),
    "lb2": balancer("web1", "web2"),
    "web1": result(),
    "web2": result(apps=[APP | {"release": "77aa00bb11cc", "python": "3.11.2"}]),
}


def test_a_healthy_fleet_has_no_problems() -> None:
    found = fleet_report(FLEET)
    assert found.problems == found.notes == []
    data = found.data()
    assert (data["healthy"], data["at"], list(data["hosts"])) == (True, "2027-01-15T08:00:00Z", list(FLEET))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"web2": {"unreachable": True, "msg": "No route to host\n"}}, "web2: unreachable: No route to host"),
        ({"web2": {"failed": True, "msg": "no python"}}, "web2: cannot collect its status: no python"),
        ({"web2": {}}, "web2: cannot collect its status: no answer"),
        ({"web1": result(services=[NGINX | {"problem": "nginx: is not running"}])}, "web1: nginx: is not running"),
        (
            {"web1": result(processes=[PROCESS])},
            "web1: shop: has 1 live processes, but tornado_apps.shop.processes requires 2 here; run deploy.yml to correct it",
        ),
        ({"lb1": balancer("web1", "web2")}, "192.0.2.100: no load balancer that returned a status holds this floating IP"),
        (
            {"lb2": balancer("web1", "web2", held=True)},
            "192.0.2.100: is held by lb1 and lb2; they do not receive each other's VRRP packets",
        ),
        (
            {"web1": result(apps=[APP | {"content": "decaf"}])},
            "shop: hosts serve different releases: web1 3f1c0a9be2d4; web2 77aa00bb11cc; run deploy.yml or rollback.yml",
        ),
    ],
)
def test_each_problem_is_reported_once(changed: dict[str, Any], problem: str) -> None:
    assert fleet_report(FLEET | changed).problems == [problem]


def test_hosts_with_different_entries_may_serve_different_releases() -> None:
    found = {"web1": result(), "web2": result(apps=[APP | {"content": "decaf"}])}
    assert fleet_report(found).problems
    assert fleet_report(found, {"web2": ENTRY | {"env": {"NODE": "web2"}}}).problems == []


def test_process_count_excludes_workers_and_the_inactive_slot() -> None:
    more = [PROCESS | {"slot": "b", "live": False}, PROCESS | {"worker": "queue", "health": 0}]
    found = {"web1": result(processes=[*result()["status"]["processes"], *more])}
    assert fleet_report(found).problems == []
    assert "queue.0" in fleet_report(found).text()
    assert "b (not live)" in fleet_report(found).text()


def test_a_part_that_a_host_could_not_read_is_not_taken_for_empty() -> None:
    unread = copy.deepcopy(FLEET)
    for part in ("services", "apps", "processes", "certificates", "servers", "addresses"):
        unread["web1"]["status"][part] = None
        assert fleet_report(unread).problems == []
        assert fleet_report(unread).page()
    assert "has 0 live processes, but" in fleet_report({"web1": result(processes=[])}).problems[0]


def test_process_count_auto_is_the_number_of_cpus() -> None:
    entries = {"web1": ENTRY | {"processes": "auto"}}
    assert "has 2 live processes, but" in fleet_report({"web1": result()}, entries).problems[0]
    assert fleet_report({"web1": result(machine=MACHINE | {"cpus": 2})}, entries).problems == []


def test_maintenance_awaited_push_and_reboot_are_notes() -> None:
    found = {
        "web1": result(
            machine=MACHINE | {"reboot": ["it runs the kernel 6.1", "nginx is old"]},
            apps=[
                APP | {"maintenance": "2026-01-01T00:00:00Z", "undone": ["release 1f2e: rolled back by bob@desk"]},
                APP | {"app": "blog", "release": "", "awaited": True},
            ],
        )
    }
    assert fleet_report(found).problems == []
    assert fleet_report(found).notes == [
        "web1: shop is in maintenance mode since 2026-01-01T00:00:00Z",
        "web1: shop: release 1f2e: rolled back by bob@desk",
        "web1: blog: awaits its first push",
        "web1: needs a reboot (run reboot.yml): it runs the kernel 6.1; nginx is old",
    ]


def test_columns_of_text_tables_are_aligned() -> None:
    lines = fleet_report({"web1": result(), "web2.example.com": result()}).text().splitlines()
    heading = lines.index("PROCESSES") + 1
    column = lines[heading].index("memory")
    assert [line[column : column + 6] for line in lines[heading + 1 : heading + 5]] == ["31 MiB"] * 4
    assert "1d 02:03:04" in lines[heading + 1]
    assert "20/16384" in lines[heading + 1]


def test_a_stopped_service_has_no_uptime_and_no_open_files() -> None:
    down = NGINX | {"active": False, "pid": 0, "uptime": 0, "open_files": 0, "open_files_limit": 0, "rss": 0}
    text = fleet_report({"web1": result(services=[down])}).text()
    assert "web1  nginx    1.26.3-3  down" in text
    assert "0/0" not in text


def test_sizes_and_ages_are_human_readable() -> None:
    assert (age(59), age(93_784)) == ("00:00:59", "1d 02:03:04")
    assert (size(31 << 20), size(3 << 30)) == ("31 MiB", "3.0 GiB")


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, page: Report) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page.page())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_has_everything_of_the_text_report() -> None:
    found = fleet_report(FLEET | {"web2": {"unreachable": True, "msg": "No route to host"}})
    texts = set(Page(found).texts)
    assert {*found.problems, "3 of 4 hosts, as of"} <= texts
    for table in found.tables:
        assert {table.title, *table.headings, *(cell for row in table.rows for cell in row.cells)} <= texts | {""}


def test_the_page_is_self_contained_and_has_no_scripts() -> None:
    page = Page(fleet_report(FLEET))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "onclick"} & {name for name, _ in page.attributes}
    assert all((value or "").startswith("#") for name, value in page.attributes if name == "href")
    assert "url(" not in fleet_report(FLEET).page()
    assert "@import" not in fleet_report(FLEET).page()


def test_the_page_escapes_values_of_hosts() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    parts: dict[str, Any] = {
        "apps": [APP | {"by": hostile, "maintenance": hostile}],
        "services": [NGINX | {"role": hostile, "problem": hostile}],
        "certificates": [CERTIFICATE | {"issuer": hostile}],
    }
    found = fleet_report({"web1": result(**parts)})
    assert "<script" not in found.page()
    assert Page(found).texts.count(hostile) == 3
    assert f"web1: {hostile}" in Page(found).texts


def test_a_row_with_a_problem_is_marked() -> None:
    bad = PROCESS | {"state": "FATAL", "problem": "shop: process a/0 is FATAL, health 0"}
    assert ("class", "bad") in Page(fleet_report({"web1": result(processes=[PROCESS, bad])})).attributes
    assert ("class", "bad") not in Page(fleet_report({"web1": result()})).attributes
