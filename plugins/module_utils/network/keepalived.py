"""A floating address: where it belongs on a host, who has it, and how it goes to another host without a request being lost.

To hand it over, the host that has it sends new connections on to its successor, which takes them although the address is not
its own yet, as servers behind an LVS do with direct routing. Old connections stay until they have finished; then keepalived is
stopped, and the successor's takes the address. Connections that were sent on do not notice: their packets get to the same host.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import run

#: What VRRP may elect by (RFC 5798, 5.2.4): 0 and 255 have meanings of their own.
PRIORITIES = range(1, 255)

#: Where an address lies that is taken but not announced.
LOOPBACK = "lo"

#: What keepalived asks whether this host is well, and what it is not to be asked while.
CHECK_SCRIPT = Path("/usr/local/sbin/keepalived-check")
HANDING_OVER = Path("/run/keepalived-hand-over")

#: The kernel's settings by interface.
CONF = Path("/proc/sys/net/ipv4/conf")

#: Seconds in which the other host has taken the address, and everybody in the network has learnt of it.
TAKEOVER_SECONDS = 2.0

#: Seconds after which a service that was told to stop is given up; the unit's own bound is to be lower.
STOP_SECONDS = 900.0

#: Seconds between two looks at something that is waited for.
INTERVAL = 0.1

_TABLE = "netdev funnel_hand_over"


class KeepalivedError(Exception):
    """An address cannot float where it is wanted, or has not got there. The message says why, and what would be right."""


@dataclass(frozen=True)
class AddressPlacement:
    """Where a floating address belongs on a host: its interface, and the host's own address there; ``held`` if it is there."""

    interface: str
    own_address: str
    held: bool


def parse_address(text: str) -> IPv4Interface:
    """Return a floating address.

    :raises KeepalivedError: when ``text`` is not an IPv4 address with the length of its network's prefix.
    """
    with contextlib.suppress(ValueError):
        if "/" in text:
            return IPv4Interface(text)
    raise KeepalivedError(
        f"keepalived_address: must be an IPv4 address with the length of its prefix, such as 192.0.2.100/24; found {text!r}"
    )


def require_priority(priority: int) -> None:
    """See that VRRP can elect a host by a priority.

    :raises KeepalivedError: when it cannot.
    """
    if priority not in PRIORITIES:
        raise KeepalivedError(f"keepalived_priority: must be from {PRIORITIES[0]} to {PRIORITIES[-1]}; found {priority}")


def interfaces() -> list[dict[str, Any]]:
    """Return the interfaces of this host, as ``ip -json address`` shows them.

    :raises CommandError: when the host has no iproute2.
    """
    return list(json.loads(run(["ip", "-json", "-4", "address", "show"]).output))


def locate_address(address: IPv4Interface, shown: Sequence[Mapping[str, Any]], host: str, wanted: str = "") -> AddressPlacement:
    """Return where the address belongs on the ``host``: the interface in one of whose networks it is.

    :arg shown: what `interfaces` returns.
    :arg wanted: name of the interface that it has to be.
    :raises KeepalivedError: when there is no such interface.
    """
    all_own = {
        str(one["ifname"]): [IPv4Interface(f"{info['local']}/{info['prefixlen']}") for info in one.get("addr_info", ())]
        for one in shown
        if one.get("ifname") != LOOPBACK
    }
    if wanted and wanted not in all_own:
        raise KeepalivedError(f"keepalived_interface: {host} has no interface {wanted}; it has {', '.join(all_own) or 'none'}")
    considered = {name: own for name, own in all_own.items() if name == (wanted or name)}
    for name, own in considered.items():
        held = any(one.ip == address.ip for one in own)
        for one in own:
            if one.ip != address.ip and address.ip in one.network:
                _require_usable(address, one)
                return AddressPlacement(name, str(one.ip), held)
        if held:
            raise KeepalivedError(
                f"keepalived_address: {address.ip} is the own address of {host}; it has to be one that no host has for itself"
            )
    found = ", ".join(f"{one} on {name}" for name, own in considered.items() for one in own) or "none"
    raise KeepalivedError(f"keepalived_address: {address} is in no network of {host}, which has {found}")


