from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.status import machine
from ansible_collections.funnel.tornado.plugins.module_utils.status.machine import (
    MachineStatus,
    ServerStatus,
    compare_servers,
    etcd_role,
    floating_ip_status,
    machine_status,
    mongodb_role,
)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Create the files that are read of a host: 4 GiB of memory, half of it free, and no reason to reboot."""
    for name in ("etc", "proc/sys/net/core", "run", "srv", "var"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/debian_version").write_text("13.1\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        4194304 kB\nMemFree:  1024 kB\nMemAvailable:   2097152 kB\n")
    (tmp_path / "proc/sys/net/core/somaxconn").write_text("4096\n")
    return tmp_path


def test_machine_status_reports_versions_and_resources(host: Path) -> None:
    found = machine_status(host)
    assert (found.distribution, found.kernel, found.backlog) == ("Debian 13.1", os.uname().release, 4096)
    assert (found.memory, found.memory_free) == (4 << 30, 2 << 30)
    (host / "etc/os-release").write_text('ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n')
    assert machine_status(host).distribution == "Ubuntu 24.04.3 LTS"
    assert 0 < found.disk_free < found.disk_size
    assert found.uptime > 0


def test_a_disk_without_room_for_a_release_is_a_problem(host: Path) -> None:
    whole = vars(machine_status(host)) | {"disk": "/var", "disk_free": 1 << 30}
    assert MachineStatus(**whole).problem == ""
    problem = MachineStatus(**(whole | {"disk_free": 300 << 20})).problem
    assert problem.startswith("/var has only 300 MiB left;")


@pytest.mark.parametrize(
    ("status", "healthy"),
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
def test_a_server_that_receives_no_requests_is_a_problem(status: str, *, healthy: bool) -> None:
    assert (ServerStatus("shop", "web1", status).problem == "") == healthy


@pytest.mark.parametrize(
    ("reply", "role", "problem"),
    [
        ({}, "alone", ""),
        ({"setName": "rs0", "isWritablePrimary": True, "primary": "web1:27017"}, "primary", ""),
        ({"setName": "rs0", "secondary": True, "primary": "web1:27017"}, "secondary", ""),
        ({"setName": "rs0", "secondary": True}, "secondary", "sees no primary of rs0"),
        ({"setName": "rs0"}, "", "is neither primary nor secondary of rs0"),
    ],
)
def test_mongodb_role_and_problem(reply: dict[str, Any], role: str, problem: str) -> None:
    found = mongodb_role(reply)
    assert found[0] == role
    assert found[1].startswith(problem)
    assert bool(found[1]) == bool(problem)


@pytest.mark.parametrize(
    ("reply", "role", "problem"),
    [
        ({"leader": "7"}, "leader", ""),
        ({"leader": "8"}, "follower", ""),
        ({"leader": "8", "isLearner": True}, "learner", "is a learner without a vote"),
        ({}, "", "sees no leader"),
    ],
)
def test_etcd_role_and_problem(reply: dict[str, Any], role: str, problem: str) -> None:
    found = etcd_role({"header": {"member_id": "7"}} | reply)
    assert found[0] == role
    assert found[1].startswith(problem)
    assert bool(found[1]) == bool(problem)


def test_servers_are_compared_with_the_inventory() -> None:
    found = [ServerStatus("shop", "web1", "UP"), ServerStatus("shop", "old", "UP"), ServerStatus("own", "x", "no check")]
    compared = compare_servers(found, {"shop": {"servers": {"web1": "192.0.2.1", "web2": "192.0.2.2"}}})
    assert [(server.server, server.problem) for server in compared] == [
        ("web1", ""),
        ("old", "haproxy: shop has a server old that is not in the inventory; run site.yml to remove it"),
        ("x", ""),
        ("web2", "haproxy: shop lacks the server web2 of the inventory; run site.yml to add it"),
    ]


def test_a_floating_ip_on_the_loopback_interface_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(name: str, address: str) -> dict[str, Any]:
        return {"ifname": name, "addr_info": [{"local": address, "prefixlen": 24}]}

    def held(*interfaces: dict[str, Any]) -> bool:
        monkeypatch.setattr(machine, "interfaces", lambda: list(interfaces))
        return floating_ip_status("192.0.2.100/24").held

    own = link("eth0", "192.0.2.11")
    assert not held(own)
    assert held(own, link("eth0", "192.0.2.100"))
    assert not held(own, link("lo", "192.0.2.100")), "a handover is in progress"


@pytest.mark.parametrize(
    ("host", "found"),
    [(1060.0, ""), (940.0, ""), (1100.4, "its clock is 100 s ahead of"), (100.0, "its clock is 900 s behind")],
)
def test_a_clock_that_differs_from_that_of_the_controller_is_a_problem(host: float, found: str) -> None:
    problem = machine.clock_problem(1000.0, host)
    assert problem.startswith(found)
    assert bool(problem) == bool(found)
