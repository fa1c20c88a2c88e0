"""A floating IP with keepalived (VRRP): locate it, and hand it over to another host without losing requests.

keepalived handles failover. For a planned handover, the holder forwards new connections to its successor, which accepts them
before it holds the address, like servers behind an LVS with direct routing. Existing connections drain; then keepalived is
stopped, and the keepalived of the successor takes over the address. Forwarded connections survive: their packets still reach
the same host.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import SYSTEM_PATH, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll

#: VRRP priorities for an election (RFC 5798, 5.2.4): 0 and 255 are reserved.
PRIORITIES = range(1, 255)

#: The interface of an address that is accepted but not announced.
LOOPBACK = "lo"

#: The health check of keepalived, and the marker that makes it succeed during a handover.
CHECK_SCRIPT = Path("/usr/local/sbin/keepalived-check")
HAND_OVER_MARKER = Path("/run/keepalived-hand-over")

#: Kernel settings by interface.
CONF = Path("/proc/sys/net/ipv4/conf")

#: Seconds in which the other host takes over the address, and the network learns of it.
TAKEOVER_SECONDS = 2.0

#: Timeout for stopping the service; TimeoutStopSec= of its unit should be lower.
STOP_TIMEOUT = 900.0

#: Seconds between two polls.
INTERVAL = 0.1

_TABLE = "netdev funnel_hand_over"


class KeepalivedError(Exception):
    """The address is invalid on this host, or was not taken over. The message holds the reason and the fix."""


@dataclass(frozen=True)
class AddressPlacement:
    """The interface of a floating IP on a host, the host's own address there, and whether the host holds the floating IP."""

    interface: str
    own_address: str
    held: bool


def parse_address(text: str) -> IPv4Interface | IPv6Interface:
    """Parse a floating IP.

    :raises KeepalivedError: if ``text`` is not an IP address with prefix length.
    """
    with contextlib.suppress(ValueError):
        if "/" in text:
            return ip_interface(text)
    raise KeepalivedError(f"keepalived_address: must be an IP address with prefix length, such as 192.0.2.100/24; found {text!r}")


def require_priority(priority: int) -> None:
    """Require a valid VRRP priority.

    :raises KeepalivedError: if it is out of range.
    """
    if priority not in PRIORITIES:
        raise KeepalivedError(f"keepalived_priority: must be from {PRIORITIES[0]} to {PRIORITIES[-1]}; found {priority}")


def interfaces() -> list[dict[str, Any]]:
    """Return the interfaces of this host from ``ip -json address``.

    :raises CommandError: if iproute2 is not installed.
    """
    return list(json.loads(run(["ip", "-json", "address", "show"]).output))


def locate_address(
    address: IPv4Interface | IPv6Interface, shown: Sequence[Mapping[str, Any]], host: str, interface: str = ""
) -> AddressPlacement:
    """Return the placement of the address on the ``host``: the interface that is in the network of the address.

    :arg shown: the result of `interfaces`.
    :arg interface: name of the required interface; any if empty.
    :raises KeepalivedError: if there is no such interface.
    """
    all_own = {
        str(link["ifname"]): [ip_interface(f"{info['local']}/{info['prefixlen']}") for info in link.get("addr_info", ())]
        for link in shown
        if link.get("ifname") != LOOPBACK
    }
    if interface and interface not in all_own:
        raise KeepalivedError(f"keepalived_interface: {host} has no interface {interface}; it has {', '.join(all_own) or 'none'}")
    candidates = {name: own for name, own in all_own.items() if name == (interface or name)}
    for name, own_addresses in candidates.items():
        held = any(own.ip == address.ip for own in own_addresses)
        for own in own_addresses:
            if own.ip != address.ip and own.version == address.version and address.ip in own.network:
                _require_usable(address, own)
                return AddressPlacement(name, str(own.ip), held)
        if held:
            raise KeepalivedError(
                f"keepalived_address: {address.ip} is already used by {host} itself; choose an address that no host uses"
            )
    found = ", ".join(f"{own} on {name}" for name, own_addresses in candidates.items() for own in own_addresses) or "none"
    raise KeepalivedError(f"keepalived_address: {address} is in no network of {host}, which has {found}")


def _require_usable(address: IPv4Interface | IPv6Interface, own: IPv4Interface | IPv6Interface) -> None:
    network = own.network
    if network.max_prefixlen - network.prefixlen > 1 and address.ip in (network.network_address, network.broadcast_address):
        raise KeepalivedError(
            f"keepalived_address: {address.ip} is the network or broadcast address of {network}; choose a host address"
        )


