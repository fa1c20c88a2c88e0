"""The apps that a host switches after the builds, in which order, and on which host the hooks that run once run."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import BUILDS, CHECK, SWITCHES, switch_failures


@dataclass(frozen=True)
class SwitchPlan:
    """The switches of a host.

    ``first`` are the releases by app that this host switches before the other hosts, as it runs their hooks that run only once;
    ``rest`` those that the hosts switch concurrently. ``deferred`` are apps whose first release is live, and not verified yet.
    ``replaced`` are the live releases before the switch, ``depends_on`` the apps that are switched before an app, and ``failed``
    the apps that failed to switch on a host before, which are not switched on the others.
    """

    first: dict[str, str] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)
    deferred: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    depends_on: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def plan(
    host: str, hostvars: Mapping[str, Mapping[str, Any]], entries: Mapping[str, Any], hosts: Sequence[str], reached: Sequence[str]
) -> SwitchPlan:
    """Return the switches of ``host``, from the results of the builds and of the switches so far.

    :arg entries: the valid ``tornado_apps`` of the host.
    :arg hosts: all hosts of the play.
    :arg reached: the reachable app hosts, in the order of the rolling update: hosts may have different apps, and one that is up
        to date, and so is not in the play, has run the hooks that run once already.
    """
    builds = {build["item"]: build for build in hostvars[host][BUILDS]["results"]}
    failed = list(switch_failures(hosts, hostvars))
    pending = [app for app, build in builds.items() if not (build["settled"] or build["waiting"] or app in failed)]
    # The switch to a live release completes what an interrupted rollback has left.
    targets = {app: builds[app]["live" if builds[app].get("stays") else "id"] for app in pending}
    run_once = [app for app in pending if builds[app]["once"]]
    earlier = set(_apps(map(hostvars.__getitem__, reached[: reached.index(host)]))) if run_once else set()
    depends_on = app_dependencies(entries)
    first = [app for app in run_once if app not in earlier]
    if depends_on.keys() & first:  # what they depend on is switched before them, unless another host runs its hooks
        first += [app for app in pending if app not in run_once]
    return SwitchPlan(
        first={app: targets[app] for app in first},
        rest={app: targets[app] for app in pending if app not in first},
        deferred=[
            app
            for name in SWITCHES
            for app, outcome in hostvars[host].get(name, {}).get("apps", {}).items()
            if outcome.get("deferred")
        ],
        replaced={app: build["live"] for app, build in builds.items() if "live" in build},
        depends_on=depends_on,
        failed=failed,
    )


def kept_site_options(
    applied: Mapping[str, str], builds: Sequence[Mapping[str, Any]], switches: Sequence[Mapping[str, Any]], failed: Container[str]
) -> dict[str, str]:
    """Return the site options that stay as they are on a host: those of apps that do not serve the release of the inventory.

    They are not part of the run, failed in it, or were rolled back from that release.

    :arg applied: the site options of the host by app.
    :arg builds: the results of its builds; an app with neither a failure nor a switch is about to be switched.
    :arg switches: the results of its switches so far, the latest last.
    :arg failed: the apps that failed to switch on any host, which are not switched on this one if it follows.
    """
    desired = {build["item"]: build["id"] for build in builds if "live" in build}
    stays = {
        build["item"]: build["live"]
        for build in builds
        if "live" in build and (build["settled"] or build.get("stays") or build["item"] in failed)
    }
    live = desired | stays
    for switch in switches:
        live |= {app: outcome["release"] for app, outcome in switch.get("apps", {}).items() if "release" in outcome}
    return {app: text for app, text in applied.items() if app not in desired or live[app] != desired[app]}


def app_dependencies(entries: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the apps that are switched before an app, by app."""
    return {app: list(entry["depends_on"]) for app, entry in entries.items() if entry.get("depends_on")}


def _apps(hosts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the apps of hosts: those that they built, and those with a release that is up to date."""
    for variables in hosts:
        yield from (build["item"] for build in variables.get(BUILDS, {}).get("results", []))
        yield from variables.get(CHECK, {}).get("host_state", {}).get("releases", {})
