"""What the hosts of a fleet have said of themselves, put together: what is wrong, what differs, and tables of it for people.

This is the controller's; the hosts' part is in `status`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable, printable_data

#: Where the page's template is.
TEMPLATES = Path(__file__).parents[2] / "playbooks/templates"

#: Digits of a revision that are shown: enough to find a commit by.
REVISION_DIGITS = 12

#: What a host has said: the result of the module status.
Said = Mapping[str, Any]

#: The apps of each host, as the inventory has them.
Apps = Mapping[str, Mapping[str, App]]


@dataclass(frozen=True)
class Row:
    """A row of a table; ``well`` unless it is about something that is a problem."""

    cells: tuple[str, ...]
    well: bool = True


@dataclass(frozen=True)
class Table:
    """A table of one ``part`` of what hosts say; the first column is the host."""

    part: str
    title: str
    headings: tuple[str, ...]
    rows: list[Row]

    def lines(self) -> list[str]:
        """Return it for a terminal."""
        cells = [self.headings, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


@dataclass(frozen=True)
class Report:
    """All that was found out: ``at`` in ISO 8601; ``hosts`` is what each of the ``asked`` has said that could."""

    at: str
    asked: int
    problems: list[str]
    notes: list[str]
    hosts: dict[str, Any]
    tables: list[Table]

    def data(self) -> dict[str, Any]:
        """Return it for a program."""
        return {"at": self.at, "well": not self.problems, "problems": self.problems, "notes": self.notes, "hosts": self.hosts}

    def text(self) -> str:
        """Return it for a terminal, without the problems."""
        blocks = [*("\n".join([table.title.upper(), *table.lines()]) for table in self.tables), "\n".join(self.notes)]
        return "\n\n".join(block for block in blocks if block)

    def page(self) -> str:
        """Return it as a page of HTML that needs no other file."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # hosts, which have no use for a page, have none

        # Unlike Ansible's own, this environment escapes what is put in: apps, and who pushes, name themselves.
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("status.html.j2").render(report=self)


def report(found: Mapping[str, Said], apps: Apps, now: float) -> Report:
    """Return what the results of the module status, by host, are together.

    :arg now: unix time.
    """
    hosts = {host: printable_data(said["status"]) for host, said in found.items() if "status" in said}
    return Report(
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        asked=len(found),
        problems=[*_own_problems(found), *_differences(hosts, apps)],
        notes=list(_notes(hosts)),
        hosts=hosts,
        tables=list(_tables(hosts)),
    )


def _entries(status: Said, part: str) -> list[Said]:
    """Return what a host says of a part; nothing of one that it could not read."""
    found = status[part]
    return [found] if isinstance(found, Mapping) else list(found or ())


def _own_problems(found: Mapping[str, Said]) -> Iterator[str]:
    """Yield what is wrong with single hosts, in their own words if they have some."""
    for host, said in found.items():
        if "status" in said:
            problems = said["problems"]
        else:
            what = "cannot be reached" if said.get("unreachable") else "cannot be looked at"
            problems = [f"{what}: {said.get('msg', 'it gave no answer')}"]
        yield from (f"{host}: {printable(' '.join(str(problem).split()), line=True)}" for problem in problems)


def _notes(hosts: Mapping[str, Said]) -> Iterator[str]:
    """Yield what an operator should know, and what is no problem."""
    for host, status in hosts.items():
        for app in _entries(status, "apps"):
            if app["maintenance"]:
                yield f"{host}: {app['app']} is in maintenance since {app['maintenance']}"
            if app["awaited"]:
                yield f"{host}: {app['app']}: nothing has been pushed yet"
        if reasons := status["machine"]["reboot"]:
            yield f"{host}: should be rebooted, by reboot.yml: {'; '.join(reasons)}"


# What differs


def _differences(hosts: Mapping[str, Said], apps: Apps) -> Iterator[str]:
    for host, status in hosts.items():
        yield from _wrong_counts(host, status, apps.get(host, {}))
    yield from _different_releases(hosts, apps)
    yield from _address_problems(hosts)


def _wrong_counts(host: str, status: Said, apps: Mapping[str, App]) -> Iterator[str]:
    """Yield where more or fewer processes are served than the inventory wants on such a host."""
    for one in _entries(status, "apps") if status["processes"] is not None else ():
        app = apps.get(one["app"])
        if app and one["release"]:
            live = [process for process in status["processes"] if process["app"] == app.name and process["live"]]
            count, wanted = sum(not process["worker"] for process in live), app.process_count(status["machine"]["cpus"])
            if count != wanted:
                key = f"{VARIABLE}.{app.name}.processes"
                yield f"{host}: {app.name}: has {count} of the {wanted} processes that {key} is here; deploy.yml starts others"


