"""What hosts let in: derived from an inventory, as nft reads it, and never such that it locks out who sets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

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
#: No name of theirs would be looked up.
ADDRESSES = {"lb1": 1, "lb2": 2, "web1": 11, "web2": 12, "db1": 21, "logs1": 31}
GROUP_VARIABLES: dict[str, dict[str, Any]] = {
    "balancers": {"keepalived_address": "192.0.2.100/24"},
    "mongodb": {"mongodb_addresses": ["db.example.com"], "mongodb_port": "27018"},
    "etcd": {"etcd_listen": ["192.0.2.21"]},
    "logs": {"logs_listen": ["192.0.2.31"], "logs_senders": ["192.0.2.0/24", "2001:db8::/64"]},
}


def at(*hosts: str) -> list[str]:
    return [f"192.0.2.{ADDRESSES[host]}" for host in hosts]


def let_in(host: str, groups: dict[str, list[str]] | None = None, **variables: Any) -> dict[str, list[str]]:
    """Return who is let in by a host of the fleet, by what is let in; ``variables`` are the host's own."""
    groups = GROUPS if groups is None else groups
    hostvars: dict[str, dict[str, Any]] = {name: {"ansible_host": f"192.0.2.{number}"} for name, number in ADDRESSES.items()}
    for group, members in groups.items():
        for name in members:
            hostvars[name] |= GROUP_VARIABLES.get(group, {})
    hostvars[host] |= variables
    rules = firewall_rules(groups, hostvars, host)
    return {f"{rule.get('protocol', 'tcp')} {rule.get('port', '')}".strip(): rule.get("sources", ALL) for rule in rules}


def test_every_tier_lets_in_what_it_needs_and_nothing_else() -> None:
    assert let_in("lb1") == {"tcp 80": ALL, "tcp 443": ALL, "vrrp": at("lb2")}
    web1 = {"tcp 80": at("lb1", "lb2"), "tcp 443": at("lb1", "lb2")}
    assert let_in("web1") == web1 | {"tcp 2379": at("web2", "db1"), "tcp 2380": at("web2", "db1")}
    members = {"tcp 2379": at("web1", "db1"), "tcp 2380": at("web1", "db1")}
    assert let_in("web2") == web1 | members | {"tcp 27018": at("web1", "db1")}
    database = {"tcp 27018": at("web1", "web2"), "tcp 2379": at("web1", "web2"), "tcp 2380": at("web1", "web2")}
    assert let_in("db1") == database
    assert let_in("logs1") == {"udp 514": ["192.0.2.0/24", "2001:db8::/64"]}


def test_without_balancers_clients_come_to_the_app_hosts() -> None:
    assert let_in("web1", {"app_hosts": ["web1", "web2"]}) == {"tcp 80": ALL, "tcp 443": ALL}


def test_ports_are_those_that_are_listened_at() -> None:
    alone = {"app_hosts": ["web1"]}
    listen = ["127.0.0.1:81", "[::1]:82", "192.0.2.11:8080", "[::]:8080", "unix:/run/nginx.sock"]
    assert let_in("web1", alone, nginx_listen=listen, nginx_listen_tls=[]) == {"tcp 8080": ALL}
    haproxy = {"app_proxy": "haproxy", "haproxy_listen": ["8081"], "haproxy_listen_tls": ["8443"]}
    assert let_in("web1", alone, **haproxy) == {"tcp 8081": ALL, "tcp 8443": ALL}
    assert let_in("db1", {"mongodb": ["db1"]}, mongodb_addresses=["127.0.0.1", "localhost", "::1"]) == {}
    assert let_in("db1", {"etcd": ["db1"]}, etcd_listen=[]) == {}
    assert let_in("logs1", {"logs": ["logs1"]}, logs_listen=["127.0.0.1"]) == {}
    assert "vrrp" not in let_in("lb1", keepalived_address="")
    assert let_in("lb1", keepalived_peers=["10.0.0.2"])["vrrp"] == ["10.0.0.2"]


def test_hosts_that_are_nowhere_are_named() -> None:
    with pytest.raises(AnsibleFilterError, match="db1: has no address that could be found here; set fleet_address"):
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
def test_a_rule_is_a_line_for_each_version_of_ip(rule: Rule, lines: list[str]) -> None:
    assert list(rule.lines()) == lines


