"""The apps that a host switches: hooks that run once, dependencies, failures, and first releases."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.plugin_utils.switch_plan import (
    SwitchPlan,
    app_dependencies,
    kept_site_options,
    plan,
)

HOSTS = ["web1", "web2", "web3"]


def build(app: str, **changes: Any) -> dict[str, Any]:
    """Return the result of a build; only ``plain`` has no hook with ``once``."""
    return {
        "item": app,
        "id": f"{app}-2",
        "live": f"{app}-1",
        "once": app != "plain",
        "settled": False,
        "waiting": False,
    } | changes


def built(*apps: str, **changes: Any) -> dict[str, Any]:
    """Return the variables of a host that built apps."""
    return {"__app_releases": {"results": [build(app, **changes) for app in apps]}}


def planned(
    host: str, hostvars: dict[str, dict[str, Any]], *, depends_on: dict[str, list[str]] | None = None, reached: list[str] = HOSTS
) -> SwitchPlan:
    entries = {name: {"depends_on": others} for name, others in (depends_on or {}).items()}
    return plan(host, {name: hostvars.get(name, {}) for name in HOSTS}, {"shop": {}} | entries, HOSTS, reached)


@pytest.mark.parametrize(
    ("host", "first", "rest"),
    [("web1", ["shop"], ["plain"]), ("web2", ["notes"], ["shop"]), ("web3", ["wiki"], ["notes", "plain"])],
)
def test_hooks_run_once_on_the_first_host_that_has_the_app(host: str, first: list[str], rest: list[str]) -> None:
    hostvars = {"web1": built("shop", "plain"), "web2": built("notes", "shop"), "web3": built("notes", "plain", "wiki")}
    found = planned(host, hostvars)
    assert (list(found.first), list(found.rest)) == (first, rest)
    assert found.first[first[0]] == f"{first[0]}-2"
    assert found.replaced[first[0]] == f"{first[0]}-1"


@pytest.mark.parametrize("lost", [{}, {"web1": {"__app_releases": {"unreachable": True}}}])
def test_hooks_run_on_the_next_host_if_the_first_one_built_nothing(lost: dict[str, Any]) -> None:
    assert list(planned("web2", {**lost, "web2": built("shop"), "web3": built("shop")}).first) == ["shop"]


def test_host_that_is_up_to_date_has_run_the_hooks_already() -> None:
    settled = {"app_host": {"host_state": {"releases": {"shop": {"id": "shop-2"}}}}}
    assert list(planned("web2", {"web1": settled, "web2": built("shop")}).rest) == ["shop"]
    assert list(planned("web2", {"web1": settled, "web2": built("shop")}, reached=["web2"]).first) == ["shop"]


def test_apps_that_need_no_switch_are_omitted() -> None:
    hostvars = {"web1": built("shop", settled=True)}
    hostvars["web1"]["__app_releases"]["results"] += [{"item": "pushed", "once": False, "settled": False, "waiting": True}]
    assert planned("web1", hostvars) == SwitchPlan(replaced={"shop": "shop-1"})


def test_app_with_dependencies_is_switched_together_with_all_others() -> None:
    found = planned("web1", {"web1": built("plain", "shop")}, depends_on={"shop": ["plain"], "plain": []})
    assert (found.first, found.rest) == ({"shop": "shop-2", "plain": "plain-2"}, {})
    assert found.depends_on == {"shop": ["plain"]}


def test_app_that_failed_on_a_host_is_not_switched_on_the_others() -> None:
    failed = built("shop") | {"__app_switched_once": {"apps": {"shop": {"failed": True, "msg": "unhealthy"}}}}
    found = planned("web2", {"web1": failed, "web2": built("shop", "plain")})
    assert (found.first, found.rest, found.failed) == ({}, {"plain": "plain-2"}, ["shop"])


def test_first_releases_are_verified_by_another_switch() -> None:
    switched = {"__app_switched_once": {"apps": {"shop": {"deferred": True}}}, "__app_switched": {"apps": {"plain": {}}}}
    assert planned("web1", {"web1": built() | switched}).deferred == ["shop"]


def test_an_interrupted_rollback_is_completed_with_the_live_release() -> None:
    found = planned("web1", {"web1": built("shop", "plain", stays=True)})
    assert (found.first | found.rest) == {"shop": "shop-1", "plain": "plain-1"}
    assert planned("web1", {"web1": built("shop", stays=True, settled=True)}).rest == {}


def test_only_apps_with_dependencies_are_listed() -> None:
    entries = {"shop": {"depends_on": ["api"]}, "api": {"depends_on": []}, "blog": {}}
    assert app_dependencies(entries) == {"shop": ["api"]}


@pytest.mark.parametrize(
    ("changes", "switched", "failed", "kept"),
    [
        ({}, None, [], False),  # about to be switched
        ({}, {"release": "shop-2"}, [], False),
        ({}, {"release": "shop-1", "failed": True}, ["shop"], True),
        ({}, None, ["shop"], True),  # it failed on another host
        ({}, {"release": "shop-2"}, ["shop"], False),  # it failed on another host, after this one
        ({"settled": True, "id": "shop-1"}, None, [], False),
        ({"settled": True}, None, [], True),  # rolled back from the release of the inventory
        ({"stays": True}, None, [], True),  # the same, and the rollback was interrupted
    ],
)
def test_site_options_stay_unless_the_release_of_the_inventory_is_live(
    changes: dict[str, Any], switched: dict[str, Any] | None, failed: list[str], *, kept: bool
) -> None:
    switches = [{}, {"apps": {"shop": switched} if switched else {}}]
    found = kept_site_options({"shop": "text", "other": "text"}, [build("shop", **changes)], switches, failed)
    assert ("shop" in found, "other" in found) == (kept, True)
