"""What a host lets in: rules from variables, and from what the hosts of a fleet are to each other; and what nft is told of them.

All rules let something in and none keeps anything out, so their order says nothing, and the union of two sets of rules lets in
what either does.
"""

from __future__ import annotations

import dataclasses
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

#: The variables of the role firewall that are checked here.
ALLOW, SSH_PORT, SSH_SOURCES = "firewall_allow", "firewall_ssh_port", "firewall_ssh_sources"

#: Networks of everybody.
ANY_SOURCE = ("0.0.0.0/0", "::/0")

#: The table that the rules are in. A change of it leaves those of others, such as Docker's, alone.
TABLE = "inet funnel"

#: VRRP's number (RFC 9568); a minimal Debian has no /etc/protocols that would know its name.
VRRP = 112

#: Ports of etcd for clients and for members, which the role does not change.
ETCD_CLIENT_PORT, ETCD_PEER_PORT = 2379, 2380

_INDENT = " " * 8
_CHAIN = """\
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state established,related accept
        # What is under way when this is turned on is not known yet, and not cut. Only SYN alone begins a connection.
        tcp flags & (fin | syn | rst | ack) != syn accept
        # Without these, networks lose packets in silence, and hosts of IPv6 each other (RFC 4890).
        icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept
        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request } accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query } accept
        # A lease may be renewed by another server than the one that was asked.
        udp sport . udp dport { 67 . 68, 547 . 546 } accept
"""
_BEFORE = f"{_INDENT}# From here on, what the variables say.\n"
_AFTER = "    }\n}\n"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Something that is let in: an entry of ``firewall_allow``."""

    protocol: Annotated[Literal["tcp", "udp", "vrrp"], Doc("Protocol.")] = "tcp"
    port: Annotated[int | None, Doc("Port of this host; VRRP has none."), Range(1, 65535)] = None
    sources: Annotated[list[str], Doc("Addresses and networks that may send it; everybody if unset."), Network()] = field(
        default_factory=lambda: list(ANY_SOURCE)
    )
    comment: Annotated[
        str,
        Doc("What it is for, as `nft list` shows it."),
        Pattern(r"[ !#-\[\]-~]{0,128}", "at most 128 letters of ASCII, without quotes and backslashes"),
    ] = ""

    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """Return the sources, each address once, those of IPv4 first."""
        found = [ipaddress.ip_network(source) for source in self.sources]
        four = ipaddress.collapse_addresses(network for network in found if isinstance(network, ipaddress.IPv4Network))
        six = ipaddress.collapse_addresses(network for network in found if isinstance(network, ipaddress.IPv6Network))
        return [*four, *six]

    def lines(self) -> Iterator[str]:
        """Yield the rule as nft has it: a line for each version of IP, or one for both."""
        what = f"meta l4proto {VRRP}" if self.protocol == "vrrp" else f"{self.protocol} dport {self.port}"
        comment = f' comment "{self.comment}"' if self.comment else ""
        networks = self.networks()
        if [str(network) for network in networks] == list(ANY_SOURCE):
            yield f"{what} accept{comment}"
            return
        for version, family in ((4, "ip"), (6, "ip6")):
            if own := [str(network) for network in networks if network.version == version]:
                yield f"{family} saddr {{ {', '.join(own)} }} {what} accept{comment}"


def parse_rules(allow: object, ssh_port: object, ssh_sources: object) -> list[Rule]:
    """Return the rules of the role's variables, that of SSH first.

    :raises InvalidDataError: naming every mistake.
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
            problems.append(f"{path}.port: " + ("vrrp has none" if rule.port else f"is missing; {rule.protocol} has one"))
        rules.append(rule)
    try:
        port = int(ssh_port) if isinstance(ssh_port, str) and ssh_port.isdigit() else ssh_port  # what is templated is a text
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
    """Say whether the rules let in a connection by TCP from an address to a port."""
    source = ipaddress.ip_address(address.partition("%")[0])
    return any(
        rule.protocol == "tcp" and rule.port == port and any(source in network for network in rule.networks()) for rule in rules
    )