def _different_releases(hosts: Mapping[str, Said], entries: Apps) -> Iterator[str]:
    """Yield the apps of which hosts with the same entry serve different releases.

    Those have the same content, if not the same id: hosts may have different numbers of CPUs and different Pythons.
    """
    contents: dict[str, dict[str, list[str]]] = {}
    first: dict[str, App] = {}
    for host, status in hosts.items():
        for one in _entries(status, "apps"):
            entry = entries.get(host, {}).get(one["app"])
            if one["release"] and entry and entry == first.setdefault(one["app"], entry):
                contents.setdefault(one["app"], {}).setdefault(one["content"], []).append(f"{host} {one['release']}")
    for app, served in contents.items():
        if len(served) > 1:
            groups = "; ".join(", ".join(group) for group in served.values())
            yield f"{app}: is not the same release everywhere: {groups}. deploy.yml or rollback.yml makes it one"


def _address_problems(hosts: Mapping[str, Said]) -> Iterator[str]:
    """Yield the floating addresses that not exactly one host has."""
    holders: dict[str, list[str]] = {}
    for host, status in hosts.items():
        for one in _entries(status, "addresses"):
            holders.setdefault(one["address"], []).extend([host] if one["held"] else [])
    for address, held_by in holders.items():
        if not held_by:
            yield f"{address}: is held by no balancer that was looked at"
        elif len(held_by) > 1:
            yield f"{address}: is held by {' and '.join(held_by)}; they do not hear each other"


# Tables


def age(seconds: int) -> str:
    """Return a time for people.

    >>> age(93_784)
    '1d 02:03:04'
    """
    days = f"{seconds // 86400}d " if seconds >= 86400 else ""
    return days + time.strftime("%H:%M:%S", time.gmtime(seconds % 86400))


def size(number: int) -> str:
    """Return a number of bytes for people.

    >>> size(31 << 20), size(3 << 30)
    ('31 MiB', '3.0 GiB')
    """
    return f"{number / 2**20:.0f} MiB" if number < 1 << 30 else f"{number / 2**30:.1f} GiB"


def _process_only(cell: Callable[[Said], object]) -> Callable[[Said], object]:
    """Leave a cell empty where there is no process that it could be about."""
    return lambda one: cell(one) if one["pid"] else ""


_up = _process_only(lambda one: age(one["uptime"]))
_files = _process_only(lambda one: f"{one['open_files']}/{one['open_files_limit']}")
_memory = _process_only(lambda one: size(one["rss"]))

#: Titles of the tables; of each the part of `Said` it is about, and its columns: a key of that, or what makes a cell of it.
TABLES: Mapping[str, tuple[str, Mapping[str, str | Callable[[Said], object]]]] = {
    "Hosts": (
        "machine",
        {
            "debian": "debian",
            "kernel": "kernel",
            "python": "python",
            "cpus": "cpus",
            "load": lambda one: f"{one['load']:.2f}",
            "memory free": lambda one: f"{size(one['memory_free'])} of {size(one['memory'])}",
            "disk free": lambda one: f"{size(one['disk_free'])} of {size(one['disk_size'])}",
            "backlog": "backlog",
            "up": lambda one: age(one["uptime"]),
        },
    ),
    "Services": (
        "services",
        {
            "service": "name",
            "version": "version",
            "state": lambda one: "running" if one["active"] else "down",
            "role": "role",
            "pid": lambda one: one["pid"] or "",
            "up": _up,
            "files": _files,
            "memory": _memory,
        },
    ),
    "Floating addresses": (
        "addresses",
        {"address": "address", "state": lambda one: "held" if one["held"] else "standing by"},
    ),
    "Balanced servers": (
        "servers",
        {"backend": "backend", "server": "server", "state": "status", "sessions": "sessions", "weight": "weight"},
    ),
    "Apps": (
        "apps",
        {
            "app": "app",
            "release": "release",
            "revision": lambda one: one["revision"][:REVISION_DIGITS],
            "slot": "slot",
            "since, UTC": lambda one: one["since"][:16].replace("T", " "),
            "by": "by",
            "python": "python",
            "tornado": "tornado",
        },
    ),
    "Processes": (
        "processes",
        {
            "app": "app",
            "slot": lambda one: f"{one['slot']}{'' if one['live'] else ' (not live)'}",
            "process": lambda one: f"{one['worker']}.{one['process']}" if one["worker"] else one["process"],
            "release": "release",
            "state": "state",
            "pid": lambda one: one["pid"] or "",
            "up": _up,
            "restarts": "restarts",
            "connections": "connections",
            "files": _files,
            "memory": _memory,
            "health": lambda one: "" if one["worker"] else one["health"] or "no answer",
        },
    ),
    "Certificates": (
        "certificates",
        {
            "app": "app",
            "certificate": "kind",
            "issuer": "issuer",
            "until": "until",
            "days": lambda one: one["days"] if one["until"] else "",
            "names": lambda one: ", ".join(one["names"]),
        },
    ),
}


def _tables(hosts: Mapping[str, Said]) -> Iterator[Table]:
    """Yield the tables that have something to show."""
    for title, (part, columns) in TABLES.items():
        rows = [
            Row(
                (host, *(str(one[cell] if isinstance(cell, str) else cell(one)) for cell in columns.values())), not one["problem"]
            )
            for host, status in hosts.items()
            for one in _entries(status, part)
        ]
        if rows:
            yield Table(part, title, ("host", *columns), rows)
