from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.status import machine
from ansible_collections.funnel.tornado.plugins.module_utils.status.machine import (
    Machine,
    Server,
    compare,
    etcd_role,
    look_at_address,
    look_at_machine,
    mongodb_role,
)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Make what is read of a host: 4 GiB of memory, half of it free, and no reboot due."""
    for name in ("etc", "proc/sys/net/core", "run", "srv", "var"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/debian_version").write_text("13.1\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        4194304 kB\nMemFree:  1024 kB\nMemAvailable:   2097152 kB\n")
    (tmp_path / "proc/sys/net/core/somaxconn").write_text("4096\n")
    return tmp_path


def test_a_host_is_what_it_is(host: Path) -> None:
    found = look_at_machine(host)
    assert (found.debian, found.kernel, found.backlog) == ("13.1", os.uname().release, 4096)
    assert (found.memory, found.memory_free) == (4 << 30, 2 << 30)
    (host / "etc/os-release").write_text('ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n')
    assert look_at_machine(host).debian == "Ubuntu 24.04.3 LTS"
    assert 0 < found.disk_free < found.disk_size
    assert found.uptime > 0


def test_a_disk_without_room_for_a_release_is_a_problem(host: Path) -> None:
    whole = vars(look_at_machine(host)) | {"disk": "/var", "disk_free": 1 << 30}
    assert Machine(**whole).problem == ""
    problem = Machine(**(whole | {"disk_free": 300 << 20})).problem
    assert problem.startswith("/var has 300 MiB left;")


@pytest.mark.parametrize(
    ("status", "well"),
    [
        ("UP", True),
        ("UP 1/2", True),
        ("no check", True),
        ("DOWN", False),
        ("DOWN 1/2", False),
        ("DRAIN", False),
        ("MAINT", False),
    ],
)
def test_a_server_that_gets_no_requests_is_a_problem(status: str, *, well: bool) -> None:
    assert (Server("shop", "web1", status).problem == "") == well


@pytest.mark.parametrize(
    ("said", "role", "problem"),
    [
        ({}, "alone", ""),
        ({"setName": "rs0", "isWritablePrimary": True, "primary": "web1:27017"}, "primary", ""),
        ({"setName": "rs0", "secondary": True, "primary": "web1:27017"}, "secondary", ""),
        ({"setName": "rs0", "secondary": True}, "secondary", "knows of no primary of rs0"),
        ({"setName": "rs0"}, "", "is neither primary nor secondary of rs0"),
    ],
)
def test_what_a_mongod_is_in_its_set(said: dict[str, Any], role: str, problem: str) -> None:
    found = mongodb_role(said)
    assert found[0] == role
    assert found[1].startswith(problem)
    assert bool(found[1]) == bool(problem)


@pytest.mark.parametrize(
    ("said", "role", "problem"),
    [
        ({"leader": "7"}, "leader", ""),
        ({"leader": "8"}, "follower", ""),
        ({"leader": "8", "isLearner": True}, "learner", "has no vote yet"),
        ({}, "", "knows of no leader"),
    ],
)
def test_what_an_etcd_is_in_its_cluster(said: dict[str, Any], role: str, problem: str) -> None:
    found = etcd_role({"header": {"member_id": "7"}} | said)
    assert found[0] == role
    assert found[1].startswith(problem)
    assert bool(found[1]) == bool(problem)


def test_servers_are_those_of_the_inventory() -> None:
    found = [Server("shop", "web1", "UP"), Server("shop", "old", "UP"), Server("own", "x", "no check")]
    compared = compare(found, {"shop": {"servers": {"web1": "192.0.2.1", "web2": "192.0.2.2"}}})
    assert [(one.server, one.problem) for one in compared] == [
        ("web1", ""),
        ("old", "haproxy: shop has a server old, which the inventory has not; site.yml removes it"),
        ("x", ""),
        ("web2", "haproxy: shop has no server web2, which the inventory has; site.yml adds it"),
    ]


def test_the_floating_address_is_held_by_whom_it_is_at_but_for_the_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(name: str, address: str) -> dict[str, Any]:
        return {"ifname": name, "addr_info": [{"local": address, "prefixlen": 24}]}

    def held(*interfaces: dict[str, Any]) -> bool:
        monkeypatch.setattr(machine, "interfaces", lambda: list(interfaces))
        return look_at_address("192.0.2.100/24").held

    own = shown("eth0", "192.0.2.11")
    assert not held(own)
    assert held(own, shown("eth0", "192.0.2.100"))
    assert not held(own, shown("lo", "192.0.2.100")), "it is about to get it"
