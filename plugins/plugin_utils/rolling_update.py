"""How a change goes over the hosts of a fleet: in which batches, and what is said when it stops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

BATCH = re.compile(r"[1-9]\d*|([1-9]\d?|100)%")
SECONDS = re.compile(r"\d{1,5}")

#: Where the role app keeps what its check of a host, its builds and its switches returned.
CHECK = "app_host"
BUILDS = "__app_releases"
SWITCHES = ("__app_switched_once", "__app_switched")


@dataclass
class Served:
    """What a host serves of an app: releases before and after the switch; ``after`` is None where nobody could be asked."""

    before: str
    after: str | None


def batches(batch: object = "100%", *, canary: bool = False, pause: object = 0) -> list[str]:
    """Return Ansible's ``serial``: the sizes of the batches, the last one repeated.

    :arg batch: hosts that switch at a time, or their share of all, such as ``25%``.
    :arg canary: whether one host goes first.
    :arg pause: seconds after a batch, which are only checked.
    :raises InvalidDataError: with every mistake.
    """
    problems = list(roll_problems(batch, pause))
    if problems:
        raise InvalidDataError(problems)
    return ["1"] * canary + [str(batch)]


def roll_problems(batch: object = "100%", pause: object = 0, **_others: object) -> Iterator[str]:
    """Yield what is wrong with what was asked for."""
    if not BATCH.fullmatch(str(batch)):
        yield f'batch: must be a number of hosts, 1 or more, or a share of them, such as "25%"; found {batch}'
    if not SECONDS.fullmatch(str(pause)):
        yield f"pause: must be seconds, such as 60; found {pause}"


def report(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]], inventory: str) -> str:
    """Return what each of ``hosts`` serves after a roll has stopped, and the commands that lead on and back.

    :arg hostvars: the variables of the hosts, with the results of what was done on them so far.
    :arg inventory: where the inventory is, for the commands.
    """
    found = {host: _served(hostvars[host]) for host in hosts}
    apps: dict[str, dict[str, Served]] = {}
    for host, served in found.items():
        for app, one in served.items():
            apps.setdefault(app, {})[host] = one
    lines = ["the roll has stopped; what is served now:"]
    lines += [f"  {app}: {host} {_told(one)}" for app, served in apps.items() for host, one in served.items()]
    lines += [f"  {host} was left out, as it could not be reached" for host in hosts if _is_left_out(hostvars[host])]
    lines.append("to go on when the reason is gone: the same command again")
    lines += [line for app, served in apps.items() for line in _way_back(app, served, inventory)]
    return "\n".join(lines)


def _served(variables: Mapping[str, Any]) -> dict[str, Served]:
    """Return what a host serves, by app, as the results of its builds and switches say."""
    found = {result["item"]: Served(result["live"], result["live"]) for result in _results(variables, BUILDS)}
    for result in (result for name in SWITCHES for result in _results(variables, name)):
        one = found[result["item"]]
        one.after = None if result.get("unreachable") else result.get("release", one.before)
    return found


def _is_left_out(variables: Mapping[str, Any]) -> bool:
    return bool(variables.get(CHECK, {}).get("unreachable"))


def _results(variables: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    for result in variables.get(name, {}).get("results", []):
        if not result.get("skipped"):
            yield result


def _told(served: Served) -> str:
    if served.after is None:
        return f"was lost on the way; before, it served {served.before or 'nothing'}"
    if served.after == served.before:
        return f"{served.after or 'nothing'}, as before"
    return f"{served.after or 'nothing'}, before {served.before or 'nothing'}"


def _way_back(app: str, served: Mapping[str, Served], inventory: str) -> Iterator[str]:
    """Yield the commands that take an app back where it serves, or may serve, another release than before."""
    changed: dict[str, list[str]] = {}
    for host, one in served.items():
        if one.before and one.after != one.before:  # where nothing was served before there is no way back
            changed.setdefault(one.before, []).append(host)
    for release, hosts in changed.items():
        limit = f" --limit {','.join(hosts)}" if any(one.before != release for one in served.values()) else ""
        command = f"ansible-playbook funnel.tornado.rollback -i {inventory} -e app={app} -e release={release}{limit}"
        yield f"to take {app} back: {command}"
