"""Rolling updates: batches and canary of a fleet, and the report after an interrupted rolling update."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import headline
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

BATCH = re.compile(r"[1-9]\d*|([1-9]\d?|100)%")
SECONDS = re.compile(r"\d{1,5}")

#: Variables in which the role app and the playbooks register the results of the check of a host, of builds, of the deploy history
#: and of switches, with the restored sites of a rollback.
CHECK = "app_host"
BUILDS = "__app_releases"
HISTORY = "__funnel_history"
RESTORED = "__app_restored"
SWITCHES = ("__app_switched_once", "__app_switched", RESTORED, "__app_verified")

#: Variable in which backends.yml registers what a load balancer answered about the backends.
BACKENDS = "__funnel_backends"

#: Variable in which the role certificates registers the last result of its module.
CERTIFICATES = "certificates_placed"


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


def switch_failures(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the apps that failed to switch on a host, with the first message and its host."""
    failed: dict[str, str] = {}
    for host in hosts:
        for app, outcome in _outcomes(hostvars[host]):
            if outcome.get("failed"):
                failed.setdefault(app, f"{host}: {outcome['msg']}")
    return failed


def is_complete(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether no app failed, and no host was unreachable since the deploy history was read."""
    lost = [host for host in hosts if any(hostvars[host].get(name, {}).get("unreachable") for name in (HISTORY, *SWITCHES))]
    return not lost and not switch_failures(hosts, hostvars)


def interruption_report(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]], inventory: str) -> str:
    """Return what each host serves after a rolling update that failed, and the commands to continue and to roll back.

    :arg hostvars: the variables of the hosts, with the results registered so far.
    :arg inventory: the location of the inventory, for the commands.
    """
    apps: dict[str, dict[str, LiveRelease]] = {}
    for host in hosts:
        for app, release in _live_releases(hostvars[host]).items():
            apps.setdefault(app, {})[host] = release
    failed = switch_failures(hosts, hostvars)
    lines = [f"{', '.join(failed)} failed; the other apps are complete" if failed else "the rolling update was interrupted"]
    lines += [f"  {headline(message)}" for message in failed.values()]
    lines.append("the hosts now serve:")
    lines += [f"  {app}: {host} {release}" for app, releases in apps.items() for host, release in releases.items()]
    lines += [f"  {host} was skipped, because it is unreachable" for host in hosts if _is_skipped(hostvars[host])]
    if not failed or _has_failed_switch(hosts, hostvars):
        lines.append("to continue: fix the cause and run the same command again")
    lines += [line for app, releases in apps.items() for line in _rollback_commands(app, releases, inventory)]
    return "\n".join(lines)


def backend_problems(balancers: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the load balancers answered about backends that are not up, and those that did not answer."""
    for name in balancers:
        answer = hostvars[name].get(BACKENDS, {})
        if answer.get("unreachable"):
            yield f"{name}: unreachable, so the states of its backends are unknown"
        yield from (f"{name}: {problem}" for problem in answer.get("problems", []))


def certificate_problems(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield why hosts have not got all certificates that an ACME server should issue."""
    for name in hosts:
        placed = hostvars[name].get(CERTIFICATES, {})
        if "pending" not in placed:
            yield from (f"{name}: {problem}" for problem in str(placed.get("msg", "")).splitlines())


def live_apps(variables: Mapping[str, Any]) -> set[str]:
    """Return the apps of which a host serves a release, as far as this run knows; none of a host that became unreachable."""
    return {app for app, release in _live_releases(variables).items() if release.after}


def _live_releases(variables: Mapping[str, Any]) -> dict[str, LiveRelease]:
    """Return the live releases of a host by app, from its check or history, the results of its builds, and of its switches."""
    found = {app: release["id"] for app, release in variables.get(CHECK, {}).get("host_state", {}).get("releases", {}).items()}
    found |= {app: state["live"] for app, state in variables.get(HISTORY, {}).get("apps", {}).items()}
    found |= {build["item"]: build["live"] for build in variables.get(BUILDS, {}).get("results", []) if "live" in build}
    switched = [app for app, _outcome in _outcomes(variables)]
    is_lost = any(variables.get(name, {}).get("unreachable") for name in SWITCHES)
    releases = {app: LiveRelease(live, None if is_lost and app not in switched else live) for app, live in found.items()}
    first: dict[str, str] = {}
    for app, outcome in _outcomes(variables):
        before = first.setdefault(app, outcome.get("before", found.get(app, "")))
        releases[app] = LiveRelease(before, outcome.get("release", before))
    return releases


def _outcomes(variables: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the results of the switches of a host by app."""
    for name in SWITCHES:
        yield from variables.get(name, {}).get("apps", {}).items()


def _has_failed_switch(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether an app failed to switch. If only sites were not restored, the same rollback would go further back."""
    results = [hostvars[host].get(name, {}) for host in hosts for name in SWITCHES if name != RESTORED]
    return any(outcome.get("failed") for result in results for outcome in result.get("apps", {}).values())


def _is_skipped(variables: Mapping[str, Any]) -> bool:
    return any(variables.get(name, {}).get("unreachable") for name in (CHECK, HISTORY))


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
