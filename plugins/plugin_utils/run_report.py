"""The report of a run: what changes or has changed per app, why, and what it takes; as a table and for notifications.

It is computed from results of tasks that the run has anyway.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import headline, without_markup

#: What a changed app is called, by operation.
DONE = {"deploy": "deployed", "site": "deployed", "rollback": "rolled back", "restart": "restarted"}

#: Actions on a service that interrupt or renew its processes.
RELOADS = ("start", "reload", "restart")

#: Maximum length of a message in a notification: the first line of an error.
MESSAGE_LENGTH = 300

#: The file of a site, which names its app.
SITE = re.compile(r"/app\.([a-z][a-z0-9_-]*)\.")

NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")

COLUMNS = ("APP", "HOSTS", "FROM", "TO", "WHY", "RELOADS", "TIME", "RESULT")


@dataclass(frozen=True)
class Row:
    """The change of an app on hosts where it is the same; without an app, one of the configuration.

    ``seconds`` is the longest switch of these hosts. ``message`` says why the app failed.
    """

    app: str
    hosts: tuple[str, ...]
    before: str
    after: str
    reasons: tuple[str, ...]
    reloads: tuple[str, ...]
    result: str
    seconds: float = 0
    message: str = ""

    @property
    def cells(self) -> list[str]:
        """The columns of the table."""
        duration = f"{self.seconds:.1f} s" if self.seconds else ""
        cells = [self.app, host_ranges(self.hosts), self.before, self.after, ", ".join(self.reasons), ", ".join(self.reloads)]
        return [cell or "-" for cell in (*cells, duration, self.result)]


@dataclass
class RunReport:
    """Collects the results of a run and reports them.

    ``operation`` is deploy, site, rollback or restart, ``by`` the operator, ``check`` whether the run only predicts;
    ``failed`` is set at its end.
    """

    operation: str
    by: str
    apps: Sequence[str] = ()
    hosts: Sequence[str] = ()
    check: bool = False
    failed: bool = False
    began: float = field(default_factory=time.time)
    _releases: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    _switches: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    #: Services by host and app; an empty name stands for changes that concern no single app.
    _reloads: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _unreachable: list[str] = field(default_factory=list)

    def add_release(self, host: str, app: str, result: Mapping[str, Any]) -> None:
        """Add the result of the module release."""
        self._releases[app, host] = result

    def add_switches(self, host: str, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the results of the module switch, by app."""
        for app, result in results.items():
            if first := self._switches.get((app, host)):  # whose release is now verified
                steps = [*first.get("steps", ()), *result.get("steps", ())]
                self._switches[app, host] = {**result, "before": first["before"], "changed": True, "steps": steps}
            else:
                self._switches[app, host] = result
            if any(step["name"] == "reload" for step in result.get("steps", ())):
                self._reloads.setdefault((host, app), set()).add("nginx")

    def add_service(self, host: str, service: str, action: str, files: Iterable[str] = ()) -> None:
        """Add an action on a service, such as ``reload``, because of changed files."""
        if service and action in RELOADS:
            for app in {match[1] if (match := SITE.search(file)) else "" for file in files} or {""}:
                self._reloads.setdefault((host, app), set()).add(service)

    def add_change(self, host: str) -> None:
        """Add a change of a host that concerns no service, such as an installed package."""
        self._reloads.setdefault((host, ""), set())

    def add_failure(self, host: str, message: str) -> None:
        """Add an error; the first one of a host is reported."""
        self._failures.setdefault(host, message)

    def add_unreachable(self, host: str) -> None:
        """Add a host that the controller cannot connect to."""
        if host not in self._unreachable:
            self._unreachable.append(host)

    @property
    def outcome(self) -> str:
        """The event of the end of the run."""
        return "failure" if self.failed else "rollback" if self.operation == "rollback" else "success"

    @property
    def undone(self) -> list[Row]:
        """The rows of releases that were live and were rolled back automatically."""
        return [row for row in self.rows() if row.result == "undone"]

    def rows(self) -> list[Row]:
        """Return the changes, equal ones of several hosts as one row, and the failures."""
        single = [self._row(app, host) for app, host in dict.fromkeys((*self._releases, *self._switches))]
        changed = [row for row in single if row.result]
        covered = {(host, row.app) for row in changed for host in row.hosts}
        rest: dict[str, set[str]] = {}
        for (host, app), services in self._reloads.items():
            if (host, app) not in covered:
                rest.setdefault(host, set()).update(services)
        result = "would change" if self.check else "changed"
        changed += [Row("", (host,), "", "", ("configuration",), tuple(sorted(rest[host])), result) for host in rest]
        return list(_grouped(changed))

    @property
    def unchanged(self) -> dict[str, list[str]]:
        """The hosts on which nothing is left to do, by app."""
        hosts: dict[str, list[str]] = {}
        for app, host in self._releases:
            if not self._row(app, host).result:
                hosts.setdefault(app, []).append(host)
        return hosts

    def table(self) -> list[str]:
        """Return the lines of the table, then what is up to date, failed or unreachable, and the duration."""
        rows = self.rows()
        lines = _aligned([list(COLUMNS), *(row.cells for row in rows)]) if rows else []
        lines += [f"  {row.app}, {host_ranges(row.hosts)}: {row.message}" for row in rows if row.message]
        by_hosts: dict[str, list[str]] = {}
        for app, hosts in self.unchanged.items():
            by_hosts.setdefault(host_ranges(hosts), []).append(app)
        lines += [f"up to date: {', '.join(apps)} on {hosts}" for hosts, apps in by_hosts.items()]
        lines += [f"unreachable: {host_ranges(self._unreachable)}"] * bool(self._unreachable)
        return [*lines, self._summary("would change" if self.check else "failed" if self.failed else "complete")]

    def message(self, event: str, *, interrupted: bool = False) -> dict[str, Any]:
        """Return the subject, the text and the JSON body of a notification.

        :arg interrupted: whether it is sent if the controller does not complete the run.
        """
        rows = [] if interrupted or event == "start" else self.undone if event == "undo" else self.rows()
        errors = self._errors if event == "failure" else {}
        subject = self._subject(event, interrupted=interrupted)
        details = [f"{row.app or 'configuration'} on {host_ranges(row.hosts)}: {_sentence(row)}" for row in rows]
        details += [f"{host}: {error}" for host, error in errors.items()]
        text = "\n".join([subject, *map(without_markup, details)])
        body = {
            "event": event,
            "operation": self.operation,
            "by": self.by,
            "apps": list(self.apps),
            "hosts": list(self.hosts),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": None if interrupted else self._seconds,
            "text": text,
            "changes": [_json(row) for row in rows],
            "errors": errors,
        }
        return {"event": event, "subject": subject, "text": text, "body": body}

    def _subject(self, event: str, *, interrupted: bool) -> str:
        """Return the first line of a notification: the operation and its outcome."""
        if interrupted:
            return f"{self._what()}: interrupted, because it was canceled, or its process was killed"
        if event == "undo":
            apps = ", ".join(dict.fromkeys(row.app for row in self.undone))
            return f"{self._what(apps)}: the new release was live, and was rolled back automatically"
        return f"{self._what()}: started" if event == "start" else self._summary("failed" if event == "failure" else "complete")

    @property
    def _errors(self) -> dict[str, str]:
        """The first error of each host."""
        return {host: headline(message)[:MESSAGE_LENGTH] for host, message in self._failures.items()} | dict.fromkeys(
            self._unreachable, "is unreachable"
        )

    @property
    def _seconds(self) -> float:
        return round(time.time() - self.began, 1)

    def _what(self, apps: str = "") -> str:
        name = "run of site.yml" if self.operation == "site" else self.operation
        where = f" on {host_ranges(self.hosts)}" if self.hosts else ""
        apps = apps or ", ".join(self.apps)
        return f"{name}{f' of {apps}' if apps else ''}{where} by {self.by}"

    def _summary(self, outcome: str) -> str:
        nothing = outcome != "failed" and not self.rows()
        return f"{self._what()}: {'nothing to change' if nothing else outcome}, {self._seconds:.1f} s"

    def _row(self, app: str, host: str) -> Row:
        """Return the row of an app on a host; its result is empty if nothing changes."""
        built, switched = self._releases.get((app, host), {}), self._switches.get((app, host))
        before = switched.get("before", "") if switched else built.get("live", "")
        after = (switched or {}).get("release") or built.get("id", "")
        reasons = tuple(built.get("reasons", ()) or [self.operation] * (self.operation in ("rollback", "restart")))
        row = Row(app, (host,), before, after, reasons, tuple(sorted(self._reloads.get((host, app), ()))), "")
        if switched is None:
            return self._not_switched(row, built)
        if switched.get("failed"):
            message = headline(str(switched.get("msg", "")))[:MESSAGE_LENGTH]
            result = "undone" if switched.get("undone") else "failed"
            return replace(row, after=built.get("id", "") or after, result=result, message=message)
        seconds = sum(step["seconds"] for step in switched.get("steps", ()))
        return replace(row, result=self._done() if switched.get("changed") else "", seconds=seconds)

    def _not_switched(self, row: Row, built: Mapping[str, Any]) -> Row:
        if built.get("failed"):
            return replace(row, result="failed", message=headline(str(built.get("msg", "")))[:MESSAGE_LENGTH])
        if built.get("settled") or built.get("waiting"):
            return row
        if row.hosts[0] in self._unreachable:
            return replace(row, result="unreachable")
        return replace(row, result=self._done() if self.check else "not switched")

    def _done(self) -> str:
        return f"would be {DONE[self.operation]}" if self.check else DONE[self.operation]


