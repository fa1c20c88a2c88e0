"""Firewall rules: parsed from the role's variables, derived from the groups of a fleet, and rendered for nft.

All rules accept traffic and none drops it, so their order does not matter, and the union of two rule sets accepts what either
accepts.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    Doc,
    InvalidDataError,
    Network,
    Pattern,
    Range,
    parse,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CHALLENGE_PORT

#: The validated variables of the role firewall.
ALLOW, SSH_PORT, SSH_SOURCES = "firewall_allow", "firewall_ssh_port", "firewall_ssh_sources"

#: Networks that match any source.
ANY_SOURCE = ("0.0.0.0/0", "::/0")

#: The nftables table of the collection. Changes to it do not affect other tables, such as those of Docker.
TABLE = "inet funnel"

#: Protocol number of VRRP (RFC 9568); a minimal Debian has no /etc/protocols to resolve the name.
VRRP = 112

#: Client and peer ports of etcd, which are fixed in the role.
ETCD_CLIENT_PORT, ETCD_PEER_PORT = 2379, 2380

_INDENT = " " * 8
_CHAIN = """\
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state established,related accept
        # Connections from before the firewall was enabled are untracked and must survive; only a SYN opens a new one.
        tcp flags & (fin | syn | rst | ack) != syn accept
        # Path MTU discovery, error reports and IPv6 neighbor discovery depend on these (RFC 4890).
        icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept
        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request } accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query } accept
        # A DHCP lease may be renewed by a different server than the one queried.
        udp sport . udp dport { 67 . 68, 547 . 546 } accept
"""
_END = "    }\n}\n"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Traffic that is allowed: an entry of ``firewall_allow``."""

    protocol: Annotated[Literal["tcp", "udp", "vrrp"], Doc("Protocol.")] = "tcp"
    port: Annotated[int | None, Doc("Port on this host; not with VRRP."), Range(1, 65535)] = None
    sources: Annotated[list[str], Doc("Source addresses and networks; any if unset."), Network()] = field(
        default_factory=lambda: list(ANY_SOURCE)
    )
    comment: Annotated[
        str,
        Doc("Comment, shown by `nft list`."),
        Pattern(r"[ !#-\[\]-~]{0,128}", "at most 128 ASCII characters, without quotes and backslashes"),
    ] = ""

    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """Return the sources without overlaps, IPv4 first."""
        found = [ipaddress.ip_network(source) for source in self.sources]
        four = ipaddress.collapse_addresses(network for network in found if isinstance(network, ipaddress.IPv4Network))
        six = ipaddress.collapse_addresses(network for network in found if isinstance(network, ipaddress.IPv6Network))
        return [*four, *six]

    def lines(self) -> Iterator[str]:
        """Yield the rule in nft syntax: one line per IP version, or one for both."""
        match = f"meta l4proto {VRRP}" if self.protocol == "vrrp" else f"{self.protocol} dport {self.port}"
        comment = f' comment "{self.comment}"' if self.comment else ""
        networks = self.networks()
        if [str(network) for network in networks] == list(ANY_SOURCE):
            yield f"{match} accept{comment}"
            return
        for version, family in ((4, "ip"), (6, "ip6")):
            if sources := [str(network) for network in networks if network.version == version]:
                yield f"{family} saddr {{ {', '.join(sources)} }} {match} accept{comment}"


def parse_rules(allow: object, ssh_port: object, ssh_sources: object) -> list[Rule]:
    """Return the rules of the role's variables, beginning with SSH.

    :raises InvalidDataError: with all problems.
    """
    problems: list[str] = []
    if not isinstance(allow, list):
        problems.append(f"{ALLOW}: must be list; found {allow!r}")
    rules = []
    for number, entry in enumerate(allow if isinstance(allow, list) else []):
        path = f"{ALLOW}[{number}]"
        try:
            rule = parse(Rule, entry, path)
        except InvalidDataError as error:
            problems.extend(error.problems)
            continue
        if (rule.port is None) != (rule.protocol == "vrrp"):
            problems.append(
                f"{path}.port: " + ("is not supported by vrrp" if rule.port else f"is missing; {rule.protocol} requires it")
            )
        rules.append(rule)
    try:
        port = int(ssh_port) if isinstance(ssh_port, str) and ssh_port.isdigit() else ssh_port  # a template renders to str
        ssh = parse(_Ssh, {"port": port, "sources": ssh_sources}, "firewall_ssh")
    except InvalidDataError as error:
        problems.extend(problem.replace("firewall_ssh.", "firewall_ssh_", 1) for problem in error.problems)
    if problems:
        raise InvalidDataError(problems)
    return [Rule(port=ssh.port, sources=ssh.sources, comment="SSH"), *rules]


@dataclass(frozen=True, kw_only=True)
class _Ssh:
    port: Annotated[int, Range(1, 65535)]
    sources: Annotated[list[str], Network()]


