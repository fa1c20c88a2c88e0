"""The firewalls of the fleet: hosts reach the ports they need from each other, everyone else only the site and SSH."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from testinfra.host import Host

from tests.support.fleet import Clients, Fleet
from tests.support.remote import eventually, expect_success, python, run_playbook

#: Listening ports of an app host: SSH, nginx, etcd, MongoDB, and one that belongs to no service.
SSH, HTTP, HTTPS, ETCD, ETCD_MEMBERS, MONGODB, STRAY = 22, 80, 443, 2379, 2380, 27017, 8099
PORTS = [SSH, HTTP, HTTPS, ETCD, ETCD_MEMBERS, MONGODB, STRAY]

#: Prints the rules that are loaded at boot.
PRINT_SAVED_RULES = "cat /etc/funnel/firewall.nft"

#: Prints which ports of an address accept connections.
PROBE = """
import json, socket
from concurrent.futures import ThreadPoolExecutor

def takes(port):
    try:
        socket.create_connection(({0!r}, port), timeout=1.5).close()
    except OSError:
        return False
    return True

with ThreadPoolExecutor() as pool:
    print(json.dumps([port for port, taken in zip({1!r}, pool.map(takes, {1!r})) if taken]))
"""

#: An SSH proxy command that allows a single connection.
SINGLE_CONNECTION_PROXY = """
import os, pathlib, socket, sys, threading
pathlib.Path(sys.argv[1]).mkdir()
with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as connection:
    def send():
        while data := os.read(0, 65536):
            connection.sendall(data)
    threading.Thread(target=send, daemon=True).start()
    while data := connection.recv(65536):
        os.write(1, data)
"""


@pytest.fixture
def web1(fleet: Fleet) -> Iterator[Host]:
    """Return an app host with a listener that belongs to no service."""
    host = fleet.hosts["web1"]
    host.check_output(f"systemd-run --quiet --collect --unit=stray python3 -m http.server {STRAY}")
    eventually(lambda: reachable_ports(fleet.addresses["web1"], host) == PORTS)
    yield host
    host.check_output("systemctl stop stray")


def reachable_ports(address: str, host: Host | None = None) -> list[int]:
    """Return the ports of an address that are reachable from a host, or from the controller."""
    code = PROBE.format(address, PORTS)
    if host:
        return list(python(host, code))
    return list(json.loads(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout))


def rules(host: Host) -> str:
    """Return the active firewall rules of a host."""
    return host.check_output("nft list table inet funnel")


@pytest.mark.usefixtures("web1")
def test_firewall_allows_only_required_ports(fleet: Fleet) -> None:
    address = fleet.addresses["web1"]
    # A rule of the scenario allows HTTP for its network.
    assert reachable_ports(address) == [SSH, HTTP]
    assert reachable_ports(address, fleet.hosts["lb1"]) == [SSH, HTTP, HTTPS]
    assert reachable_ports(address, fleet.hosts["web2"]) == [SSH, HTTP, ETCD, ETCD_MEMBERS, MONGODB]
    assert reachable_ports(fleet.addresses["lb2"]) == [SSH, HTTP, HTTPS]


def test_rules_that_would_lock_out_the_operator_are_rejected(fleet: Fleet) -> None:
    before = rules(fleet.hosts["web1"])
    status, output = run_playbook("playbooks/firewall.yml", "web1", "-e", '{"firewall_ssh_sources": ["198.51.100.0/24"]}')
    assert status != 0
    assert "SSH would be allowed only from 198.51.100.0/24 to port 22; nothing was changed" in " ".join(output.split())
    assert rules(fleet.hosts["web1"]) == before


def test_unconfirmed_rules_are_rolled_back(fleet: Fleet, web1: Host, tmp_path: Path) -> None:
    proxy, options = tmp_path / "once.py", tmp_path / "options.yml"
    proxy.write_text(SINGLE_CONNECTION_PROXY)
    variables = {
        "ansible_ssh_extra_args": f"-o ProxyCommand='{sys.executable} {proxy} {tmp_path}/used %h %p'",
        "ansible_control_path": f"{tmp_path}/control",
        "firewall_allow": [{"port": STRAY}],
        "firewall_confirm": 5,
    }
    options.write_text(yaml.safe_dump(variables))
    before, saved = rules(web1), web1.check_output(PRINT_SAVED_RULES)
    status, output = run_playbook("playbooks/firewall.yml", "web1", "-e", f"@{options}")
    assert status != 0
    assert "no new connection succeeds with the new rules" in output
    assert STRAY in reachable_ports(fleet.addresses["web1"]), "the rules must have been active"
    eventually(lambda: rules(web1) == before)
    assert STRAY not in reachable_ports(fleet.addresses["web1"])
    assert web1.check_output(PRINT_SAVED_RULES) == saved


def test_firewall_is_removed_and_restored_without_losing_requests(fleet: Fleet, clients: Clients, web1: Host) -> None:
    hosts = f"web1:{fleet.active()}"
    expect_success(run_playbook("playbooks/firewall.yml", hosts))  # drops rules for a host that has left
    before = rules(web1)
    web1.check_output("nft add table inet other")
    with clients("firewall removed and restored"):
        expect_success(run_playbook("playbooks/firewall.yml", hosts, "-e", "firewall_enabled=false"))
        assert web1.check_output("nft list tables") == "table inet other"
        assert web1.run(PRINT_SAVED_RULES).rc != 0
        assert reachable_ports(fleet.addresses["web1"]) == PORTS
        expect_success(run_playbook("playbooks/firewall.yml", hosts))
    assert rules(web1) == before
    web1.check_output("nft delete table inet other")