def test_every_mistake_of_the_variables_is_in_one_message() -> None:
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
        "firewall_allow[3].comment: must be at most 128 letters of ASCII, without quotes and backslashes; found 'a \"b\"'",
        "firewall_allow[4].port: is missing; udp has one",
        "firewall_allow[5].port: vrrp has none",
        "firewall_allow[6]: must be dict; found 80",
        "firewall_ssh_port: must be int; found 'ssh'",
        f"firewall_ssh_sources[0]: {network}; found '0.0.0.0/33'",
    ]
    with pytest.raises(InvalidDataError, match=r"^firewall_allow: must be list; found 'all'$"):
        parse_rules("all", 22, ALL)


def test_mistakes_are_found_before_anything_changes_where_the_firewall_is_on() -> None:
    wrong = {"ansible_host": "192.0.2.1", "firewall_allow": [{"port": 0}]}
    groups = {"app_hosts": ["web1", "web2"]}
    assert fleet_problems(groups, {"web1": wrong, "web2": wrong}) == []
    on = wrong | {"firewall_enabled": True}
    assert fleet_problems(groups, {"web1": on, "web2": on}) == ["firewall_allow[0].port: must be from 1 to 65535; found 0"]


def test_rules_that_would_lock_out_who_sets_them_are_refused() -> None:
    connection = "192.0.2.5 50000 192.0.2.11 22"
    require_connection(parse_rules([], "22", ALL), connection, "web1")
    require_connection(parse_rules([], 22, ["192.0.2.0/24"]), connection, "web1")
    require_connection(parse_rules([{"port": 22}], 2222, ALL), connection, "web1")
    require_connection(parse_rules([], 22, ["fe80::/10"]), "fe80::1%eth0 50000 fe80::2%eth0 22", "web1")
    require_connection(parse_rules([], 22, []), "", "web1")
    with pytest.raises(FirewallError) as caught:
        require_connection(parse_rules([{"port": 22, "protocol": "udp"}], 22, ["198.51.100.0/24", "::/0"]), connection, "web1")
    assert str(caught.value) == (
        "firewall_ssh_port, firewall_ssh_sources: web1 is reached from 192.0.2.5 at port 22, and would let SSH in "
        "from 198.51.100.0/24, ::/0 at port 22 alone; nothing was changed"
    )
    with pytest.raises(FirewallError, match="at port 2222 alone"):
        require_connection(parse_rules([], 2222, ALL), connection, "web1")
    assert not permits([Rule(port=22, sources=["2001:db8::/32"])], "192.0.2.5", 22)


def test_what_was_let_in_before_is_known_from_the_file_and_stays_while_a_fleet_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftables, "FILE", file := tmp_path / "firewall.nft")
    before, after = parse_rules([{"port": 80}], 22, ALL), parse_rules([{"port": 81}], 22, ALL)
    assert nftables.desired_table(after, "widened").lines is None, "without a table everything is let in"
    lines = [line for rule in before for line in rule.lines()]
    file.write_text(render(lines))
    assert rule_lines(file.read_text()) == lines
    ssh = 'tcp dport 22 accept comment "SSH"'
    assert nftables.desired_table(after, "widened").lines == [ssh, "tcp dport 81 accept", "tcp dport 80 accept"]
    assert nftables.desired_table(after, "present").lines == [ssh, "tcp dport 81 accept"]
    assert nftables.desired_table(after, "absent").lines is None


def test_a_table_that_is_not_the_one_of_the_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "FILE", file := tmp_path / "firewall.nft")
    assert nftables.drift() == ""
    file.write_text(render(["tcp dport 80 accept"]))
    assert "is not in force" in nftables.drift()


def test_tables_are_told_apart_by_their_mark() -> None:
    one, other = render(["tcp dport 80 accept"]), render(["tcp dport 81 accept"])
    assert fingerprint(one) == fingerprint(render(["tcp dport 80 accept"])) != fingerprint(other)
    assert fingerprint("") == ""
    assert fingerprint('table inet funnel {\n\tcomment "0123456789ab"\n\tchain input {\n\t}\n}\n') == "0123456789ab"
