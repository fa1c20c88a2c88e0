"""What the hosts of a fleet have to do with each other: where they are, and which balancers lead to which app hosts."""

from __future__ import annotations

import difflib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

#: The groups whose hosts are a fleet. The balancers come last, as they do at a reboot.
GROUPS = ("app_hosts", "mongodb", "etcd", "logs", "balancers")

#: The groups whose names the playbooks know.
KNOWN_GROUPS = (*GROUPS, "metrics")

#: How alike two names of groups are, from 0 to 1, when one is taken for a misspelling of the other (difflib).
MISSPELT = 0.8

#: The inventory's variables that are for the playbooks, beside those of the roles, with their types.
VARIABLES = {"fleet_address": "str", "fleet_tls_at": "str"}

#: Where TLS may end, the values of ``fleet_tls_at``.
TLS_AT = ("balancers", "app_hosts")


def require_hosts(groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """Check that one of the groups ``names`` has a host, and that no group has nearly the name of one that has none.

    :arg groups: the hosts of all groups of the inventory.
    :raises InvalidDataError: naming the groups that there are; an inventory that could not be read has none.
    """
    own = [name for name in groups if name not in ("all", "ungrouped", *KNOWN_GROUPS)]
    problems = [
        f"group {near[0]}: there is no such group in the collection; did you mean {name}?"
        for name in KNOWN_GROUPS
        if not groups.get(name) and (near := difflib.get_close_matches(name, own, n=1, cutoff=MISSPELT))
    ]
    if not any(groups.get(name) for name in names):
        found = ", ".join(sorted(name for name, hosts in groups.items() if hosts and name not in ("all", "ungrouped")))
        wanted = f"group {names[0]}" if len(names) == 1 else f"groups {', '.join(names)}"
        problems.append(f"the inventory has no host in the {wanted}; groups with hosts are: {found or 'none'}")
    if problems:
        raise InvalidDataError(problems)


def fleet_addresses(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the IP address at which each of ``hosts`` is reached by the others.

    That is the variable ``fleet_address`` of the host, else its ``ansible_host``, else its name; names are looked up here.

    :raises InvalidDataError: naming every host that none was found of.
    """
    found = {host: resolve(_address(host, hostvars.get(host, {}))) for host in hosts}
    problems = [f"{host}: has no address that could be found here; set fleet_address" for host, ip in found.items() if not ip]
    if problems:
        raise InvalidDataError(problems)
    return {host: ip for host, ip in found.items() if ip}


def fleet_sources(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the IP addresses from which each of ``hosts`` may reach the others: as `fleet_addresses`, but all that a name has.

    :raises InvalidDataError: as there.
    """
    fleet_addresses(hosts := list(hosts), hostvars)
    return {host: _resolve_all(_address(host, hostvars.get(host, {}))) for host in hosts}


def resolve(address: str) -> str | None:
    """Return the IP address that ``address`` is or, of a name, has: its first of IPv4, or of IPv6 when it has no other."""
    return next(iter(_resolve_all(address)), None)


def _resolve_all(address: str) -> list[str]:
    """Return the IP address that ``address`` is or, of a name, all that it has: those of IPv4 come first."""
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
    """Yield what is wrong between the balancers and the app hosts behind them.

    :arg apps: the value of ``tornado_apps``, whose own mistakes are for the app model to find.
    :arg addresses: the app hosts' own, by host.
    :arg backends: ``haproxy_backends`` of each balancer as its inventory has it; None where it follows from the app hosts.
    :arg tls_at: the value of ``fleet_tls_at``.
    """
    if tls_at not in TLS_AT:
        yield f"fleet_tls_at: must be {' or '.join(TLS_AT)}; found {tls_at!r}"
    for host in [host for host in backends if host in addresses]:
        yield f"{host}: is in balancers and in app_hosts, and HAProxy takes the ports of nginx; a balancer is a host of its own"
    if backends:
        yield from _certificate_problems(apps)
    for host, wanted in backends.items():
        if wanted is not None and not wanted:
            yield f"haproxy_backends of {host}: is empty, so there is nothing to balance; leave it out to have one of each app"
        elif wanted is None and not (addresses and apps):
            yield f"{host}: is in balancers and has no backend; app_hosts needs a host, and {VARIABLE} an app"
    if backends and None not in backends.values():
        led_to = {place for wanted in backends.values() for place in _places(wanted or {})}
        for host in [host for host, address in addresses.items() if led_to and led_to.isdisjoint({host, address})]:
            yield f"{host}: is in app_hosts, and in no backend of any balancer; add {addresses[host]} to haproxy_backends"


def _certificate_problems(apps: object) -> Iterator[str]:
    for name, entry in apps.items() if isinstance(apps, Mapping) else ():
        tls = entry.get("tls") if isinstance(entry, Mapping) else None
        if isinstance(tls, Mapping) and tls.get("provider") == "acme":
            yield (
                f"{VARIABLE}.{name}.tls.provider: acme is for hosts without balancers, as yet: an ACME server's questions could "
                "reach any of a fleet; use files or self_signed"
            )


def _places(backends: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name and the address of each server; what is no server is for the haproxy role to refuse."""
    for backend in backends.values():
        servers = backend.get("servers") if isinstance(backend, Mapping) else None
        for name, server in servers.items() if isinstance(servers, Mapping) else ():
            address = server.get("address") if isinstance(server, Mapping) else server
            yield str(name)
            yield resolve(urlsplit(f"//{address}").hostname or "") or str(address)


def _address(host: str, variables: Mapping[str, Any]) -> str:
    return str(variables.get("fleet_address") or variables.get("ansible_host") or host)
