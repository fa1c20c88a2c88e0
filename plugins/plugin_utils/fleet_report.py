"""Report on the status of a fleet: problems of hosts, differences between them, and tables for a terminal and a web page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable, printable_data

#: The directory of the page template.
TEMPLATES = Path(__file__).parents[2] / "playbooks/templates"

#: Displayed digits of a revision: enough to identify a commit.
REVISION_DIGITS = 12

#: The result of the module status on a host, its status, or an entry of that.
Data = Mapping[str, Any]

#: The apps of each host in the inventory.
Apps = Mapping[str, Mapping[str, App]]


@dataclass(frozen=True)
class Row:
    """A row of a table; ``healthy`` is false if its entry has a problem."""

    cells: tuple[str, ...]
    healthy: bool = True


@dataclass(frozen=True)
class Table:
    """A table of one ``part`` of the status of all hosts; the first column is the host."""

    part: str
    title: str
    headings: tuple[str, ...]
    rows: list[Row]

    def lines(self) -> list[str]:
        """Return the table for a terminal."""
        cells = [self.headings, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


@dataclass(frozen=True)
class Report:
    """The report: its time in ISO 8601, and the status of each of the ``queried`` hosts that returned one."""

    at: str
    queried: int
    problems: list[str]
    notes: list[str]
    hosts: dict[str, Any]
    tables: list[Table]

    def data(self) -> dict[str, Any]:
        """Return the report for a program."""
        return {"at": self.at, "healthy": not self.problems, "problems": self.problems, "notes": self.notes, "hosts": self.hosts}

    def text(self) -> str:
        """Return the report for a terminal, without the problems."""
        blocks = [*("\n".join([table.title.upper(), *table.lines()]) for table in self.tables), "\n".join(self.notes)]
        return "\n\n".join(block for block in blocks if block)

    def page(self) -> str:
        """Return the report as a self-contained HTML page."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        # Unlike that of Ansible, this environment escapes values: apps and pushers choose their names.
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("status.html.j2").render(report=self)


def make_report(results: Mapping[str, Data], apps: Apps, now: float) -> Report:
    """Return the report on the results of the module status by host.

    :arg now: unix time.
    """
    hosts = {host: printable_data(result["status"]) for host, result in results.items() if "status" in result}
    return Report(
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        queried=len(results),
        problems=[*_host_problems(results), *_differences(hosts, apps)],
        notes=list(_notes(hosts)),
        hosts=hosts,
        tables=list(_tables(hosts)),
    )


def _entries(status: Data, part: str) -> list[Data]:
    """Return the entries of a part of a status; none if the host could not read the part."""
    entries = status[part]
    return [entries] if isinstance(entries, Mapping) else list(entries or ())


def _host_problems(results: Mapping[str, Data]) -> Iterator[str]:
    """Yield the problems that hosts reported, and the hosts without a status."""
    for host, result in results.items():
        if "status" in result:
            problems = result["problems"]
        else:
            failure = "unreachable" if result.get("unreachable") else "cannot collect its status"
            problems = [f"{failure}: {result.get('msg', 'no answer')}"]
        yield from (f"{host}: {printable(' '.join(str(problem).split()), line=True)}" for problem in problems)


def _notes(hosts: Mapping[str, Data]) -> Iterator[str]:
    """Yield notices for the operator that are not problems."""
    for host, status in hosts.items():
        for app in _entries(status, "apps"):
            if app["maintenance"]:
                yield f"{host}: {app['app']} is in maintenance mode since {app['maintenance']}"
            for undone in app["undone"]:
                yield f"{host}: {app['app']}: {undone}"
            if app["awaited"]:
                yield f"{host}: {app['app']}: awaits its first push"
        if reasons := status["machine"]["reboot"]:
            yield f"{host}: needs a reboot (run reboot.yml): {'; '.join(reasons)}"


# Differences between hosts, and from the inventory


def _differences(hosts: Mapping[str, Data], apps: Apps) -> Iterator[str]:
    for host, status in hosts.items():
        yield from _process_count_problems(host, status, apps.get(host, {}))
    yield from _different_releases(hosts, apps)
    yield from _address_problems(hosts)


def _process_count_problems(host: str, status: Data, apps: Mapping[str, App]) -> Iterator[str]:
    """Yield the apps whose number of live processes differs from the inventory."""
    for entry in _entries(status, "apps") if status["processes"] is not None else ():
        app = apps.get(entry["app"])
        if app and entry["release"]:
            live = [process for process in status["processes"] if process["app"] == app.name and process["live"]]
            count, desired = sum(not process["worker"] for process in live), app.process_count(status["machine"]["cpus"])
            if count != desired:
                key = f"{VARIABLE}.{app.name}.processes"
                found = f"has {count} live processes, but {key} requires {desired} here"
                yield f"{host}: {app.name}: {found}; run deploy.yml to correct it"


