"""Batches of a rolling update, and the report after an interruption."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.filter.expected_backends import expected_backends
from ansible_collections.funnel.tornado.plugins.filter.rolling_update_report import rolling_update_report
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import (
    batches,
    interruption_report,
    is_complete,
    switch_failures,
)

OLD, NEW, OLDER = "0a0a0a0a0a0a", "1b1b1b1b1b1b", "2c2c2c2c2c2c"


def built(live: str = OLD, app: str = "shop") -> dict[str, Any]:
    """Return the variables of a host that has built a release and serves ``live``."""
    return {"__app_releases": {"results": [{"item": app, "id": NEW, "live": live}]}}


def switched(release: str = NEW, live: str = OLD, **result: Any) -> dict[str, Any]:
    """Return the variables of a host whose switch ended with ``release`` live."""
    return built(live) | {"__app_switched": {"apps": {"shop": {"before": live, "release": release, **result}}}}


def failed(live: str = OLD) -> dict[str, Any]:
    """Return the variables of a host whose switch failed."""
    return switched(live, live, failed=True, msg="tornado_apps.shop: release 1b1b did not go live: no\nlog")


def report(**hosts: dict[str, Any]) -> list[str]:
    """Return the lines of the report after the failures."""
    lines = interruption_report(list(hosts), hosts, "prod").splitlines()
    return lines[lines.index("the hosts now serve:") + 1 :]


@pytest.mark.parametrize(
    ("options", "serial"),
    [
        ({}, ["100%"]),
        ({"batch": 2}, ["2"]),
        ({"batch": "25%", "pause": "60"}, ["25%"]),
        ({"canary": True}, ["1", "100%"]),
        ({"batch": "3", "canary": True}, ["1", "3"]),
    ],
)
def test_batches_follow_the_options(options: dict[str, Any], serial: list[str]) -> None:
    assert batches(**options) == serial


@pytest.mark.parametrize("batch", [0, "0", "-1", "0%", "101%", "two", "", "1.5", None, "2,3"])
def test_an_empty_or_malformed_batch_is_rejected(batch: object) -> None:
    with pytest.raises(InvalidDataError) as caught:
        batches(batch)
    assert caught.value.problems == [
        f'batch: must be a number of hosts, 1 or more, or a share of them, such as "25%"; found {batch}'
    ]


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(InvalidDataError) as caught:
        batches("0", pause="a minute")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["batch", "pause"]


def test_a_failed_canary_leaves_all_hosts_unchanged() -> None:
    assert report(web1=failed(), web2=built()) == [
        f"  shop: web1 {OLD} (unchanged)",
        f"  shop: web2 {OLD} (unchanged)",
        "to continue: fix the cause and run the same command again",
    ]


def test_hosts_that_were_up_to_date_are_reported() -> None:
    up_to_date = {"app_host": {"host_state": {"releases": {"shop": {"id": NEW}}}}}
    assert report(web1=up_to_date, web2=failed())[:2] == [f"  shop: web1 {NEW} (unchanged)", f"  shop: web2 {OLD} (unchanged)"]


def test_an_interrupted_rolling_update_can_be_continued_or_rolled_back() -> None:
    assert report(web1=switched(), web2=failed(), web3=built()) == [
        f"  shop: web1 {NEW} (before: {OLD})",
        f"  shop: web2 {OLD} (unchanged)",
        f"  shop: web3 {OLD} (unchanged)",
        "to continue: fix the cause and run the same command again",
        f"to roll back shop: ansible-playbook funnel.tornado.rollback -i prod -e app=shop -e release={OLD}",
    ]


def test_hosts_with_different_releases_are_rolled_back_to_their_own() -> None:
    *_, first, second = report(web1=switched(), web2=switched(live=OLDER), web3=built())
    command = "to roll back shop: ansible-playbook funnel.tornado.rollback -i prod -e app=shop"
    assert first == f"{command} -e release={OLD} --limit web1"
    assert second == f"{command} -e release={OLDER} --limit web2"


def test_a_new_host_has_no_release_to_roll_back_to() -> None:
    lines = report(web1=switched(live=""), web2=failed(""))
    assert lines == [f"  shop: web1 {NEW} (before: nothing)", "  shop: web2 nothing (unchanged)", lines[2]]


def test_a_first_release_that_is_undone_by_its_verification_is_not_live() -> None:
    verified = {"shop": {"before": NEW, "release": "", "failed": True, "undone": True, "msg": "no"}}
    undone = switched(live="") | {"__app_verified": {"apps": verified}}
    assert report(web1=undone)[0] == "  shop: web1 nothing (unchanged)"
    assert switch_failures(["web1"], {"web1": undone}) == {"shop": "web1: no"}


def test_a_host_that_became_unreachable_may_need_a_rollback() -> None:
    lost = {"__app_switched": {"unreachable": True, "msg": "timeout"}}
    assert report(web1=built() | lost)[0] == f"  shop: web1 became unreachable; it served {OLD} before"
    assert report(web1=built() | lost)[-1].endswith(f"-e app=shop -e release={OLD}")


def test_switches_that_run_once_count_and_skipped_ones_do_not() -> None:
    once = {"__app_switched_once": {"apps": {"shop": {"before": OLD, "release": NEW}}}, "__app_switched": {"skipped": True}}
    second = built() | {"__app_switched_once": {"skipped": True}}
    assert report(web1=built() | once, web2=second)[:2] == [
        f"  shop: web1 {NEW} (before: {OLD})",
        f"  shop: web2 {OLD} (unchanged)",
    ]


def test_a_failed_app_is_named_with_its_host_and_reason() -> None:
    hosts = {"web1": failed(), "web2": switched()}
    assert switch_failures(hosts, hosts) == {"shop": "web1: tornado_apps.shop: release 1b1b did not go live: no\nlog"}
    assert interruption_report(list(hosts), hosts, "prod").splitlines()[:2] == [
        "shop failed; the other apps are complete",
        "  web1: tornado_apps.shop: release 1b1b did not go live: no",
    ]
    assert not is_complete(hosts, hosts)


def test_a_lost_host_makes_a_rollback_incomplete() -> None:
    history = {"__funnel_history": {"apps": {"shop": {"live": OLD, "releases": []}}}}
    lost: dict[str, dict[str, Any]] = {"web1": history, "web2": {"__funnel_history": {"unreachable": True}}}
    assert not is_complete(lost, lost)
    assert report(**lost)[:2] == [f"  shop: web1 {OLD} (unchanged)", "  web2 was skipped, because it is unreachable"]
    assert is_complete(["web1"], lost)


def test_a_backend_that_is_down_is_reported_although_all_apps_are_complete() -> None:
    down = {"problems": ["server web1 of backend shop is DOWN"], "outdated": []}
    hostvars = {"web1": switched(), "lb1": {"__funnel_backends": down}, "lb2": {"__funnel_backends": {"unreachable": True}}}

    def finished(*balancers: str) -> str:
        return rolling_update_report(["web1"], hostvars, inventory=["prod"], finished=True, balancers=balancers)

    assert finished() == ""
    assert finished("lb1", "lb2").splitlines() == [
        "not all backends are up at the load balancers:",
        "  lb1: server web1 of backend shop is DOWN",
        "  lb2: unreachable, so the states of its backends are unknown",
    ]


def test_certificates_that_were_not_issued_are_reported_at_the_end() -> None:
    refused = "tornado_apps.shop.tls: no certificate was issued; the previous one stays in use: Connection refused"
    hostvars = {
        "web1": switched() | {"certificates_placed": {"pending": [], "failed": False}},
        "lb1": {"certificates_placed": {"msg": refused, "failed": False}},
        "lb2": {"certificates_placed": {"msg": f"{refused}\n{refused}", "failed": False}},
    }
    found = rolling_update_report(["web1"], hostvars, inventory=["prod"], finished=True, balancers=["lb1", "lb2"])
    assert found.splitlines() == [
        "not all certificates were issued:",
        *(f"  {name}: {refused}" for name in ("lb1", "lb2", "lb2")),
        "to continue: fix the cause and run site.yml",
    ]
    assert rolling_update_report(["web1"], hostvars, inventory=["prod"], finished=True) == ""


def test_a_backend_must_be_up_on_hosts_on_which_a_release_is_live() -> None:
    servers = {"web1": "192.0.2.1", "web2": "192.0.2.2", "web3": "192.0.2.3", "web4": "192.0.2.4"}
    hosts = {
        "web1": switched(),
        "web2": failed(""),  # its first deploy
        "web3": built() | {"__app_switched": {"unreachable": True}},
        "web4": {"app_host": {"host_state": {"releases": {"shop": {"id": NEW}}}}},
    }
    backends = {"shop": {"servers": servers}, "blog": {"servers": servers, "domains": ["blog.test"]}}
    found = expected_backends(backends, hosts, hosts)
    assert {name: entry["servers"] for name, entry in found.items()} == {"shop": ["web1", "web4"], "blog": []}
    assert found["shop"]["digest"] != found["blog"]["digest"]
    assert list(expected_backends(backends, hosts, hosts, apps=["shop"])) == ["shop"]
    assert list(expected_backends(backends, hosts, hosts, apps=["part-of-shop"])) == ["shop", "blog"]


def test_all_apps_are_reported() -> None:
    both = {
        "__app_releases": {"results": [*built()["__app_releases"]["results"], *built(app="blog")["__app_releases"]["results"]]}
    }
    assert [line.split()[0] for line in report(web1=both, web2=both)[:4]] == ["shop:", "shop:", "blog:", "blog:"]


def test_unreachable_hosts_are_reported_as_skipped() -> None:
    assert report(web1=built(), web2={"app_host": {"unreachable": True}}, web3={})[1:2] == [
        "  web2 was skipped, because it is unreachable"
    ]


@pytest.mark.parametrize(("outcome", "continued"), [({}, False), ({"failed": True, "msg": "blog: no"}, True)])
def test_a_site_that_was_not_restored_fails_the_run(outcome: dict[str, Any], *, continued: bool) -> None:
    restored = {"__app_restored": {"apps": {"shop": {"failed": True, "release": NEW, "msg": "its site was not restored"}}}}
    hosts = {"web1": switched() | restored, "web2": {"__app_switched": {"apps": {"blog": {"release": OLD} | outcome}}}}
    lines = interruption_report(list(hosts), hosts, "prod").splitlines()
    assert not is_complete(list(hosts), hosts)
    assert {"  web1: its site was not restored", f"  shop: web1 {NEW} (before: {OLD})"} <= {*lines}
    # The same rollback would go further back if all hosts have switched.
    assert ("to continue: fix the cause and run the same command again" in lines) == continued
