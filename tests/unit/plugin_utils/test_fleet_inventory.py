"""Groups, addresses and load balancers of a fleet, and the filters that read and validate them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.funnel.tornado.plugins.filter.fleet_hosts import fleet_hosts
from ansible_collections.funnel.tornado.plugins.filter.fleet_problems import fleet_problems
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import (
    acme_group,
    fleet_addresses,
    floating_ip_problems,
    resolve,
)

ROOT = Path(__file__).parents[3]

#: A name that cannot resolve: DNS labels have at most 63 characters.
UNRESOLVABLE = "x" * 64

SHOP: dict[str, Any] = {"source": {"path": "files/shop"}, "run": {"app": "shop:make_app"}}
GROUPS = {"app_hosts": ["web1", "web2"], "balancers": ["lb1", "lb2"]}
HOSTS: dict[str, dict[str, Any]] = {
    "web1": {"ansible_host": "192.0.2.11", "tornado_apps": {"shop": SHOP}},
    "web2": {"ansible_host": "192.0.2.12", "tornado_apps": {"shop": SHOP}},
    "lb1": {"ansible_host": "192.0.2.1"},
    "lb2": {"ansible_host": "192.0.2.2"},
}


def problems(
    groups: dict[str, list[str]] | None = None, rolling_update: dict[str, Any] | None = None, **changes: dict[str, Any]
) -> list[str]:
    """Return the mistakes in a fleet with changed variables of some hosts."""
    hostvars = {host: variables | changes.get(host, {}) for host, variables in HOSTS.items()}
    return fleet_problems(GROUPS | (groups or {}), hostvars, rolling_update)


def backend_problems(backends: dict[str, Any]) -> list[str]:
    """Return the mistakes when both load balancers have these backends."""
    return problems(lb1={"haproxy_backends": backends}, lb2={"haproxy_backends": backends})


def test_fleet_hosts_are_unique_with_load_balancers_last() -> None:
    groups = GROUPS | {"etcd": ["web2", "db1"], "others": ["db2"]}
    assert fleet_hosts(groups) == ["web1", "web2", "db1", "lb1", "lb2"]
    assert fleet_hosts(groups, ["logs", "etcd"]) == ["web2", "db1"]


def test_fleet_hosts_have_the_variable_unless_hostvars_are_undefined() -> None:
    hostvars = HOSTS | {"lb1": {"firewall_enabled": False}}
    assert fleet_hosts(GROUPS, variable="firewall_enabled", hostvars=hostvars) == ["lb1"]
    assert fleet_hosts(GROUPS, variable="firewall_enabled") == ["web1", "web2", "lb1", "lb2"]


def test_address_is_fleet_address_or_ansible_host_or_the_name() -> None:
    hostvars = {"web1": {"fleet_address": "10.0.0.1", "ansible_host": "192.0.2.11"}, "web2": {"ansible_host": "2001:db8:0::2"}}
    assert fleet_addresses(["web1", "web2", "localhost", "192.0.2.13"], hostvars) == {
        "web1": "10.0.0.1",
        "web2": "2001:db8::2",
        "localhost": "127.0.0.1",
        "192.0.2.13": "192.0.2.13",
    }


def test_all_hosts_that_do_not_resolve_are_reported() -> None:
    with pytest.raises(InvalidDataError) as caught:
        fleet_addresses(
            ["web1", "web2", "web3"],
            {"web1": {"ansible_host": UNRESOLVABLE}, "web2": {"ansible_host": "::1"}, "web3": {"fleet_address": UNRESOLVABLE}},
        )
    assert caught.value.problems == [
        "web1: its address does not resolve on the controller; set fleet_address",
        "web3: its address does not resolve on the controller; set fleet_address",
    ]


def test_an_unresolvable_name_has_no_address() -> None:
    assert resolve(UNRESOLVABLE) is None


def test_fleets_with_and_without_load_balancers_are_valid() -> None:
    assert problems() == []
    assert problems({"balancers": []}) == []
    assert fleet_problems({"app_hosts": []}, {}) == []


def test_acme_is_valid_with_and_without_load_balancers() -> None:
    acme = {"tornado_apps": {"shop": SHOP | {"tls": {"provider": "acme"}}}}
    assert problems({"balancers": []}, web1=acme) == []
    assert problems(web1=acme) == []


@pytest.mark.parametrize("apps", [None, [], {"shop": None}, {"shop": {"tls": "acme"}}])
def test_malformed_apps_are_left_to_the_app_model(apps: object) -> None:
    assert all("shop" not in problem for problem in problems(web1={"tornado_apps": apps}))
    assert acme_group({"app_hosts": ["web1"]}, {"web1": {"tornado_apps": apps}}) == ""


def test_fleet_tls_at_has_two_values() -> None:
    assert problems(lb1={"fleet_tls_at": "app_hosts"}) == []
    assert problems(lb1={"fleet_tls_at": "nginx"}) == ["fleet_tls_at: must be balancers or app_hosts; found 'nginx'"]


def test_a_load_balancer_cannot_be_an_app_host() -> None:
    assert problems({"balancers": ["lb1", "web2"]}) == [
        "web2: is in balancers and app_hosts, but HAProxy and nginx need the same ports; use separate hosts"
    ]


def test_a_load_balancer_needs_a_backend() -> None:
    nothing = "is in balancers but has no backend; app_hosts needs a host, and tornado_apps an app"
    assert problems({"app_hosts": []}) == [f"lb1: {nothing}", f"lb2: {nothing}"]
    assert problems(web1={"tornado_apps": {}}) == [f"lb1: {nothing}", f"lb2: {nothing}"]
    assert problems(lb2={"haproxy_backends": {}}) == ["haproxy_backends of lb2: is empty; unset it to get a backend for each app"]


@pytest.mark.parametrize(
    "servers",
    [
        {"web1": "192.0.2.99", "web2": {"address": "192.0.2.99", "weight": 2}},
        {"a": "192.0.2.11", "b": {"address": "192.0.2.12"}},
        {"a": "192.0.2.11:8080", "b": {"address": "192.0.2.12:8080"}},
    ],
)
def test_a_server_matches_an_app_host_by_name_or_address(servers: dict[str, Any]) -> None:
    assert backend_problems({"shop": {"servers": servers}}) == []


def test_an_app_host_in_no_backend_is_reported() -> None:
    partial = {"shop": {"servers": {"a": "192.0.2.11"}}}
    assert backend_problems(partial) == [
        "web2: is in app_hosts but in no backend of any load balancer; add 192.0.2.12 to haproxy_backends"
    ]
    assert problems(lb1={"haproxy_backends": partial}) == [], "the other load balancer has all of them"


@pytest.mark.parametrize("backends", [{"shop": None}, {"shop": {}}, {"shop": {"servers": ["192.0.2.11"]}}])
def test_malformed_backends_are_left_to_the_role(backends: dict[str, Any]) -> None:
    assert backend_problems(backends) == []


def test_an_unresolvable_host_is_the_only_reported_problem() -> None:
    assert problems(web2={"ansible_host": UNRESOLVABLE}) == [
        "web2: its address does not resolve on the controller; set fleet_address"
    ]
    assert problems(lb1={"ansible_host": UNRESOLVABLE}) == [
        "lb1: its address does not resolve on the controller; set fleet_address"
    ]


def test_options_of_the_rolling_update_are_validated() -> None:
    assert problems(rolling_update={"batch": "2", "canary": True, "pause": 60}) == []
    assert problems(rolling_update={"batch": 0}, lb2={"haproxy_backends": {}})[0].startswith("batch: must be a number of hosts")


@pytest.mark.parametrize(
    ("groups", "names", "expected"),
    [
        (
            {"app_host": ["web1"]},
            ["app_hosts"],
            "group app_host: the collection has no such group; did you mean app_hosts?",
        ),
        ({"app_hosts": ["web1"], "balancer": ["lb1"]}, ["app_hosts"], "group balancer: .* did you mean balancers?"),
        ({"web": ["web1"], "empty": []}, ["app_hosts"], "no host in the group app_hosts; groups with hosts are: web"),
        ({}, ["app_hosts", "logs"], "no host in the groups app_hosts, logs; groups with hosts are: none"),
        ({"app_hosts": []}, ["app_hosts"], "no host in the group app_hosts"),
    ],
)
def test_a_play_without_hosts_or_with_a_misspelled_group_is_rejected(
    groups: dict[str, list[str]], names: list[str], expected: str
) -> None:
    with pytest.raises(InvalidDataError, match=expected):
        fleet_hosts(groups | {"all": [], "ungrouped": []}, names, required=True)


def test_a_playbook_for_whole_hosts_rejects_the_name_of_an_app() -> None:
    with pytest.raises(
        InvalidDataError, match=r"app: this playbook acts on whole hosts.* without -e app=shop,.* nothing was changed"
    ):
        fleet_hosts({"app_hosts": ["web1"]}, ["app_hosts"], app="shop")


def test_every_playbook_uses_or_rejects_the_name_of_an_app() -> None:
    """A playbook that uses it says so in its first lines."""
    for path in (ROOT / "playbooks").glob("*.yml"):
        text = path.read_text()
        usage, plays = [line for line in text.splitlines() if line.startswith("#")], yaml.safe_load(text)
        if usage and f"# ansible-playbook playbooks/{path.name}" in usage[0] and "-e app=" not in "".join(usage):
            while "ansible.builtin.import_playbook" in plays[0]:
                plays = yaml.safe_load((path.parent / plays[0]["ansible.builtin.import_playbook"]).read_text())
            assert re.search(r"(?s)fleet_hosts\(.*app=.*app \| default", plays[0]["hosts"]), path


def test_other_groups_of_the_user_are_accepted() -> None:
    groups = {"app_hosts": ["web1"], "app_hosts_berlin": ["web1"], "databases": ["db1"], "mongodb": [], "reached": ["web1"]}
    assert fleet_hosts(groups, ["app_hosts"], required=True) == ["web1"]


def test_every_playbook_rejects_an_inventory_without_its_groups() -> None:
    playbooks = {path: yaml.safe_load(path.read_text()) for path in (ROOT / "playbooks").glob("*.yml")}
    for path, plays in playbooks.items():
        if path.name in (
            "backends.yml",
            "certificates.yml",
            "report.yml",
            "services.yml",
            "switch.yml",
        ):  # imported after the check
            continue
        first = plays
        while "ansible.builtin.import_playbook" in first[0]:
            first = playbooks[path.parent / first[0]["ansible.builtin.import_playbook"]]
        assert any("required=" in str(play.get("hosts")) for play in first), path


def test_a_floating_ip_of_another_family_than_its_host_is_reported() -> None:
    own = {"lb1": "2001:db8::1", "lb2": "192.0.2.2", "lb3": "192.0.2.3", "lb4": "192.0.2.4"}
    floating = {"lb1": "192.0.2.9/24", "lb2": "192.0.2.9", "lb3": "", "lb4": "not an address"}
    assert list(floating_ip_problems(own, floating)) == [
        "lb1: keepalived_address 192.0.2.9/24 is IPv4, but the address of the host within the fleet is 2001:db8::1; "
        "set fleet_address to its IPv4 address, or choose another floating IP"
    ]


def test_mistakes_in_notifications_are_reported_once_and_without_urls() -> None:
    wrong = {"fleet_notifications": [{"webhook": "t0ken"}]}
    assert problems(web1=wrong, web2=wrong) == ["fleet_notifications[0].webhook: must be a URL; found (not shown)"]
    assert problems(web1={"fleet_notification": []}) == [
        "fleet_notification of web1: no such variable of the role fleet; did you mean fleet_notifications?"
    ]


WILD = SHOP | {"tls": {"provider": "acme", "challenge": "dns", "names": ["*.shop.test"]}}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["tornado_apps.shop.tls.challenge: dns requires certificates_acme_dns, which is missing"]),
        ({"certificates_acme_dns": {"plugin": "digitalocean", "credentials": {"token": "x"}}}, []),
        (
            {"certificates_acme_dns": {"plugin": "digitalocean"}},
            ["certificates_acme_dns.credentials.token: is missing; digitalocean requires token"],
        ),
        (
            {"certificates_acme_dns": {"plugin": "route53"}, "certificates_acme_eab_key_id": "x"},
            ["certificates_acme_eab_key_id: requires certificates_acme_eab_hmac_key, which is missing"],
        ),
    ],
)
def test_mistakes_about_acme_are_found_where_tls_ends(variables: dict[str, Any], expected: list[str]) -> None:
    apps: dict[str, Any] = {"tornado_apps": {"shop": WILD}}
    assert problems(web1=apps, web2=apps, lb1=variables, lb2=variables) == expected
    alone = {"web1": apps | variables, "web2": apps | variables}
    assert problems({"balancers": []}, **alone) == expected
