"""Who reaches what in the fleet: its hosts what they need of each other, everybody else the site and SSH."""

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

#: Ports that are listened at on an app host: those of SSH, nginx, etcd and MongoDB, and one that nobody has asked for.
SSH, HTTP, HTTPS, ETCD, ETCD_MEMBERS, MONGODB, STRAY = 22, 80, 443, 2379, 2380, 27017, 8099
PORTS = [SSH, HTTP, HTTPS, ETCD, ETCD_MEMBERS, MONGODB, STRAY]

#: Shows what is loaded at each boot.
KEPT = "cat /etc/funnel/firewall.nft"

#: Prints which of some ports of an address take a connection.
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

#: A way to a host that lets one connection through, and then no more.
ONCE = """
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
    """Return an app host on which something listens that nobody has asked for."""
    host = fleet.hosts["web1"]
    host.check_output(f"systemd-run --quiet --collect --unit=stray python3 -m http.server {STRAY}")
    eventually(lambda: reached(fleet.addresses["web1"], host) == PORTS)
    yield host
    host.check_output("systemctl stop stray")


def reached(address: str, host: Host | None = None) -> list[int]:
    """Return the ports of an address that are reached from a host, or from this machine."""
    code = PROBE.format(address, PORTS)
    if host:
        return list(python(host, code))
    return list(json.loads(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout))


def rules(host: Host) -> str:
    """Return the firewall of a host."""
    return host.check_output("nft list table inet funnel")


@pytest.mark.usefixtures("web1")
def test_a_host_lets_in_what_the_others_need_of_it_and_nothing_else(fleet: Fleet) -> None:
    address = fleet.addresses["web1"]
    # HTTP is for everybody by a rule of the scenario's own.
    assert reached(address) == [SSH, HTTP]
    assert reached(address, fleet.hosts["lb1"]) == [SSH, HTTP, HTTPS]
    assert reached(address, fleet.hosts["web2"]) == [SSH, HTTP, ETCD, ETCD_MEMBERS, MONGODB]
    assert reached(fleet.addresses["lb2"]) == [SSH, HTTP, HTTPS]


def test_rules_that_would_lock_out_the_operator_are_refused(fleet: Fleet) -> None:
    before = rules(fleet.hosts["web1"])
    status, output = run_playbook("playbooks/firewall.yml", "web1", "-e", '{"firewall_ssh_sources": ["198.51.100.0/24"]}')
    assert status != 0
    assert "SSH would be allowed only from 198.51.100.0/24 to port 22; nothing was changed" in " ".join(output.split())
    assert rules(fleet.hosts["web1"]) == before


def test_rules_that_no_new_connection_confirms_are_taken_back(fleet: Fleet, web1: Host, tmp_path: Path) -> None:
    way, options = tmp_path / "once.py", tmp_path / "options.yml"
    way.write_text(ONCE)
    variables = {
        "ansible_ssh_extra_args": f"-o ProxyCommand='{sys.executable} {way} {tmp_path}/gone %h %p'",
        "ansible_control_path": f"{tmp_path}/control",
        "firewall_allow": [{"port": STRAY}],
        "firewall_confirm": 5,
    }
    options.write_text(yaml.safe_dump(variables))
    before, kept = rules(web1), web1.check_output(KEPT)
    status, output = run_playbook("playbooks/firewall.yml", "web1", "-e", f"@{options}")
    assert status != 0
    assert "no new connection succeeds with the new rules" in output
    assert STRAY in reached(fleet.addresses["web1"]), "they were in force"
    eventually(lambda: rules(web1) == before)
    assert STRAY not in reached(fleet.addresses["web1"])
    assert web1.check_output(KEPT) == kept


def test_it_is_taken_away_and_set_again_and_no_client_notices(fleet: Fleet, clients: Clients, web1: Host) -> None:
    hosts = f"web1:{fleet.active()}"
    expect_success(run_playbook("playbooks/firewall.yml", hosts))  # a host that has left may be let in until now
    before = rules(web1)
    web1.check_output("nft add table inet theirs")
    with clients("the firewall is taken away, and set again"):
        expect_success(run_playbook("playbooks/firewall.yml", hosts, "-e", "firewall_enabled=false"))
        assert web1.check_output("nft list tables") == "table inet theirs"
        assert web1.run(KEPT).rc != 0
        assert reached(fleet.addresses["web1"]) == PORTS
        expect_success(run_playbook("playbooks/firewall.yml", hosts))
    assert rules(web1) == before
    web1.check_output("nft delete table inet theirs")
