"""The inventory of a fleet: groups, addresses of hosts, and the load balancers in front of app hosts."""

from __future__ import annotations

import difflib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

#: The groups of a fleet. The load balancers are last, as in a rolling reboot.
GROUPS = ("app_hosts", "mongodb", "etcd", "logs", "balancers")

#: All groups that the playbooks use.
PLAYBOOK_GROUPS = (*GROUPS, "metrics")

#: Similarity of two names, from 0 to 1, from which on one counts as a misspelling of the other (difflib).
MISSPELLING_CUTOFF = 0.8

#: Variables of the inventory that the playbooks read, apart from those of roles, with their types.
VARIABLES = {"fleet_address": "str", "fleet_notifications": "list", "fleet_tls_at": "str"}

#: The hosts that can terminate TLS: the values of ``fleet_tls_at``.
TLS_AT = ("balancers", "app_hosts")


def require_hosts(groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """Check that one of the groups ``names`` has a host, and that no group name is a likely misspelling of an empty group.

    :arg groups: the hosts of all groups of the inventory.
    :raises InvalidDataError: with the existing groups; an unreadable inventory has none.
    """
    own = [name for name in groups if name not in ("all", "ungrouped", *PLAYBOOK_GROUPS)]
    problems = [
        f"group {near[0]}: the collection has no such group; did you mean {name}?"
        for name in PLAYBOOK_GROUPS
        if not groups.get(name) and (near := difflib.get_close_matches(name, own, n=1, cutoff=MISSPELLING_CUTOFF))
    ]
    if not any(groups.get(name) for name in names):
        found = ", ".join(sorted(name for name, hosts in groups.items() if hosts and name not in ("all", "ungrouped")))
        groups_required = f"group {names[0]}" if len(names) == 1 else f"groups {', '.join(names)}"
        problems.append(f"the inventory has no host in the {groups_required}; groups with hosts are: {found or 'none'}")
    if problems:
        raise InvalidDataError(problems)


def fleet_addresses(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the IP address of each host within the fleet.

    It is ``fleet_address``, ``ansible_host`` or the name of the host, in this order; the controller resolves names.

    :raises InvalidDataError: with every host whose address does not resolve.
    """
    addresses = {host: resolve(_address(host, hostvars.get(host, {}))) for host in hosts}
    problems = [
        f"{host}: its address does not resolve on the controller; set fleet_address" for host, ip in addresses.items() if not ip
    ]
    if problems:
        raise InvalidDataError(problems)
    return {host: ip for host, ip in addresses.items() if ip}


def fleet_sources(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return all possible source addresses of each host: as `fleet_addresses`, but with all addresses of a name.

    :raises InvalidDataError: as `fleet_addresses`.
    """
    fleet_addresses(hosts := list(hosts), hostvars)
    return {host: _resolve_all(_address(host, hostvars.get(host, {}))) for host in hosts}


def floating_ip_problems(own: Mapping[str, str], floating: Mapping[str, str]) -> Iterator[str]:
    """Yield the load balancers whose own address is of another family than their floating IP, to which VRRP cannot refer."""
    for host, text in floating.items():
        try:
            version = ipaddress.ip_interface(text).version
        except ValueError:  # none, or one that keepalived's role reports
            continue
        if version != ipaddress.ip_address(own[host]).version:
            found = f"keepalived_address {text} is IPv{version}, but the address of the host within the fleet is {own[host]}"
            yield f"{host}: {found}; set fleet_address to its IPv{version} address, or choose another floating IP"


def resolve(address: str) -> str | None:
    """Return the IP address of an address or a name: the first IPv4 address, or the first IPv6 address if it has no other."""
    return next(iter(_resolve_all(address)), None)


def _resolve_all(address: str) -> list[str]:
    """Return all IP addresses of an address or a name, IPv4 first."""
    try:
        return [str(ipaddress.ip_address(address))]
    except ValueError:
        pass
    try:
        answers = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(answer[4][0]) for answer in sorted(answers, key=lambda answer: answer[0] != socket.AF_INET)]


def tier_problems(
    apps: object, addresses: Mapping[str, str], backends: Mapping[str, Mapping[str, Any] | None], tls_at: str
) -> Iterator[str]:
    """Yield the mistakes in the configuration of the load balancers and the app hosts behind them.

    :arg apps: the value of ``tornado_apps``, which the app model validates.
    :arg addresses: the addresses of the app hosts.
    :arg backends: ``haproxy_backends`` of each load balancer in the inventory; None if derived from the app hosts.
    :arg tls_at: the value of ``fleet_tls_at``.
    """
    if tls_at not in TLS_AT:
        yield f"fleet_tls_at: must be {' or '.join(TLS_AT)}; found {tls_at!r}"
    for host in [host for host in backends if host in addresses]:
        yield f"{host}: is in balancers and app_hosts, but HAProxy and nginx need the same ports; use separate hosts"
    for host, own_backends in backends.items():
        if own_backends is not None and not own_backends:
            yield f"haproxy_backends of {host}: is empty; unset it to get a backend for each app"
        elif own_backends is None and not (addresses and apps):
            yield f"{host}: is in balancers but has no backend; app_hosts needs a host, and {VARIABLE} an app"
    if backends and None not in backends.values():
        servers = {identity for own_backends in backends.values() for identity in _server_identities(own_backends or {})}
        for host in [host for host, address in addresses.items() if servers and servers.isdisjoint({host, address})]:
            yield f"{host}: is in app_hosts but in no backend of any load balancer; add {addresses[host]} to haproxy_backends"


def tls_group(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the group of the hosts that terminate TLS."""
    balancers = groups.get("balancers", ())
    return str(hostvars[balancers[0]].get("fleet_tls_at", TLS_AT[0])) if balancers else "app_hosts"


def acme_group(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the group of the hosts that terminate TLS if they answer challenges of an ACME server, or an empty string."""
    used = any(acme_apps(hostvars[host].get(VARIABLE), "http") for host in groups.get("app_hosts", ()))
    return tls_group(groups, hostvars) if used else ""


def acme_apps(apps: object, challenge: str) -> list[str]:
    """Return the names of the apps whose certificates are validated by a challenge."""
    entries = apps.items() if isinstance(apps, Mapping) else ()
    settings = {name: entry.get("tls") for name, entry in entries if isinstance(entry, Mapping)}
    acme = {name: tls for name, tls in settings.items() if isinstance(tls, Mapping) and tls.get("provider") == "acme"}
    return [str(name) for name, tls in acme.items() if tls.get("challenge", "http") == challenge]


def _server_identities(backends: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name and the address of each server; the role haproxy rejects malformed servers."""
    for backend in backends.values():
        servers = backend.get("servers") if isinstance(backend, Mapping) else None
        for name, server in servers.items() if isinstance(servers, Mapping) else ():
            address = server.get("address") if isinstance(server, Mapping) else server
            yield str(name)
            yield resolve(urlsplit(f"//{address}").hostname or "") or str(address)


def _address(host: str, variables: Mapping[str, Any]) -> str:
    return str(variables.get("fleet_address") or variables.get("ansible_host") or host)
