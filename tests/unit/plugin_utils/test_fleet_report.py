from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_report import Report, age, report, size

NOW = 1_800_000_000.0
ENTRY = {"source": {"path": "shop"}, "run": {"app": "shop.web:app"}, "domains": ["shop.example.com"], "processes": 2}
MACHINE = {
    "debian": "13.1",
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


def said(**parts: Any) -> dict[str, Any]:
    """Return what an app host says that is well, with other ``parts``."""
    well = {
        "machine": MACHINE,
        "services": [NGINX],
        "apps": [APP],
        "processes": [PROCESS, PROCESS | {"process": 1, "pid": 813}],
        "certificates": [CERTIFICATE],
        "servers": [],
        "addresses": [],
    }
    status = copy.deepcopy(well | parts)
    return {
        "status": status,
        "problems": [
            one["problem"] for part in status.values() if part is not status["machine"] for one in part if one["problem"]
        ],
    }


def balancer(*servers: str, held: bool = False) -> dict[str, Any]:
    listed = [{"backend": "shop", "server": one, "status": "UP", "sessions": 2, "weight": 100, "problem": ""} for one in servers]
    address = {"address": "192.0.2.100", "held": held, "problem": ""}
    return said(services=[], apps=[], processes=[], certificates=[], servers=listed, addresses=[address])


def made(found: dict[str, Any], entries: dict[str, dict[str, Any]] | None = None) -> Report:
    """Return the report; ``entries`` are those of hosts that do not have `ENTRY`."""
    return report(found, {host: load({"shop": (entries or {}).get(host, ENTRY)}) for host in found}, NOW)


FLEET = {
    "lb1": balancer("web1", "web2", held=True),
    "lb2": balancer("web1", "web2"),
    "web1": said(),
    "web2": said(apps=[APP | {"release": "77aa00bb11cc", "python": "3.11.2"}]),
}


def test_a_fleet_that_is_well_has_no_problems() -> None:
    found = made(FLEET)
    assert found.problems == found.notes == []
    data = found.data()
    assert (data["well"], data["at"], list(data["hosts"])) == (True, "2027-01-15T08:00:00Z", list(FLEET))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"web2": {"unreachable": True, "msg": "No route to host\n"}}, "web2: cannot be reached: No route to host"),
        ({"web2": {"failed": True, "msg": "no python"}}, "web2: cannot be looked at: no python"),
        ({"web2": {}}, "web2: cannot be looked at: it gave no answer"),
        ({"web1": said(services=[NGINX | {"problem": "nginx: is not running"}])}, "web1: nginx: is not running"),
        (
            {"web1": said(processes=[PROCESS])},
            "web1: shop: has 1 of the 2 processes that tornado_apps.shop.processes is here; deploy.yml starts others",
        ),
        ({"lb1": balancer("web1", "web2")}, "192.0.2.100: is held by no balancer that was looked at"),
        ({"lb2": balancer("web1", "web2", held=True)}, "192.0.2.100: is held by lb1 and lb2; they do not hear each other"),
        (
            {"web1": said(apps=[APP | {"content": "decaf"}])},
            "shop: is not the same release everywhere: web1 3f1c0a9be2d4; web2 77aa00bb11cc. "
            "deploy.yml or rollback.yml makes it one",
        ),
    ],
)
def test_what_is_not_as_it_has_to_be_is_the_one_problem(changed: dict[str, Any], problem: str) -> None:
    assert made(FLEET | changed).problems == [problem]


def test_hosts_whose_entries_differ_may_serve_different_releases() -> None:
    found = {"web1": said(), "web2": said(apps=[APP | {"content": "decaf"}])}
    assert made(found).problems
    assert made(found, {"web2": ENTRY | {"env": {"NODE": "web2"}}}).problems == []


def test_processes_of_the_other_slot_and_workers_do_not_count() -> None:
    more = [PROCESS | {"slot": "b", "live": False}, PROCESS | {"worker": "queue", "health": 0}]
    found = {"web1": said(processes=[*said()["status"]["processes"], *more])}
    assert made(found).problems == []
    assert "queue.0" in made(found).text()
    assert "b (not live)" in made(found).text()