def _require_usable(address: IPv4Interface, own: IPv4Interface) -> None:
    network = own.network
    if network.prefixlen < 31 and address.ip in (network.network_address, network.broadcast_address):
        raise KeepalivedError(
            f"keepalived_address: {address.ip} is no host's in {network}, but the network itself or its broadcast"
        )


def expect(address: IPv4Interface, place: AddressPlacement) -> None:
    """Take what comes for the address, without telling anybody that it is here.

    Who asks the network for it gets no answer from an interface that has not got it itself, and packets from here do not name it
    when they ask for others: arp_ignore and arp_announce of https://docs.kernel.org/networking/ip-sysctl.html. Both stay.
    """
    for name, least in (("arp_ignore", 1), ("arp_announce", 2)):
        setting = CONF / place.interface / name
        if int(setting.read_text()) < least:
            setting.write_text(f"{least}\n")
    run(["ip", "address", "replace", f"{address.ip}/32", "dev", LOOPBACK])


def is_expected(address: IPv4Interface, shown: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether `expect` has been here, and no `settle`."""
    return any(
        info.get("local") == str(address.ip)
        for one in shown
        if one.get("ifname") == LOOPBACK
        for info in one.get("addr_info", ())
    )


def settle(address: IPv4Interface, host: str, wanted: str = "") -> None:
    """Wait until this host has the address, and end what `expect` has begun.

    :raises KeepalivedError: when it does not get it.
    """
    give_up = time.monotonic() + TAKEOVER_SECONDS
    while not (held := locate_address(address, interfaces(), host, wanted).held) and time.monotonic() < give_up:
        time.sleep(INTERVAL)
    if is_expected(address, interfaces()):
        run(["ip", "address", "delete", f"{address.ip}/32", "dev", LOOPBACK])
    if not held:
        raise KeepalivedError(f"{host} has not taken {address.ip}; on it, `journalctl -u keepalived` says why")


def hand_over(address: IPv4Interface, place: AddressPlacement, successor: str, service: str) -> None:
    """Let a successor, where `expect` has been called, have the address of this host; return when it has taken it.

    New connections go to the successor at once. ``service`` is stopped: it finishes what it has, within the bound of its unit.

    :arg successor: an address of the other host in the same network.
    :raises CommandError: when that is not possible; then the address stays, and the service runs.
    """
    run(["nft", f"add table {_TABLE}; delete table {_TABLE}; {forwarding(address, place.interface, successor)}"])
    HANDING_OVER.touch()  # a service that only finishes what it has is not what the check calls well
    try:
        try:
            run(["systemctl", "stop", service], timeout=STOP_SECONDS)
            run(["systemctl", "stop", "keepalived"])
        except BaseException:
            run(["systemctl", "start", service, "keepalived"], check=False)
            raise
        time.sleep(TAKEOVER_SECONDS)
    finally:
        HANDING_OVER.unlink(missing_ok=True)
        run(["nft", f"delete table {_TABLE}"])


def forwarding(address: IPv4Interface, interface: str, successor: str) -> str:
    """Return the rules of nft that send on to ``successor`` what belongs to connections begun from now on.

    The kernel is asked before it knows of connections, so who has begun one is remembered here; an hour of silence ends that.
    """
    return f"""
table {_TABLE} {{
    set moved {{ type ipv4_addr . inet_service; flags dynamic; timeout 1h; size 131072; }}
    chain forward {{
        type filter hook ingress device "{interface}" priority filter;
        ip daddr {address.ip} tcp flags & (fin | syn | rst | ack) == syn update @moved {{ ip saddr . tcp sport }}
        ip daddr {address.ip} ip saddr . tcp sport @moved fwd ip to {successor} device "{interface}"
    }}
}}
"""


def is_healthy() -> bool:
    """Say whether this host could take the address: keepalived runs, and its check finds what the address is for to be well."""
    if not CHECK_SCRIPT.exists() or run(["systemctl", "is-active", "--quiet", "keepalived"], check=False).status != 0:
        return False
    return run([str(CHECK_SCRIPT)], check=False).status == 0
