"""How a change goes over the hosts of a fleet."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import batches, report

OLD, NEW, OLDER = "0a0a0a0a0a0a", "1b1b1b1b1b1b", "2c2c2c2c2c2c"


def built(live: str = OLD, app: str = "shop") -> dict[str, Any]:
    """Return the variables of a host that has built a release, and serves ``live``."""
    return {"__app_releases": {"results": [{"item": app, "id": NEW, "live": live}]}}


def switched(release: str | None = NEW, live: str = OLD, **result: Any) -> dict[str, Any]:
    """Return the variables of a host on which a switch has ended with ``release`` served."""
    ended = {"item": "shop", **({"release": release} if release is not None else {}), **result}
    return built(live) | {"__app_switched": {"results": [ended]}}


def said(**hosts: dict[str, Any]) -> list[str]:
    """Return the lines of the report, without the first."""
    first, *lines = report(list(hosts), hosts, "prod").splitlines()
    assert first == "the roll has stopped; what is served now:"
    return lines


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
def test_batches_are_as_they_are_asked_for(options: dict[str, Any], serial: list[str]) -> None:
    assert batches(**options) == serial


@pytest.mark.parametrize("batch", [0, "0", "-1", "0%", "101%", "two", "", "1.5", None, "2,3"])
def test_a_batch_of_nobody_is_refused(batch: object) -> None:
    with pytest.raises(InvalidDataError) as caught:
        batches(batch)
    assert caught.value.problems == [
        f'batch: must be a number of hosts, 1 or more, or a share of them, such as "25%"; found {batch}'
    ]


def test_all_that_is_wrong_with_a_roll_is_said_at_once() -> None:
    with pytest.raises(InvalidDataError) as caught:
        batches("0", pause="a minute")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["batch", "pause"]


def test_a_canary_that_failed_leaves_everything_as_it_was() -> None:
    assert said(web1=switched(OLD, failed=True), web2=built()) == [
        f"  shop: web1 {OLD}, as before",
        f"  shop: web2 {OLD}, as before",
        "to go on when the reason is gone: the same command again",
    ]


def test_a_roll_that_stopped_on_the_way_can_go_on_or_back() -> None:
    assert said(web1=switched(), web2=switched(OLD, failed=True), web3=built()) == [
        f"  shop: web1 {NEW}, before {OLD}",
        f"  shop: web2 {OLD}, as before",
        f"  shop: web3 {OLD}, as before",
        "to go on when the reason is gone: the same command again",
        f"to take shop back: ansible-playbook funnel.tornado.rollback -i prod -e app=shop -e release={OLD}",
    ]


def test_hosts_that_served_different_releases_go_back_to_their_own() -> None:
    *_, first, second = said(web1=switched(), web2=switched(live=OLDER), web3=built())
    command = "to take shop back: ansible-playbook funnel.tornado.rollback -i prod -e app=shop"
    assert first == f"{command} -e release={OLD} --limit web1"
    assert second == f"{command} -e release={OLDER} --limit web2"


def test_a_new_host_has_nothing_to_go_back_to() -> None:
    lines = said(web1=switched(live=""), web2=switched(None, live="", failed=True))
    assert lines == [f"  shop: web1 {NEW}, before nothing", "  shop: web2 nothing, as before", lines[2]]


def test_of_a_host_that_was_lost_is_said_what_is_known() -> None:
    lost = {"__app_switched": {"results": [{"item": "shop", "unreachable": True}]}}
    assert said(web1=built() | lost)[0] == f"  shop: web1 was lost on the way; before, it served {OLD}"
    assert said(web1=built() | lost)[-1].endswith(f"-e app=shop -e release={OLD}")


def test_what_ran_once_counts_and_what_was_skipped_does_not() -> None:
    first = built() | {
        "__app_switched_once": {"results": [{"item": "shop", "release": NEW}]},
        "__app_switched": {"results": []},
    }
    second = built() | {"__app_switched_once": {"results": [{"item": "shop", "skipped": True}]}}
    assert said(web1=first, web2=second)[:2] == [f"  shop: web1 {NEW}, before {OLD}", f"  shop: web2 {OLD}, as before"]


def test_each_app_is_told_of() -> None:
    both = {
        "__app_releases": {"results": [*built()["__app_releases"]["results"], *built(app="blog")["__app_releases"]["results"]]}
    }
    assert [line.split()[0] for line in said(web1=both, web2=both)[:4]] == ["shop:", "shop:", "blog:", "blog:"]


def test_who_was_left_out_is_named_and_who_was_not_asked_is_not() -> None:
    assert said(web1=built(), web2={"app_host": {"unreachable": True}}, web3={})[1:2] == [
        "  web2 was left out, as it could not be reached"
    ]
