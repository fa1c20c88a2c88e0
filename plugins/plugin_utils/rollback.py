"""Rollback plan: the one target of an app on all hosts, chosen from the deploy histories of all of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import headline

#: The result of the module history of each host, by app.
Histories = Mapping[str, Mapping[str, Mapping[str, Any]]]

#: The history of an app on a host that has never served it.
ABSENT: Mapping[str, Any] = {"live": "", "starting": "", "site_options": "", "releases": []}


@dataclass
class Plan:
    """The target of each app on each host.

    ``releases`` are the ids by host and app; ``missing`` are the targets by app on the hosts that must build them;
    ``site_options`` are those of the targets by host and app, where the live release changes; ``lines`` show the plan, and
    ``problems`` prevent it.
    """

    releases: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    site_options: dict[str, dict[str, str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def make_plan(histories: Histories, apps: Iterable[str], desired: Mapping[str, Container[str]], release: str = "") -> Plan:
    """Return the plan for ``apps``.

    :arg desired: the apps that the inventory has for each host.
    :arg release: the id of the target on one of the hosts; by default the newest release that served well.
    """
    plan = Plan({host: {} for host in histories}, {host: {} for host in histories}, {host: {} for host in histories})
    for app in apps:
        states = {host: found[app] for host, found in histories.items() if app in found}
        target = _named(states, release) if release else _previous(states)
        if target is None:
            plan.problems.append(_no_target(app, states, release))
        else:
            hosts = [host for host in histories if host in states or app in desired[host]]
            _assign(plan, app, {host: states.get(host, ABSENT) for host in hosts}, target)
            _restore_sites(plan, app, {host: state for host, state in states.items() if app in desired[host]}, target)
    return plan


def _key(entry: Mapping[str, Any]) -> str:
    """Return what identifies a release on all hosts: their ids may differ."""
    return str(entry["content"] or entry["release"])


def _entries(states: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries of all hosts, newest first. Those of a host keep their order: its clock may have been set back."""
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for state in states.values():
        times = [*accumulate((str(entry["at"]) for entry in reversed(state["releases"])), max)]
        entries += zip(reversed(times), state["releases"], strict=True)
    return [entry for _at, entry in sorted(entries, key=itemgetter(0), reverse=True)]


def _live(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((entry for entry in state["releases"] if entry["release"] == state["live"]), None)


def _named(states: Mapping[str, Mapping[str, Any]], release: str) -> Mapping[str, Any] | None:
    return next((entry for entry in _entries(states) if entry["release"] == release), None)


def _previous(states: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the newest release that served well on all hosts and is older than the newest live one.

    The live release itself is the target of two rollbacks: of a deploy that has not switched anywhere, and of one that an earlier
    run has already rolled back on some hosts.
    """
    entries = _entries(states)
    undone = {_key(entry) for entry in entries if entry["undone"]}
    served_well = [entry for entry in entries if _key(entry) not in undone]
    live_entries = [_live(state) for state in states.values()]
    live = [entry for entry in entries if any(entry is each for each in live_entries)]
    live_keys = {_key(entry) for entry in live}
    is_unfinished = bool(live_keys & undone)
    is_unstarted = len(live_keys) == 1 and any(state["starting"] for state in states.values())
    if is_unfinished or is_unstarted:
        return next((entry for entry in served_well if _key(entry) in live_keys), None)
    return next((entry for entry in served_well if not live or _key(entry) != _key(live[0])), None)


def _no_target(app: str, states: Mapping[str, Mapping[str, Any]], release: str) -> str:
    if release:
        known = dict.fromkeys(entry["release"] for entry in _entries(states))
        return f"{app}: release {release} was never live on a host; these were: {', '.join(known) or 'none'}"
    undone = {entry["release"]: entry for entry in _entries(states) if entry["undone"]}
    reasons = "".join(f"\n  {release}: {_reason(entry)}" for release, entry in undone.items())
    return f"{app}: no earlier release that served well is left to roll back to{reasons}"


def _reason(entry: Mapping[str, Any]) -> str:
    by = f" by {entry['undone_by']}" if entry["undone_by"] else ""
    return f"{entry['undone']}{by}{entry['undone_at'] and ' at '}{entry['undone_at']}"


def _assign(plan: Plan, app: str, states: Mapping[str, Mapping[str, Any]], target: Mapping[str, Any]) -> None:
    """Add the release of each host that is ``target`` there; on a host without it, it is missing."""
    plan.lines.append(f"{app}: revision {target['revision']}, live since {target['at']}, deployed by {target['by'] or 'unknown'}")
    for host, state in states.items():
        own = next((entry for entry in state["releases"] if entry["built"] and _key(entry) == _key(target)), None)
        if own is None:
            plan.missing[host][app] = {key: str(target[key]) for key in ("release", "revision", "content")}
            change = f"{state['live'] or 'nothing'} -> builds the release, which this host lacks"
        else:
            plan.releases[host][app] = own["release"]
            stays = own["release"] == state["live"]
            change = f"{own['release']} stays" if stays else f"{state['live'] or 'nothing'} -> {own['release']}"
        plan.lines.append(f"  {host}: {change}")


def _restore_sites(plan: Plan, app: str, states: Mapping[str, Mapping[str, Any]], target: Mapping[str, Any]) -> None:
    """Add the site options of ``target`` on the hosts whose live release changes, if they have a site of the app."""
    for host, state in states.items():
        own = next((entry for entry in state["releases"] if _key(entry) == _key(target)), target)
        options = own["site_options"] or target["site_options"]
        if options and state["site_options"] and own["release"] != state["live"]:
            plan.site_options[host][app] = str(options)


def switched_site_options(
    options: Mapping[str, str], releases: Mapping[str, str], outcomes: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the site options of the apps that a host has switched to the target; the other apps keep the site of their release.

    :arg options: the site options of the targets, of :class:`Plan`.
    :arg releases: the ids of the targets.
    :arg outcomes: the results of the module switch by app.
    """
    return {app: text for app, text in options.items() if outcomes.get(app, {}).get("release", "") == releases.get(app)}


def restore_failures(releases: Mapping[str, str], apps: Iterable[str], message: str) -> dict[str, dict[str, Any]]:
    """Return the results of apps that were switched to the target, but whose sites were not restored.

    :arg releases: the ids of the targets.
    :arg message: why not.
    """
    found: dict[str, dict[str, Any]] = {}
    for app in apps:
        problem = f"{app}: release {releases[app]} is live, but its site was not restored: {headline(message)}"
        advice = f"set the entry of {app} in the inventory to that of this release, and run site.yml"
        found[app] = {"failed": True, "release": releases[app], "msg": f"{problem}; {advice}"}
    return found


def build_problems(missing: Mapping[str, Mapping[str, str]], built: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the apps of a host whose build is not the target of the rollback.

    :arg missing: the targets by app, of :class:`Plan`.
    :arg built: the results of the module release by app.
    """
    for app, target in missing.items():
        if built[app].get("content") != target["content"] or not target["content"]:
            yield (
                f"{app}: this host lacks release {target['release']} of revision {target['revision']}, and the inventory and the "
                f"source now make another one; deploy that revision with its settings to this host with deploy.yml -e app={app} "
                "--limit HOST, or exclude the host with --limit"
            )
