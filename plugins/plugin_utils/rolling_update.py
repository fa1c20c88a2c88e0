"""Rolling updates: batches and canary of a fleet, and the report after an interrupted rolling update."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

BATCH = re.compile(r"[1-9]\d*|([1-9]\d?|100)%")
SECONDS = re.compile(r"\d{1,5}")

#: Variables in which the role app registers the results of its check of the host, its builds and its switches.
CHECK = "app_host"
BUILDS = "__app_releases"
SWITCHES = ("__app_switched_once", "__app_switched")


@dataclass
class LiveRelease:
    """The live release of an app on a host before and after the switch; ``after`` is None if the host became unreachable."""

    before: str
    after: str | None

    def __str__(self) -> str:
        """Return the change for the report."""
        before, after = self.before or "nothing", self.after or "nothing"
        if self.after is None:
            return f"became unreachable; it served {before} before"
        return f"{after} (unchanged)" if after == before else f"{after} (before: {before})"


def batches(batch: object = "100%", *, canary: bool = False, pause: object = 0) -> list[str]:
    """Return Ansible's ``serial``: the sizes of the batches, the last one repeated.

    :arg batch: the number of hosts in a batch, or their share of all hosts, such as ``25%``.
    :arg canary: whether the first batch is a single host.
    :arg pause: seconds after a batch, which are only validated.
    :raises InvalidDataError: with every mistake.
    """
    problems = list(rolling_update_problems(batch, pause))
    if problems:
        raise InvalidDataError(problems)
    return ["1"] * canary + [str(batch)]


def rolling_update_problems(batch: object = "100%", pause: object = 0, **_others: object) -> Iterator[str]:
    """Yield the mistakes in the options of a rolling update."""
    if not BATCH.fullmatch(str(batch)):
        yield f'batch: must be a number of hosts, 1 or more, or a share of them, such as "25%"; found {batch}'
    if not SECONDS.fullmatch(str(pause)):
        yield f"pause: must be seconds, such as 60; found {pause}"


def interruption_report(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]], inventory: str) -> str:
    """Return what each host serves after an interrupted rolling update, and the commands to continue and to roll back.

    :arg hostvars: the variables of the hosts, with the results registered so far.
    :arg inventory: the location of the inventory, for the commands.
    """
    apps: dict[str, dict[str, LiveRelease]] = {}
    for host in hosts:
        for app, release in _live_releases(hostvars[host]).items():
            apps.setdefault(app, {})[host] = release
    lines = ["the rolling update was interrupted; the hosts now serve:"]
    lines += [f"  {app}: {host} {release}" for app, releases in apps.items() for host, release in releases.items()]
    lines += [f"  {host} was skipped, because it is unreachable" for host in hosts if _is_skipped(hostvars[host])]
    lines.append("to continue: fix the cause and run the same command again")
    lines += [line for app, releases in apps.items() for line in _rollback_commands(app, releases, inventory)]
    return "\n".join(lines)


def _live_releases(variables: Mapping[str, Any]) -> dict[str, LiveRelease]:
    """Return the live releases of a host by app, from the results of its builds and switches."""
    releases = {result["item"]: LiveRelease(result["live"], result["live"]) for result in _results(variables, BUILDS)}
    for result in (result for name in SWITCHES for result in _results(variables, name)):
        release = releases[result["item"]]
        release.after = None if result.get("unreachable") else result.get("release", release.before)
    return releases


def _is_skipped(variables: Mapping[str, Any]) -> bool:
    return bool(variables.get(CHECK, {}).get("unreachable"))


def _results(variables: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    for result in variables.get(name, {}).get("results", []):
        if not result.get("skipped"):
            yield result


def _rollback_commands(app: str, releases: Mapping[str, LiveRelease], inventory: str) -> Iterator[str]:
    """Yield the commands that roll back an app on the hosts that serve, or may serve, another release than before."""
    changed: dict[str, list[str]] = {}
    for host, release in releases.items():
        if release.before and release.after != release.before:  # the first release of a host has no predecessor
            changed.setdefault(release.before, []).append(host)
    for before, hosts in changed.items():
        limit = f" --limit {','.join(hosts)}" if any(release.before != before for release in releases.values()) else ""
        command = f"ansible-playbook funnel.tornado.rollback -i {inventory} -e app={app} -e release={before}{limit}"
        yield f"to roll back {app}: {command}"