def host_ranges(hosts: Iterable[str]) -> str:
    """Return the names of hosts in short: those with consecutive numbers as a range, such as ``web1-web50``."""
    ranges: list[list[tuple[str, str, str]]] = []
    for name in sorted(set(hosts), key=_natural):
        match = NUMBERED.fullmatch(name)
        parts = (match[1], match[2], match[3]) if match else (name, "", "")
        if ranges and _follows(ranges[-1][-1], parts):
            ranges[-1].append(parts)
        else:
            ranges.append([parts])
    names = [["".join(parts) for parts in entry] for entry in ranges]
    return ", ".join(f"{entry[0]}-{entry[-1]}" if len(entry) > 2 else ", ".join(entry) for entry in names)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _follows(first: tuple[str, str, str], second: tuple[str, str, str]) -> bool:
    """Return whether the second name is the first one with the next number, written with as many digits if it has zeros."""
    if not (first[1] and second[1]) or (first[0], first[2]) != (second[0], second[2]):
        return False
    return second[1] == str(int(first[1]) + 1).zfill(len(first[1]))


def _grouped(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows with the hosts of equal ones together, whatever their duration."""
    groups: dict[Row, list[Row]] = {}
    for row in rows:
        groups.setdefault(replace(row, hosts=(), seconds=0), []).append(row)
    for row, equal in groups.items():
        hosts = tuple(host for other in equal for host in other.hosts)
        yield replace(row, hosts=hosts, seconds=round(max(other.seconds for other in equal), 1))


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _sentence(row: Row) -> str:
    why = f" ({', '.join(row.reasons)})" if row.reasons else ""
    if row.message:
        return f"{row.result}: {row.message}"
    return f"{row.result}, {row.before or 'nothing'} to {row.after}{why}" if row.app else f"{row.result}{why}"


def _json(row: Row) -> dict[str, Any]:
    return {"from": row.before, "to": row.after} | {
        key: value for key, value in asdict(row).items() if key not in ("before", "after")
    }
