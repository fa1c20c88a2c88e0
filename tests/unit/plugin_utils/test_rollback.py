"""The target of a rollback, chosen once for all hosts."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.plugin_utils.rollback import (
    Plan,
    build_problems,
    make_plan,
    restore_failures,
    switched_site_options,
)


def state(*releases: str, starting: str = "", built: bool = True, host: str = "") -> dict[str, Any]:
    """Return the history of a host: releases from the oldest to the live one; ``!`` marks one that was rolled back.

    Each letter is a content, deployed to all hosts at the same time; the ids differ by ``host``.
    """
    entries = [
        {
            "release": f"{name[0]}{host}",
            "content": name[0],
            "revision": f"v{name[0]}",
            "at": name.removesuffix("!")[1:] or f"{ord(name[0]):03}",
            "by": "alice@desk",
            "undone": "rolled back" if name.endswith("!") else "",
            "undone_by": "bob@desk" if name.endswith("!") else "",
            "undone_at": "200" if name.endswith("!") else "",
            "built": built or name == releases[-1],
            "site_options": "",
        }
        for name in releases
    ]
    newest = {entry["release"]: entry for entry in entries}
    releases_of_host = list(reversed(newest.values()))
    return {"live": f"{releases[-1][0]}{host}", "starting": starting, "site_options": "", "releases": releases_of_host}


def plan(**hosts: dict[str, Any]) -> Plan:
    """Return the plan for the app shop, without a given release."""
    return plan_for("", **hosts)


def plan_for(release: str, /, **hosts: dict[str, Any]) -> Plan:
    return make_plan(
        {host: {"shop": found} if found else {} for host, found in hosts.items()},
        ["shop"],
        {host: ["shop"] for host in hosts},
        release,
    )


def targets(found: Plan) -> dict[str, str]:
    """Return the target of each host, in parentheses if the host must build it."""
    assert found.problems == []
    built = {host: apps["shop"] for host, apps in found.releases.items() if apps}
    return built | {host: f"({apps['shop']['release']})" for host, apps in found.missing.items() if apps}


def test_all_hosts_return_to_the_previous_release() -> None:
    assert targets(plan(web1=state("A", "B", "C"), web2=state("A", "B", "C"))) == {"web1": "B", "web2": "B"}


def test_a_clock_that_was_set_back_does_not_change_the_order_of_releases() -> None:
    assert targets(plan(web1=state("A900", "B", "C"), web2=state("A", "B", "C"))) == {"web1": "B", "web2": "B"}


def test_hosts_that_never_got_the_bad_release_stay() -> None:
    found = plan(web1=state("B", "C", "D"), web2=state("B", "C"), web3=state("B", "C"))
    assert targets(found) == {"web1": "C", "web2": "C", "web3": "C"}
    assert found.lines == [
        "shop: revision vC, live since 067, deployed by alice@desk",
        "  web1: D -> C",
        "  web2: C stays",
        "  web3: C stays",
    ]


def test_ids_may_differ_between_hosts() -> None:
    assert targets(plan(web1=state("B", "C", host="1"), web2=state("B", "C", host="2"))) == {"web1": "B1", "web2": "B2"}


def test_a_host_that_lacks_the_target_must_build_it() -> None:
    found = plan(web1=state("B", "C"), web2=state("C"), web3={}, web4=state("B", "C", built=False))
    assert targets(found) == {"web1": "B", "web2": "(B)", "web3": "(B)", "web4": "(B)"}
    assert "  web3: nothing -> builds the release, which this host lacks" in found.lines


def test_a_repeated_rollback_completes_an_unfinished_one() -> None:
    found = plan(web1=state("A", "B", "C!", "B201"), web2=state("A", "B", "C"))
    assert targets(found) == {"web1": "B", "web2": "B"}


def test_a_second_rollback_goes_further_back_and_a_third_has_no_target() -> None:
    hosts = {host: state("A", "B", "C!", "B201") for host in ("web1", "web2")}
    assert targets(plan(**hosts)) == {"web1": "A", "web2": "A"}
    hosts = {host: state("A", "B!", "C!", "A202") for host in ("web1", "web2")}
    assert plan(**hosts).problems == [
        "shop: no earlier release that served well is left to roll back to\n"
        "  C: rolled back by bob@desk at 200\n"
        "  B: rolled back by bob@desk at 200"
    ]


def test_a_deploy_that_has_not_switched_anywhere_is_aborted() -> None:
    assert targets(plan(web1=state("A", "B", starting="C"), web2=state("A", "B"))) == {"web1": "B", "web2": "B"}
    assert targets(plan(web1=state("A", "B", starting="C"), web2=state("A", "B", "C"))) == {"web1": "B", "web2": "B"}


@pytest.mark.parametrize("release", ["A1", "A2"])
def test_a_named_release_is_the_target_on_all_hosts(release: str) -> None:
    found = plan_for(release, web1=state("A", "B", "C", host="1"), web2=state("A", "B", host="2"))
    assert targets(found) == {"web1": "A1", "web2": "A2"}


def test_a_named_release_that_was_never_live_is_refused() -> None:
    assert plan_for("X", web1=state("A", "B")).problems == ["shop: release X was never live on a host; these were: B, A"]


def test_hosts_without_the_app_are_left_alone() -> None:
    found = make_plan({"web1": {"shop": state("A", "B")}, "web2": {}}, ["shop"], {"web1": ["shop"], "web2": ["blog"]})
    assert targets(found) == {"web1": "A"}


@pytest.mark.parametrize(
    ("recorded", "applied", "restored"),
    [("old", "new", "old"), ("old", "old", "old"), ("", "new", None), ("old", "", None)],
)
def test_the_site_options_of_the_target_are_restored_where_nginx_serves_the_app(
    recorded: str, applied: str, restored: str | None
) -> None:
    web1, web2 = state("A", "B"), state("A", "B")
    web1["releases"][1]["site_options"], web1["site_options"] = recorded, applied
    found = plan(web1=web1, web2=web2)
    assert found.site_options == {"web1": {"shop": restored} if restored else {}, "web2": {}}


def test_the_site_options_of_a_release_that_stays_live_stay_as_well() -> None:
    web1, web2 = state("A", "B"), state("A")
    for host in (web1, web2):
        host["site_options"] = "new"
        host["releases"][-1]["site_options"] = "old"
    assert plan(web1=web1, web2=web2).site_options == {"web1": {"shop": "old"}, "web2": {}}


@pytest.mark.parametrize(
    ("outcome", "options"),
    [
        ({"release": "A"}, {"shop": "old"}),
        ({"release": "A", "failed": True}, {"shop": "old"}),  # it is live, but clients do not reach it
        ({"release": "B", "failed": True}, {}),
        (None, {}),
    ],
)
def test_site_options_are_restored_only_if_the_switch_succeeded(outcome: dict[str, Any] | None, options: dict[str, str]) -> None:
    outcomes = {"blog": {"release": "A"}} | ({"shop": outcome} if outcome else {})
    assert switched_site_options({"shop": "old"}, {"shop": "A", "blog": "A"}, outcomes) == options
    assert switched_site_options({"shop": "old"}, {}, outcomes) == {}


def test_sites_that_were_not_restored_are_reported_with_their_release() -> None:
    assert restore_failures({"shop": "A", "blog": "C"}, ["shop"], "nginx rejects it:\nunknown directive") == {
        "shop": {
            "failed": True,
            "release": "A",
            "msg": "shop: release A is live, but its site was not restored: nginx rejects it: unknown directive; "
            "set the entry of shop in the inventory to that of this release, and run site.yml",
        }
    }


def test_a_build_of_another_release_is_refused() -> None:
    missing = {"shop": {"release": "B", "revision": "vB", "content": "b"}}
    assert list(build_problems(missing, {"shop": {"content": "b"}})) == []
    (problem,) = build_problems(missing, {"shop": {"content": "c"}})
    assert problem.startswith(
        "shop: this host lacks release B of revision vB, and the inventory and the source now make another one"
    )
