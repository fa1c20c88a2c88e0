"""The status of a healthy fleet, and of one with problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.fleet import APP_HOSTS, BALANCERS, Fleet, app_entry
from tests.support.remote import deploy, expect_success, python, run_playbook

#: Sets the state of an HAProxy server on a load balancer; prints HAProxy's error message, if any.
SET_SERVER = """
import json, socket
with socket.socket(socket.AF_UNIX) as admin:
    admin.connect("/run/haproxy-funnel/admin.sock")
    admin.sendall(b"set server {}\\n")
    print(json.dumps(admin.recv(65536).decode().strip()))
"""


def run_status(directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run status.yml; return its exit status and its JSON report."""
    file = directory / "status.json"
    status, output = run_playbook("playbooks/status.yml", "all", "-e", f"json={file}", *options)
    assert file.exists(), output[-3000:]
    return status, json.loads(file.read_text())


def test_status_of_healthy_fleet(fleet: Fleet, tmp_path: Path) -> None:
    status, found = run_status(tmp_path)
    assert (status, found["problems"]) == (0, [])
    hosts = found["hosts"]
    assert hosts.keys() == {*BALANCERS, *APP_HOSTS}
    assert {name: hosts[name]["machine"]["distribution"][:9] for name in ("lb1", "lb2", "web1", "web2")} == {
        "lb1": "Debian 12",
        "lb2": "Debian 13",
        "web1": "Debian 12",
        "web2": "Debian 13",
    }
    assert [name for name in BALANCERS if hosts[name]["addresses"][0]["held"]] == [fleet.active()]
    for name in BALANCERS:
        assert {
            server["server"]: server["status"] for server in hosts[name]["servers"] if server["backend"] == "sample"
        } == dict.fromkeys(APP_HOSTS, "UP")
        assert [certificate["app"] for certificate in hosts[name]["certificates"]] == ["sample"]
    services = {(name, service["name"]): service for name, host in hosts.items() for service in host["services"]}
    assert all(service["version"] and service["active"] and service["open_files_limit"] for service in services.values())
    assert {name for _, name in services} == {"haproxy", "keepalived", "nginx", "supervisor", "mongod", "etcd"}
    assert sorted(services[name, "mongod"]["role"] for name in APP_HOSTS) == ["primary", *["secondary"] * (len(APP_HOSTS) - 1)]
    assert sorted(services[name, "etcd"]["role"] for name in APP_HOSTS) == [*["follower"] * (len(APP_HOSTS) - 1), "leader"]
    assert len({hosts[name]["apps"][0]["content"] for name in APP_HOSTS}) == 1


def test_status_reports_problems_and_drift_from_the_inventory(fleet: Fleet, tmp_path: Path) -> None:
    standby = fleet.standby()
    inventory = tmp_path / "more.yml"
    unused_address = fleet.floating_ip.rpartition(".")[0] + ".9"
    inventory.write_text(yaml.safe_dump({"app_hosts": {"hosts": {"web9": {"ansible_host": unused_address}}}}))
    expect_success(deploy("sample", "web1", tmp_path, app_entry(env={"SAMPLE_THEME": "dark"})))
    assert python(fleet.balancers["lb1"], SET_SERVER.format("sample/web2 state drain")) == ""
    fleet.balancers[standby].run_expect([0], "systemctl stop keepalived")
    fleet.hosts["web2"].run_expect([0], "supervisorctl stop $(supervisorctl status | grep -o '^sample-[ab]:1')")
    fleet.hosts["web3"].run_expect([0], "nft flush ruleset")
    try:
        status, found = run_status(tmp_path, "-i", str(inventory))
    finally:
        fleet.hosts["web3"].run_expect([0], "systemctl reload funnel-firewall")
        fleet.hosts["web2"].run_expect([0], "supervisorctl start $(supervisorctl status | grep -o '^sample-[ab]:1')")
        fleet.balancers[standby].run_expect([0], "systemctl start keepalived")
        assert python(fleet.balancers["lb1"], SET_SERVER.format("sample/web2 state ready")) == ""
        expect_success(deploy("sample", "app_hosts", tmp_path, app_entry()))
    problems = "\n".join(found["problems"])
    assert status != 0
    assert found["healthy"] is False
    assert "web9: unreachable" in problems
    assert "web9" not in found["hosts"]
    for name in BALANCERS:
        assert f"{name}: haproxy: sample lacks the server web9 of the inventory; run site.yml to add it" in problems
    assert "lb1: haproxy: server web2 of sample is DRAIN" in problems
    assert f"{standby}: keepalived: is not running" in problems
    assert (
        "web3: the firewall is not active: its nftables table was flushed or replaced; run firewall.yml to restore it" in problems
    )
    assert "web2: sample: process" in problems
    assert "is STOPPED, health 0" in problems
    assert "sample: hosts serve different releases: web1 " in problems