def render(lines: Sequence[str]) -> str:
    """Return what ``nft --file`` reads: the table with the rules, in the place of the one that may be there, all at once.

    The table's comment is what it is known by, see `fingerprint`.
    """
    rules = "".join(f"{_INDENT}{line}\n" for line in lines)
    chain = f"{_CHAIN}{_BEFORE}{rules}{_AFTER}"
    head = f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n"
    return f'# Ansible managed\n{head}    comment "{hashlib.sha256(chain.encode()).hexdigest()[:12]}"\n{chain}'


def fingerprint(text: str) -> str:
    """Return what tells tables apart whose rules differ: the comment in what `render` has made, or in what nft shows of it."""
    found = re.search(r'^\s*comment "(\w+)"$', text, re.MULTILINE)
    return found[1] if found else ""


def rule_lines(text: str) -> list[str]:
    """Return the lines that `render` was given for a text."""
    return [line.strip() for line in text.partition(_BEFORE)[2].removesuffix(_AFTER).splitlines()]


def fleet_rules(
    host: str,
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
    addresses: Mapping[str, Sequence[str]],
) -> Iterator[Rule]:
    """Yield what a host of a fleet has to let in, beside SSH.

    :arg groups: the hosts of each group.
    :arg variables: those of the host, with the defaults of the roles ``nginx``, ``haproxy``, ``mongodb``, ``etcd`` and ``logs``.
    :arg addresses: where the others come from, by host.
    """

    def of(*names: str) -> list[str]:
        hosts = {name for group in names for name in groups.get(group, ())} - {host}
        return sorted({address for name in hosts for address in addresses[name]})

    if host in groups.get("app_hosts", ()):
        proxy = variables.get("app_proxy", "nginx")
        clients = of("balancers") or list(ANY_SOURCE)
        yield from _ports(variables[f"{proxy}_listen"] + variables[f"{proxy}_listen_tls"], clients, proxy)
    if host in groups.get("balancers", ()):
        yield from _ports(variables["haproxy_listen"] + variables["haproxy_listen_tls"], list(ANY_SOURCE), "haproxy")
        if variables.get("keepalived_address"):
            yield Rule(protocol="vrrp", sources=variables.get("keepalived_peers") or of("balancers"), comment="keepalived")
    if host in groups.get("mongodb", ()) and not _is_local(variables["mongodb_addresses"]):
        yield Rule(port=int(variables["mongodb_port"]), sources=of("app_hosts", "mongodb"), comment="mongodb")
    if host in groups.get("etcd", ()) and not _is_local(variables["etcd_listen"]):
        yield Rule(port=ETCD_CLIENT_PORT, sources=of("app_hosts", "etcd"), comment="etcd")
        yield Rule(port=ETCD_PEER_PORT, sources=of("etcd"), comment="etcd, of its members")
    if host in groups.get("logs", ()) and not _is_local(variables["logs_listen"]):
        yield Rule(protocol="udp", port=int(variables["logs_port"]), sources=variables["logs_senders"], comment="logs")


def to_data(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """Return the rules as entries of ``firewall_allow``."""
    return [{key: value for key, value in dataclasses.asdict(rule).items() if value is not None} for rule in rules]


def _ports(listen: Iterable[object], sources: list[str], comment: str) -> Iterator[Rule]:
    """Yield a rule for each port of addresses as nginx and HAProxy have them: ``80``, ``[::]:80``, ``192.0.2.1:8080``."""
    found = [str(address).rpartition(":") for address in listen]
    ports = {int(port) for place, _colon, port in found if port.isdigit() and not (place and _is_local([place.strip("[]")]))}
    yield from (Rule(port=port, sources=sources, comment=comment) for port in sorted(ports))


def _is_local(addresses: Iterable[str]) -> bool:
    """Say whether addresses, names among them, are such that only the host itself reaches them."""

    def local(address: str) -> bool:
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return address == "localhost"

    return all(local(str(address)) for address in addresses)