def permits(rules: Iterable[Rule], address: str, port: int) -> bool:
    """Return whether the rules allow TCP connections from an address to a port."""
    source = ipaddress.ip_address(address.partition("%")[0])
    return any(
        rule.protocol == "tcp" and rule.port == port and any(source in network for network in rule.networks()) for rule in rules
    )


def render(lines: Sequence[str]) -> str:
    """Return the input of ``nft --file``: it creates or replaces the table atomically.

    The comment of the table is its `fingerprint`.
    """
    rules = "".join(f"{_INDENT}{line}\n" for line in lines)
    chain = f"{_CHAIN}{rules}{_END}"
    head = f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n"
    return f'# Ansible managed\n{head}    comment "{hashlib.sha256(chain.encode()).hexdigest()[:12]}"\n{chain}'


def fingerprint(text: str) -> str:
    """Return the hash that identifies a rule set, from the output of `render` or of ``nft list table``."""
    found = re.search(r'^\s*comment "(\w+)"$', text, re.MULTILINE)
    return found[1] if found else ""


def rule_lines(text: str) -> list[str]:
    """Return the rules in the output of `render`, without the fixed ones."""
    fixed = _CHAIN.splitlines()
    lines = text.partition("chain input {\n")[2].removesuffix(_END).splitlines()
    return [line.strip() for line in lines if line not in fixed and not line.lstrip().startswith("#")]


def fleet_rules(
    host: str,
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
    addresses: Mapping[str, Sequence[str]],
    acme_group: str = "",
) -> Iterator[Rule]:
    """Yield the rules that a host of a fleet needs in addition to SSH.

    :arg groups: hosts by group.
    :arg variables: those of the host, with the defaults of the roles ``nginx``, ``haproxy``, ``mongodb``, ``etcd`` and ``logs``.
    :arg addresses: source addresses by host.
    :arg acme_group: the group whose hosts get certificates from an ACME server; empty if there is none.
    """

    def peers(*names: str) -> list[str]:
        hosts = {name for group in names for name in groups.get(group, ())} - {host}
        return sorted({address for name in hosts for address in addresses[name]})

    if host in groups.get("app_hosts", ()):
        proxy = variables.get("app_proxy", "nginx")
        clients = peers("balancers") or list(ANY_SOURCE)
        yield from _ports(variables[f"{proxy}_listen"] + variables[f"{proxy}_listen_tls"], clients, proxy)
    if host in groups.get("balancers", ()):
        yield from _ports(variables["haproxy_listen"] + variables["haproxy_listen_tls"], list(ANY_SOURCE), "haproxy")
        if variables.get("keepalived_address"):
            yield Rule(protocol="vrrp", sources=variables.get("keepalived_peers") or peers("balancers"), comment="keepalived")
    if host in groups.get(acme_group, ()) and (acme_peers := peers(acme_group)):
        yield Rule(port=CHALLENGE_PORT, sources=acme_peers, comment="ACME challenges")
    if host in groups.get("mongodb", ()) and not _is_local(variables["mongodb_addresses"]):
        yield Rule(port=int(variables["mongodb_port"]), sources=peers("app_hosts", "mongodb"), comment="mongodb")
    if host in groups.get("etcd", ()) and not _is_local(variables["etcd_listen"]):
        yield Rule(port=ETCD_CLIENT_PORT, sources=peers("app_hosts", "etcd"), comment="etcd")
        yield Rule(port=ETCD_PEER_PORT, sources=peers("etcd"), comment="etcd peers")
    if host in groups.get("logs", ()) and not _is_local(variables["logs_listen"]):
        yield Rule(protocol="udp", port=int(variables["logs_port"]), sources=variables["logs_senders"], comment="logs")


def to_data(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """Return the rules as entries of ``firewall_allow``."""
    # Not dataclasses.asdict: it cannot copy the lazy lists in which Ansible passes templated variables.
    entries = [vars(rule) | {"sources": list(rule.sources)} for rule in rules]
    return [{key: value for key, value in entry.items() if value is not None} for entry in entries]


def _ports(listen: Iterable[object], sources: list[str], comment: str) -> Iterator[Rule]:
    """Yield a rule per port of ``listen`` addresses of nginx or HAProxy: ``80``, ``[::]:80``, ``192.0.2.1:8080``."""
    found = [str(address).rpartition(":") for address in listen]
    ports = {int(port) for host, _colon, port in found if port.isdigit() and not (host and _is_local([host.strip("[]")]))}
    yield from (Rule(port=port, sources=sources, comment=comment) for port in sorted(ports))


def _is_local(addresses: Iterable[str]) -> bool:
    """Return whether all addresses are loopback addresses; names are allowed."""

    def is_loopback(address: str) -> bool:
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return address == "localhost"

    return all(is_loopback(str(address)) for address in addresses)
