from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.network.keepalived import (
    AddressPlacement,
    KeepalivedError,
    forwarding,
    is_accepting,
    locate_address,
    parse_address,
    require_priority,
    succeeds,
)


def interface(name: str, *addresses: str) -> dict[str, Any]:
    """Return an interface in the format of `ip -json address show`."""
    pairs = (address.split("/") for address in addresses)
    return {"ifname": name, "addr_info": [{"family": "inet", "local": ip, "prefixlen": int(length)} for ip, length in pairs]}


LO = interface("lo", "127.0.0.1/8")
TWO = [LO, interface("eth0", "198.51.100.7/24"), interface("eth1", "192.0.2.11/24", "10.0.0.11/8")]


def test_floating_ip_is_placed_on_the_interface_in_its_network() -> None:
    assert locate_address(parse_address("192.0.2.100/24"), TWO, "lb1") == AddressPlacement("eth1", "192.0.2.11", held=False)
    assert locate_address(parse_address("10.1.2.3/32"), TWO, "lb1") == AddressPlacement("eth1", "10.0.0.11", held=False)
    assert locate_address(parse_address("198.51.100.100/24"), TWO, "lb1", "eth0") == AddressPlacement(
        "eth0", "198.51.100.7", held=False
    )


def test_address_on_the_loopback_interface_is_accepted_but_not_held() -> None:
    address = parse_address("192.0.2.100/24")
    assert locate_address(address, [LO, interface("eth1", "192.0.2.11/24", "192.0.2.100/24")], "lb1").held
    # A host that only accepts its traffic has the address on the loopback interface.
    accepting = [interface("lo", "127.0.0.1/8", "192.0.2.100/32"), interface("eth1", "192.0.2.11/24")]
    assert not locate_address(address, accepting, "lb1").held
    assert is_accepting(address, accepting)
    assert not is_accepting(address, TWO)
    assert not is_accepting(address, [LO, interface("eth1", "192.0.2.11/24", "192.0.2.100/24")])


@pytest.mark.parametrize(
    ("address", "interface_name", "message"),
    [
        ("10.9.9.9/24", "eth0", "keepalived_address: 10.9.9.9/24 is in no network of lb1, which has 198.51.100.7/24 on eth0"),
        (
            "203.0.113.9/24",
            "",
            "keepalived_address: 203.0.113.9/24 is in no network of lb1, which has 198.51.100.7/24 on eth0, "
            "192.0.2.11/24 on eth1, 10.0.0.11/8 on eth1",
        ),
        ("192.0.2.100/24", "eth7", "keepalived_interface: lb1 has no interface eth7; it has eth0, eth1"),
        ("192.0.2.100/24", "lo", "keepalived_interface: lb1 has no interface lo; it has eth0, eth1"),
        (
            "198.51.100.7/24",
            "",
            "keepalived_address: 198.51.100.7 is already used by lb1 itself; choose an address that no host uses",
        ),
        (
            "192.0.2.255/24",
            "",
            "keepalived_address: 192.0.2.255 is the network or broadcast address of 192.0.2.0/24; choose a host address",
        ),
    ],
)
def test_unsuitable_floating_ip_is_refused(address: str, interface_name: str, message: str) -> None:
    with pytest.raises(KeepalivedError) as error:
        locate_address(parse_address(address), TWO, "lb1", interface_name)
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["192.0.2.100", "192.0.2.300/24", "192.0.2.100/33", "lb.example.com/24", "2001:db8::1/129", ""])
def test_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(KeepalivedError, match=r"keepalived_address: must be an IP address with prefix length, .*; found '"):
        parse_address(text)


def test_ipv6_address_is_placed_among_addresses_of_its_family() -> None:
    both = [LO, interface("eth0", "192.0.2.11/24", "fe80::1/64"), interface("eth1", "2001:db8::11/64", "2001:db8::100/64")]
    address = parse_address("2001:db8::100/64")
    assert locate_address(address, both, "lb1") == AddressPlacement("eth1", "2001:db8::11", held=True)
    with pytest.raises(KeepalivedError, match="2001:db8:: is the network or broadcast address"):
        locate_address(parse_address("2001:db8::/64"), both, "lb1")
    rules = forwarding(address, "eth1", "2001:db8::12")
    assert 'ip6 daddr 2001:db8::100 ip6 saddr . tcp sport @moved fwd ip6 to 2001:db8::12 device "eth1"' in rules
    assert "type ipv6_addr . inet_service" in rules


def test_priority_must_be_in_the_vrrp_range() -> None:
    require_priority(1)
    require_priority(254)
    for wrong in (0, 255, -1):
        with pytest.raises(KeepalivedError, match=f"keepalived_priority: must be from 1 to 254; found {wrong}"):
            require_priority(wrong)


def test_forwarding_covers_connections_opened_after_the_hand_over_began() -> None:
    rules = forwarding(parse_address("192.0.2.100/24"), "eth1", "192.0.2.12")
    record, forward = (line.strip() for line in rules.splitlines() if "ip daddr 192.0.2.100" in line)
    assert "== syn update @moved" in record
    assert forward == 'ip daddr 192.0.2.100 ip saddr . tcp sport @moved fwd ip to 192.0.2.12 device "eth1"'


def test_health_check_runs_as_nobody_without_the_environment_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "of-the-operator")
    with tempfile.TemporaryDirectory() as directory:  # the one of pytest is private
        Path(directory).chmod(0o755)
        check = Path(directory, "check")
        for user, expected in (("nobody", True), ("root", False)):
            check.write_text(f'#!/bin/sh\n[ "$(id -un) $(id -Gn) $TOKEN" = "{user} nogroup " ]\n')
            check.chmod(0o755)
            assert succeeds(check) is expected


def test_health_check_finds_programs_of_administrators_as_in_the_unit_of_keepalived() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        check = Path(directory, "check")
        check.write_text("#!/bin/sh\nldconfig --version && case $PATH in /usr/local/sbin:*) ;; *) exit 1 ;; esac\n")
        check.chmod(0o755)
        assert succeeds(check)
