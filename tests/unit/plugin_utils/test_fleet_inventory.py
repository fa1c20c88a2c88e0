"""What the hosts of a fleet have to do with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.filter.fleet_hosts import fleet_hosts
from ansible_collections.funnel.tornado.plugins.filter.fleet_problems import fleet_problems
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import fleet_addresses, resolve

ROOT = Path(__file__).parents[3]

#: A name that no resolver is asked for: DNS has none of more than 63 letters.
UNKNOWN = "x" * 64

SHOP: dict[str, Any] = {"source": {"path": "files/shop"}, "run": {"app": "shop:make_app"}}
GROUPS = {"app_hosts": ["web1", "web2"], "balancers": ["lb1", "lb2"]}
HOSTS: dict[str, dict[str, Any]] = {
    "web1": {"ansible_host": "192.0.2.11", "tornado_apps": {"shop": SHOP}},
    "web2": {"ansible_host": "192.0.2.12", "tornado_apps": {"shop": SHOP}},
    "lb1": {"ansible_host": "192.0.2.1"},
    "lb2": {"ansible_host": "192.0.2.2"},
}


def problems(
    groups: dict[str, list[str]] | None = None, roll: dict[str, Any] | None = None, **changes: dict[str, Any]
) -> list[str]:
    """Return what is wrong with a fleet in which ``changes`` are other variables of some hosts."""
    hostvars = {host: variables | changes.get(host, {}) for host, variables in HOSTS.items()}
    return fleet_problems(GROUPS | (groups or {}), hostvars, roll)


def balanced(backends: dict[str, Any]) -> list[str]:
    """Return what is wrong when both balancers have these backends."""
    return problems(lb1={"haproxy_backends": backends}, lb2={"haproxy_backends": backends})


def test_a_play_has_each_host_once_and_the_balancers_last() -> None:
    groups = GROUPS | {"etcd": ["web2", "db1"], "others": ["db2"]}
    assert fleet_hosts(groups) == ["web1", "web2", "db1", "lb1", "lb2"]
    assert fleet_hosts(groups, ["logs", "etcd"]) == ["web2", "db1"]


def test_a_play_has_the_hosts_that_have_a_variable_or_all_as_long_as_none_is_known() -> None:
    hostvars = HOSTS | {"lb1": {"firewall_enabled": False}}
    assert fleet_hosts(GROUPS, variable="firewall_enabled", hostvars=hostvars) == ["lb1"]
    assert fleet_hosts(GROUPS, variable="firewall_enabled") == ["web1", "web2", "lb1", "lb2"]


def test_a_host_is_where_the_fleet_is_told_or_where_ansible_reaches_it_or_what_it_is_called() -> None:
    hostvars = {"web1": {"fleet_address": "10.0.0.1", "ansible_host": "192.0.2.11"}, "web2": {"ansible_host": "2001:db8:0::2"}}
    assert fleet_addresses(["web1", "web2", "localhost", "192.0.2.13"], hostvars) == {
        "web1": "10.0.0.1",
        "web2": "2001:db8::2",
        "localhost": "127.0.0.1",
        "192.0.2.13": "192.0.2.13",
    }


def test_all_hosts_that_are_nowhere_are_named() -> None:
    with pytest.raises(InvalidDataError) as caught:
        fleet_addresses(
            ["web1", "web2", "web3"],
            {"web1": {"ansible_host": UNKNOWN}, "web2": {"ansible_host": "::1"}, "web3": {"fleet_address": UNKNOWN}},
        )
    assert caught.value.problems == [
        "web1: has no address that could be found here; set fleet_address",
        "web3: has no address that could be found here; set fleet_address",
    ]


def test_an_empty_name_has_no_address() -> None:
    assert resolve(UNKNOWN) is None


def test_a_fleet_with_and_without_balancers_is_right() -> None:
    assert problems() == []
    assert problems({"balancers": []}) == []
    assert fleet_problems({"app_hosts": []}, {}) == []


def test_a_fleet_without_balancers_may_have_its_certificates_from_where_it_likes() -> None:
    acme = {"tornado_apps": {"shop": SHOP | {"tls": {"provider": "acme"}}}}
    assert problems({"balancers": []}, web1=acme) == []
    [problem] = problems(web1=acme)
    assert problem.startswith("tornado_apps.shop.tls.provider: acme is for hosts without balancers")
    assert problem.endswith("use files or self_signed")


@pytest.mark.parametrize("apps", [None, [], {"shop": None}, {"shop": {"tls": "acme"}}])
def test_entries_that_are_no_entries_are_left_to_those_who_know_them(apps: object) -> None:
    assert all("shop" not in problem for problem in problems(web1={"tornado_apps": apps}))


def test_tls_ends_in_one_of_two_places() -> None:
    assert problems(lb1={"fleet_tls_at": "app_hosts"}) == []
    assert problems(lb1={"fleet_tls_at": "nginx"}) == ["fleet_tls_at: must be balancers or app_hosts; found 'nginx'"]


def test_a_balancer_is_no_app_host() -> None:
    assert problems({"balancers": ["lb1", "web2"]}) == [
        "web2: is in balancers and in app_hosts, and HAProxy takes the ports of nginx; a balancer is a host of its own"
    ]


def test_a_balancer_has_something_to_balance() -> None:
    nothing = "is in balancers and has no backend; app_hosts needs a host, and tornado_apps an app"
    assert problems({"app_hosts": []}) == [f"lb1: {nothing}", f"lb2: {nothing}"]
    assert problems(web1={"tornado_apps": {}}) == [f"lb1: {nothing}", f"lb2: {nothing}"]
    assert problems(lb2={"haproxy_backends": {}}) == [
        "haproxy_backends of lb2: is empty, so there is nothing to balance; leave it out to have one of each app"
    ]


@pytest.mark.parametrize(
    "servers",
    [
        {"web1": "192.0.2.99", "web2": {"address": "192.0.2.99", "weight": 2}},
        {"a": "192.0.2.11", "b": {"address": "192.0.2.12"}},
        {"a": "192.0.2.11:8080", "b": {"address": "192.0.2.12:8080"}},
    ],
)
def test_an_app_host_is_known_by_its_name_or_its_address(servers: dict[str, Any]) -> None:
    assert balanced({"shop": {"servers": servers}}) == []


def test_an_app_host_that_no_balancer_leads_to_is_named() -> None:
    one = {"shop": {"servers": {"a": "192.0.2.11"}}}
    assert balanced(one) == ["web2: is in app_hosts, and in no backend of any balancer; add 192.0.2.12 to haproxy_backends"]
    assert problems(lb1={"haproxy_backends": one}) == [], "the other one leads to all of them"


@pytest.mark.parametrize("backends", [{"shop": None}, {"shop": {}}, {"shop": {"servers": ["192.0.2.11"]}}])
def test_backends_that_are_none_are_left_to_the_role(backends: dict[str, Any]) -> None:
    assert balanced(backends) == []


def test_an_app_host_that_is_nowhere_is_all_that_is_said() -> None:
    assert problems(web2={"ansible_host": UNKNOWN}) == ["web2: has no address that could be found here; set fleet_address"]
    assert problems(lb1={"ansible_host": UNKNOWN}) == ["lb1: has no address that could be found here; set fleet_address"]


def test_what_a_roll_is_told_is_checked_with_the_fleet() -> None:
    assert problems(roll={"batch": "2", "canary": True, "pause": 60}) == []
    assert problems(roll={"batch": 0}, lb2={"haproxy_backends": {}})[0].startswith("batch: must be a number of hosts")


@pytest.mark.parametrize(
    ("groups", "names", "expected"),
    [
        (
            {"app_host": ["web1"]},
            ["app_hosts"],
            "group app_host: there is no such group in the collection; did you mean app_hosts?",
        ),
        ({"app_hosts": ["web1"], "balancer": ["lb1"]}, ["app_hosts"], "group balancer: .* did you mean balancers?"),
        ({"web": ["web1"], "empty": []}, ["app_hosts"], "no host in the group app_hosts; groups with hosts are: web"),
        ({}, ["app_hosts", "logs"], "no host in the groups app_hosts, logs; groups with hosts are: none"),
        ({"app_hosts": []}, ["app_hosts"], "no host in the group app_hosts"),
    ],
)
def test_a_play_without_hosts_or_with_a_misspelt_group_is_refused(
    groups: dict[str, list[str]], names: list[str], expected: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=expected):
        fleet_hosts(groups | {"all": [], "ungrouped": []}, names, required=True)


def test_groups_of_the_user_are_accepted_beside_those_of_the_collection() -> None:
    groups = {"app_hosts": ["web1"], "app_hosts_berlin": ["web1"], "databases": ["db1"], "mongodb": [], "reached": ["web1"]}
    assert fleet_hosts(groups, ["app_hosts"], required=True) == ["web1"]


def test_every_playbook_refuses_an_inventory_without_its_groups() -> None:
    playbooks = {path: yaml.safe_load(path.read_text()) for path in (ROOT / "playbooks").glob("*.yml")}
    for path, plays in playbooks.items():
        if path.name in ("services.yml", "switch.yml"):  # parts of site.yml and deploy.yml, after their check
            continue
        first = plays
        while "ansible.builtin.import_playbook" in first[0]:
            first = playbooks[path.parent / first[0]["ansible.builtin.import_playbook"]]
        assert any("required=" in str(play.get("hosts")) for play in first), path