def _different_releases(hosts: Mapping[str, Data], entries: Apps) -> Iterator[str]:
    """Yield the apps of which hosts with the same entry serve different releases.

    The content is compared: the IDs differ on hosts with different numbers of CPUs or versions of Python.
    """
    contents: dict[str, dict[str, list[str]]] = {}
    first: dict[str, App] = {}
    for host, status in hosts.items():
        for live in _entries(status, "apps"):
            entry = entries.get(host, {}).get(live["app"])
            if live["release"] and entry and entry == first.setdefault(live["app"], entry):
                contents.setdefault(live["app"], {}).setdefault(live["content"], []).append(f"{host} {live['release']}")
    for app, releases in contents.items():
        if len(releases) > 1:
            groups = "; ".join(map(", ".join, releases.values()))
            yield f"{app}: hosts serve different releases: {groups}; run deploy.yml or rollback.yml"


def _address_problems(hosts: Mapping[str, Data]) -> Iterator[str]:
    """Yield the floating IPs that no host, or more than one, holds."""
    holders: dict[str, list[str]] = {}
    for host, status in hosts.items():
        for entry in _entries(status, "addresses"):
            holders.setdefault(entry["address"], []).extend([host] if entry["held"] else [])
    for address, held_by in holders.items():
        if not held_by:
            yield f"{address}: no load balancer that returned a status holds this floating IP"
        elif len(held_by) > 1:
            yield f"{address}: is held by {' and '.join(held_by)}; they do not receive each other's VRRP packets"


# Tables


def age(seconds: int) -> str:
    """Return a duration for display.

    >>> age(93_784)
    '1d 02:03:04'
    """
    days = f"{seconds // 86400}d " if seconds >= 86400 else ""
    return days + time.strftime("%H:%M:%S", time.gmtime(seconds % 86400))


def size(number: int) -> str:
    """Return a number of bytes for display.

    >>> size(31 << 20), size(3 << 30)
    ('31 MiB', '3.0 GiB')
    """
    return f"{number / 2**20:.0f} MiB" if number < 1 << 30 else f"{number / 2**30:.1f} GiB"


def _process_only(cell: Callable[[Data], object]) -> Callable[[Data], object]:
    """Leave the cell empty for an entry without a running process."""
    return lambda entry: cell(entry) if entry["pid"] else ""


_up = _process_only(lambda entry: age(entry["uptime"]))
_files = _process_only(lambda entry: f"{entry['open_files']}/{entry['open_files_limit']}")
_memory = _process_only(lambda entry: size(entry["rss"]))

#: The tables by title: the part of the status, and the columns, each with a key of an entry or a function that renders it.
TABLES: Mapping[str, tuple[str, Mapping[str, str | Callable[[Data], object]]]] = {
    "Hosts": (
        "machine",
        {
            "distribution": "distribution",
            "kernel": "kernel",
            "python": "python",
            "cpus": "cpus",
            "load": lambda entry: f"{entry['load']:.2f}",
            "memory free": lambda entry: f"{size(entry['memory_free'])} of {size(entry['memory'])}",
            "disk free": lambda entry: f"{size(entry['disk_free'])} of {size(entry['disk_size'])}",
            "backlog": "backlog",
            "up": lambda entry: age(entry["uptime"]),
        },
    ),
    "Services": (
        "services",
        {
            "service": "name",
            "version": "version",
            "state": lambda entry: "running" if entry["active"] else "down",
            "role": "role",
            "pid": lambda entry: entry["pid"] or "",
            "up": _up,
            "files": _files,
            "memory": _memory,
        },
    ),
    "Floating IPs": (
        "addresses",
        {"address": "address", "state": lambda entry: "held" if entry["held"] else "standby"},
    ),
    "Load-balanced servers": (
        "servers",
        {"backend": "backend", "server": "server", "state": "status", "sessions": "sessions", "weight": "weight"},
    ),
    "Apps": (
        "apps",
        {
            "app": "app",
            "release": "release",
            "revision": lambda entry: entry["revision"][:REVISION_DIGITS],
            "slot": "slot",
            "since, UTC": lambda entry: entry["since"][:16].replace("T", " "),
            "by": "by",
            "python": "python",
            "tornado": "tornado",
        },
    ),
    "Processes": (
        "processes",
        {
            "app": "app",
            "slot": lambda entry: f"{entry['slot']}{'' if entry['live'] else ' (not live)'}",
            "process": lambda entry: f"{entry['worker']}.{entry['process']}" if entry["worker"] else entry["process"],
            "release": "release",
            "state": "state",
            "pid": lambda entry: entry["pid"] or "",
            "up": _up,
            "restarts": "restarts",
            "connections": "connections",
            "files": _files,
            "memory": _memory,
            "health": lambda entry: "" if entry["worker"] else entry["health"] or "no answer",
        },
    ),
    "Certificates": (
        "certificates",
        {
            "app": "app",
            "certificate": "kind",
            "issuer": "issuer",
            "until": "until",
            "days": lambda entry: entry["days"] if entry["until"] else "",
            "names": lambda entry: ", ".join(entry["names"]),
        },
    ),
}


def _tables(hosts: Mapping[str, Data]) -> Iterator[Table]:
    """Yield the tables that have rows."""
    for title, (part, columns) in TABLES.items():
        rows = [
            Row(
                (host, *(str(entry[cell] if isinstance(cell, str) else cell(entry)) for cell in columns.values())),
                not entry["problem"],
            )
            for host, status in hosts.items()
            for entry in _entries(status, part)
        ]
        if rows:
            yield Table(part, title, ("host", *columns), rows)