def accept_traffic(address: IPv4Interface | IPv6Interface, placement: AddressPlacement) -> None:
    """Accept packets for the address without announcing it.

    arp_ignore prevents ARP replies for the address, arp_announce its use in ARP requests of this host; both settings are kept.
    See https://docs.kernel.org/networking/ip-sysctl.html. With IPv6, the kernel answers for addresses of the interface alone.
    """
    for name, minimum in (("arp_ignore", 1), ("arp_announce", 2)) if address.version == 4 else ():
        setting = CONF / placement.interface / name
        if int(setting.read_text(encoding="utf-8")) < minimum:
            setting.write_text(f"{minimum}\n", encoding="utf-8")
    run(["ip", "address", "replace", _single(address), "dev", LOOPBACK])


def _single(address: IPv4Interface | IPv6Interface) -> str:
    """Return the network that contains only the address."""
    return f"{address.ip}/{address.max_prefixlen}"


def is_accepting(address: IPv4Interface | IPv6Interface, shown: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether `accept_traffic` was called without `complete_takeover`."""
    return any(
        info.get("local") == str(address.ip)
        for link in shown
        if link.get("ifname") == LOOPBACK
        for info in link.get("addr_info", ())
    )


def complete_takeover(address: IPv4Interface | IPv6Interface, host: str, interface: str = "") -> None:
    """Wait until this host holds the address, and undo `accept_traffic`.

    :raises KeepalivedError: if the host does not take over the address in time.
    """
    held = poll(
        lambda: locate_address(address, interfaces(), host, interface).held, bool, timeout=TAKEOVER_SECONDS, interval=INTERVAL
    )
    if is_accepting(address, interfaces()):
        run(["ip", "address", "delete", _single(address), "dev", LOOPBACK])
    if not held:
        raise KeepalivedError(f"{host} did not take over {address.ip}; for the reason, run `journalctl -u keepalived` on it")


def hand_over(address: IPv4Interface | IPv6Interface, placement: AddressPlacement, successor: str, service: str) -> None:
    """Hand the address over to a successor that runs `accept_traffic`; return after the takeover.

    New connections are forwarded to the successor at once. ``service`` is stopped, which drains its connections.

    :arg successor: address of the other host in the same network.
    :raises CommandError: if that fails; this host keeps the address, and the service is started again.
    """
    run(["nft", f"add table {_TABLE}; delete table {_TABLE}; {forwarding(address, placement.interface, successor)}"])
    HAND_OVER_MARKER.touch()  # otherwise the health check would fail while the service drains
    try:
        try:
            run(["systemctl", "stop", service], timeout=STOP_TIMEOUT)
            run(["systemctl", "stop", "keepalived"])
        except BaseException:
            run(["systemctl", "start", service, "keepalived"], check=False)
            raise
        time.sleep(TAKEOVER_SECONDS)
    finally:
        HAND_OVER_MARKER.unlink(missing_ok=True)
        run(["nft", f"delete table {_TABLE}"])


def forwarding(address: IPv4Interface | IPv6Interface, interface: str, successor: str) -> str:
    """Return the nft rules that forward connections opened from now on to ``successor``.

    The ingress hook runs before connection tracking, so a set records the clients; an entry expires after an idle hour.
    """
    ip = "ip" if address.version == 4 else "ip6"
    return f"""
table {_TABLE} {{
    set moved {{ type ipv{address.version}_addr . inet_service; flags dynamic; timeout 1h; size 131072; }}
    chain forward {{
        type filter hook ingress device "{interface}" priority filter;
        {ip} daddr {address.ip} tcp flags & (fin | syn | rst | ack) == syn update @moved {{ {ip} saddr . tcp sport }}
        {ip} daddr {address.ip} {ip} saddr . tcp sport @moved fwd {ip} to {successor} device "{interface}"
    }}
}}
"""


def is_healthy() -> bool:
    """Return whether this host could take over the address: keepalived is active, and its health check succeeds."""
    if not CHECK_SCRIPT.exists() or run(["systemctl", "is-active", "--quiet", "keepalived"], check=False).status != 0:
        return False
    return succeeds(CHECK_SCRIPT)


def succeeds(check: Path) -> bool:
    """Return whether a health check succeeds, as the user as which keepalived runs it, in an environment of its own."""
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs", "--reset-env"]
    path = ["env", f"PATH={':'.join(SYSTEM_PATH)}"]  # that of units; --reset-env omits the sbin directories
    return run([*as_nobody, *path, str(check)], check=False).status == 0