def test_what_a_host_could_not_read_is_not_taken_for_none() -> None:
    unread = copy.deepcopy(FLEET)
    for part in ("services", "apps", "processes", "certificates", "servers", "addresses"):
        unread["web1"]["status"][part] = None
        assert made(unread).problems == []
        assert made(unread).page()
    assert "has 0 of the 2 processes" in made({"web1": said(processes=[])}).problems[0]


def test_one_process_per_cpu_is_what_the_host_has() -> None:
    entries = {"web1": ENTRY | {"processes": "auto"}}
    assert "has 2 of the 4 processes" in made({"web1": said()}, entries).problems[0]
    assert made({"web1": said(machine=MACHINE | {"cpus": 2})}, entries).problems == []


def test_what_waits_for_somebody_is_a_note() -> None:
    found = {
        "web1": said(
            machine=MACHINE | {"reboot": ["it runs the kernel 6.1", "nginx is old"]},
            apps=[APP | {"maintenance": "2026-01-01T00:00:00Z"}, APP | {"app": "blog", "release": "", "awaited": True}],
        )
    }
    assert made(found).problems == []
    assert made(found).notes == [
        "web1: shop is in maintenance since 2026-01-01T00:00:00Z",
        "web1: blog: nothing has been pushed yet",
        "web1: should be rebooted, by reboot.yml: it runs the kernel 6.1; nginx is old",
    ]


def test_columns_line_up_on_a_terminal() -> None:
    lines = made({"web1": said(), "web2.example.com": said()}).text().splitlines()
    heading = lines.index("PROCESSES") + 1
    column = lines[heading].index("memory")
    assert [line[column : column + 6] for line in lines[heading + 1 : heading + 5]] == ["31 MiB"] * 4
    assert "1d 02:03:04" in lines[heading + 1]
    assert "20/16384" in lines[heading + 1]


def test_what_does_not_run_has_no_age_and_no_files() -> None:
    down = NGINX | {"active": False, "pid": 0, "uptime": 0, "open_files": 0, "open_files_limit": 0, "rss": 0}
    text = made({"web1": said(services=[down])}).text()
    assert "web1  nginx    1.26.3-3  down" in text
    assert "0/0" not in text


def test_sizes_and_ages_are_for_people() -> None:
    assert (age(59), age(93_784)) == ("00:00:59", "1d 02:03:04")
    assert (size(31 << 20), size(3 << 30)) == ("31 MiB", "3.0 GiB")


class Page(HTMLParser):
    """The tags of a page, and its text."""

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


def test_the_page_says_all_that_the_terminal_does() -> None:
    found = made(FLEET | {"web2": {"unreachable": True, "msg": "No route to host"}})
    texts = set(Page(found).texts)
    assert {*found.problems, "3 of 4 hosts, as of"} <= texts
    for table in found.tables:
        assert {table.title, *table.headings, *(cell for row in table.rows for cell in row.cells)} <= texts | {""}


def test_the_page_needs_no_other_file_and_no_script() -> None:
    page = Page(made(FLEET))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "onclick"} & {name for name, _ in page.attributes}
    assert all((value or "").startswith("#") for name, value in page.attributes if name == "href")
    assert "url(" not in made(FLEET).page()
    assert "@import" not in made(FLEET).page()


def test_the_page_says_nothing_in_html_of_what_hosts_say() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    parts: dict[str, Any] = {
        "apps": [APP | {"by": hostile, "maintenance": hostile}],
        "services": [NGINX | {"role": hostile, "problem": hostile}],
        "certificates": [CERTIFICATE | {"issuer": hostile}],
    }
    found = made({"web1": said(**parts)})
    assert "<script" not in found.page()
    assert Page(found).texts.count(hostile) == 3
    assert f"web1: {hostile}" in Page(found).texts


def test_a_row_that_is_a_problem_is_marked() -> None:
    bad = PROCESS | {"state": "FATAL", "problem": "shop: process a/0 is FATAL, health 0"}
    assert ("class", "bad") in Page(made({"web1": said(processes=[PROCESS, bad])})).attributes
    assert ("class", "bad") not in Page(made({"web1": said()})).attributes
