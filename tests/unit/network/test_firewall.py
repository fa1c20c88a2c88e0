"""Firewall rules: derived from the inventory, rendered for nft, and never locking out the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.filter.firewall_rules import firewall_rules
from ansible_collections.funnel.tornado.plugins.filter.fleet_problems import fleet_problems
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables
from ansible_collections.funnel.tornado.plugins.module_utils.network.firewall import (
    ANY_SOURCE,
    Rule,
    fingerprint,
    parse_rules,
    permits,
    render,
    rule_lines,
)
from ansible_collections.funnel.tornado.plugins.module_utils.network.nftables import FirewallError, require_connection

ALL = list(ANY_SOURCE)
GROUPS = {
    "app_hosts": ["web1", "web2"],
    "balancers": ["lb1", "lb2"],
    "mongodb": ["web2", "db1"],
    "etcd": ["web1", "web2", "db1"],
    "logs": ["logs1"],
}
#: Last octets of IP addresses, so that no name is resolved.
ADDRESSES = {"lb1": 1, "lb2": 2, "web1": 11, "web2": 12, "db1": 21, "logs1": 31}
GROUP_VARIABLES: dict[str, dict[str, Any]] = {
    "balancers": {"keepalived_address": "192.0.2.100/24"},
    "mongodb": {"mongodb_addresses": ["db.example.com"], "mongodb_port": "27018"},
    "etcd": {"etcd_listen": ["192.0.2.21"]},
    "logs": {"logs_listen": ["192.0.2.31"], "logs_senders": ["192.0.2.0/24", "2001:db8::/64"]},
}


def addresses(*hosts: str) -> list[str]:
    return [f"192.0.2.{ADDRESSES[host]}" for host in hosts]


def allowed(
    host: str, groups: dict[str, list[str]] | None = None, everywhere: dict[str, Any] | None = None, **variables: Any
) -> dict[str, list[str]]:
    """Return the allowed sources of a host of the fleet by protocol and port.

    ``variables`` are those of the host, and ``everywhere`` those of all hosts.
    """
    groups = GROUPS if groups is None else groups
    hostvars: dict[str, dict[str, Any]] = {
        name: {"ansible_host": f"192.0.2.{number}"} | (everywhere or {}) for name, number in ADDRESSES.items()
    }
    for group, members in groups.items():
        for name in members:
            hostvars[name] |= GROUP_VARIABLES.get(group, {})
    hostvars[host] |= variables
    rules = firewall_rules(groups, hostvars, host)
    return {f"{rule.get('protocol', 'tcp')} {rule.get('port', '')}".strip(): rule.get("sources", ALL) for rule in rules}


@pytest.mark.parametrize(("tls_at", "open_at"), [("balancers", {"lb1"}), ("app_hosts", {"web1"})])
def test_hosts_that_terminate_tls_exchange_acme_challenges(tls_at: str, open_at: set[str]) -> None:
    acme: dict[str, Any] = {"fleet_tls_at": tls_at, "tornado_apps": {"shop": {"tls": {"provider": "acme"}}}}
    found = {host: allowed(host, everywhere=acme) for host in ("lb1", "web1", "db1")}
    assert {host for host, rules in found.items() if "tcp 402" in rules} == open_at
    assert found["lb1"].get("tcp 402", addresses("lb2")) == addresses("lb2")
    alone = {"app_hosts": ["web1"]}
    assert "tcp 402" not in allowed("web1", alone, everywhere=acme), "there is no other host"


def test_each_tier_allows_only_the_required_traffic() -> None:
    assert allowed("lb1") == {"tcp 80": ALL, "tcp 443": ALL, "vrrp": addresses("lb2")}
    web1 = {"tcp 80": addresses("lb1", "lb2"), "tcp 443": addresses("lb1", "lb2")}
    assert allowed("web1") == web1 | {"tcp 2379": addresses("web2", "db1"), "tcp 2380": addresses("web2", "db1")}
    members = {"tcp 2379": addresses("web1", "db1"), "tcp 2380": addresses("web1", "db1")}
    assert allowed("web2") == web1 | members | {"tcp 27018": addresses("web1", "db1")}
    database = {
        "tcp 27018": addresses("web1", "web2"),
        "tcp 2379": addresses("web1", "web2"),
        "tcp 2380": addresses("web1", "web2"),
    }
    assert allowed("db1") == database
    assert allowed("logs1") == {"udp 514": ["192.0.2.0/24", "2001:db8::/64"]}


def test_app_hosts_allow_all_clients_without_load_balancers() -> None:
    assert allowed("web1", {"app_hosts": ["web1", "web2"]}) == {"tcp 80": ALL, "tcp 443": ALL}


def test_allowed_ports_are_the_listening_ports() -> None:
    single_host = {"app_hosts": ["web1"]}
    listen = ["127.0.0.1:81", "[::1]:82", "192.0.2.11:8080", "[::]:8080", "unix:/run/nginx.sock"]
    assert allowed("web1", single_host, nginx_listen=listen, nginx_listen_tls=[]) == {"tcp 8080": ALL}
    haproxy: dict[str, Any] = {"app_proxy": "haproxy", "haproxy_listen": ["8081"], "haproxy_listen_tls": ["8443"]}
    assert allowed("web1", single_host, **haproxy) == {"tcp 8081": ALL, "tcp 8443": ALL}
    assert allowed("db1", {"mongodb": ["db1"]}, mongodb_addresses=["127.0.0.1", "localhost", "::1"]) == {}
    assert allowed("db1", {"etcd": ["db1"]}, etcd_listen=[]) == {}
    assert allowed("logs1", {"logs": ["logs1"]}, logs_listen=["127.0.0.1"]) == {}
    assert "vrrp" not in allowed("lb1", keepalived_address="")
    assert allowed("lb1", keepalived_peers=["10.0.0.2"])["vrrp"] == ["10.0.0.2"]


def test_hosts_without_an_address_are_named() -> None:
    with pytest.raises(InvalidDataError, match="db1: its address does not resolve on the controller; set fleet_address"):
        firewall_rules({"etcd": ["db1"]}, {"db1": {"ansible_host": "x" * 64}}, "db1")


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        (Rule(port=80), ["tcp dport 80 accept"]),
        (Rule(port=53, protocol="udp", comment="names"), ['udp dport 53 accept comment "names"']),
        (Rule(protocol="vrrp", sources=["192.0.2.2"]), ["ip saddr { 192.0.2.2/32 } meta l4proto 112 accept"]),
        (Rule(port=80, sources=[]), []),
        (
            Rule(port=80, sources=["192.0.2.5", "192.0.2.0/24", "2001:db8::1"]),
            ["ip saddr { 192.0.2.0/24 } tcp dport 80 accept", "ip6 saddr { 2001:db8::1/128 } tcp dport 80 accept"],
        ),
        (Rule(port=80, sources=["0.0.0.0/0"]), ["ip saddr { 0.0.0.0/0 } tcp dport 80 accept"]),
    ],
)
def test_rule_is_rendered_as_one_line_per_ip_version(rule: Rule, lines: list[str]) -> None:
    assert list(rule.lines()) == lines


def test_all_problems_of_the_variables_are_reported_at_once() -> None:
    allow = [
        {"port": 80, "source": ["192.0.2.1"]},
        {"port": "http"},
        {"port": 80, "sources": "192.0.2.1"},
        {"port": 80, "sources": ["web1"], "comment": 'a "b"'},
        {"protocol": "udp"},
        {"protocol": "vrrp", "port": 1},
        80,
    ]
    with pytest.raises(InvalidDataError) as caught:
        parse_rules(allow, "ssh", ["0.0.0.0/33"])
    network = 'must be an IP address or a network, such as "192.0.2.7", "10.0.0.0/8" or "2001:db8::/32"'
    assert caught.value.problems == [
        "firewall_allow[0].source: unknown key; did you mean sources?",
        "firewall_allow[1].port: must be int; found 'http'",
        "firewall_allow[2].sources: must be list of str; found '192.0.2.1'",
        f"firewall_allow[3].sources[0]: {network}; found 'web1'",
        "firewall_allow[3].comment: must be at most 128 ASCII characters, without quotes and backslashes; found 'a \"b\"'",
        "firewall_allow[4].port: is missing; udp requires it",
        "firewall_allow[5].port: is not supported by vrrp",
        "firewall_allow[6]: must be dict, such as {protocol: ...}; found 80",
        "firewall_ssh_port: must be int; found 'ssh'",
        f"firewall_ssh_sources[0]: {network}; found '0.0.0.0/33'",
    ]
    with pytest.raises(InvalidDataError, match=r"^firewall_allow: must be list; found 'all'$"):
        parse_rules("all", 22, ALL)


def test_fleet_check_validates_hosts_with_an_enabled_firewall() -> None:
    wrong = {"ansible_host": "192.0.2.1", "firewall_allow": [{"port": 0}]}
    groups = {"app_hosts": ["web1", "web2"]}
    assert fleet_problems(groups, {"web1": wrong, "web2": wrong}) == []
    enabled = wrong | {"firewall_enabled": True}
    assert fleet_problems(groups, {"web1": enabled, "web2": enabled}) == [
        "firewall_allow[0].port: must be from 1 to 65535; found 0"
    ]


def test_rules_that_block_the_current_connection_are_refused() -> None:
    connection = "192.0.2.5 50000 192.0.2.11 22"
    require_connection(parse_rules([], "22", ALL), connection, "web1")
    require_connection(parse_rules([], 22, ["192.0.2.0/24"]), connection, "web1")
    require_connection(parse_rules([{"port": 22}], 2222, ALL), connection, "web1")
    require_connection(parse_rules([], 22, ["fe80::/10"]), "fe80::1%eth0 50000 fe80::2%eth0 22", "web1")
    require_connection(parse_rules([], 22, []), "", "web1")
    with pytest.raises(FirewallError) as caught:
        require_connection(parse_rules([{"port": 22, "protocol": "udp"}], 22, ["198.51.100.0/24", "::/0"]), connection, "web1")
    assert str(caught.value) == (
        "firewall_ssh_port, firewall_ssh_sources: web1 is connected from 192.0.2.5 to port 22, but SSH would "
        "be allowed only from 198.51.100.0/24, ::/0 to port 22; nothing was changed"
    )
    with pytest.raises(FirewallError, match="to port 2222; nothing"):
        require_connection(parse_rules([], 2222, ALL), connection, "web1")
    assert not permits([Rule(port=22, sources=["2001:db8::/32"])], "192.0.2.5", 22)


def test_widened_state_also_allows_the_rules_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "FILE", file := tmp_path / "firewall.nft")
    current, desired = parse_rules([{"port": 80}], 22, ALL), parse_rules([{"port": 81}], 22, ALL)
    assert nftables.desired_table(desired, "widened").lines is None, "without a table everything is allowed"
    lines = [line for rule in current for line in rule.lines()]
    file.write_text(render(lines))
    assert rule_lines(file.read_text()) == lines
    ssh = 'tcp dport 22 accept comment "SSH"'
    assert nftables.desired_table(desired, "widened").lines == [ssh, "tcp dport 81 accept", "tcp dport 80 accept"]
    assert nftables.desired_table(desired, "present").lines == [ssh, "tcp dport 81 accept"]
    assert nftables.desired_table(desired, "absent").lines is None


def test_loaded_table_that_differs_from_the_file_is_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "FILE", file := tmp_path / "firewall.nft")
    assert nftables.drift() == ""
    file.write_text(render(["tcp dport 80 accept"]))
    assert "is not active" in nftables.drift()


def test_fingerprint_identifies_a_rule_set() -> None:
    one, other = render(["tcp dport 80 accept"]), render(["tcp dport 81 accept"])
    assert fingerprint(one) == fingerprint(render(["tcp dport 80 accept"])) != fingerprint(other)
    assert fingerprint("") == ""
    assert fingerprint('table inet funnel {\n\tcomment "0123456789ab"\n\tchain input {\n\t}\n}\n') == "0123456789ab"
