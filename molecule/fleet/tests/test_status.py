"""What the status says of the whole fleet, when it is well and when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.fleet import APP_HOSTS, BALANCERS, Fleet, entry
from tests.support.remote import deploy, expect_success, python, run_playbook

#: Tells, on a balancer, HAProxy to set something; prints its words, which are about what is wrong.
SET = """
import json, socket
with socket.socket(socket.AF_UNIX) as admin:
    admin.connect("/run/haproxy-funnel/admin.sock")
    admin.sendall(b"set server {}\\n")
    print(json.dumps(admin.recv(65536).decode().strip()))
"""


def look(directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status of the playbook, and what it found."""
    file = directory / "status.json"
    status, output = run_playbook("playbooks/status.yml", "all", "-e", f"json={file}", *options)
    assert file.exists(), output[-3000:]
    return status, json.loads(file.read_text())


def test_a_fleet_that_is_well(fleet: Fleet, tmp_path: Path) -> None:
    status, found = look(tmp_path)
    assert (status, found["problems"]) == (0, [])
    hosts = found["hosts"]
    assert hosts.keys() == {*BALANCERS, *APP_HOSTS}
    assert {name: hosts[name]["machine"]["debian"][:2] for name in ("lb1", "lb2", "web1", "web2")} == {
        "lb1": "12",
        "lb2": "13",
        "web1": "12",
        "web2": "13",
    }
    assert [name for name in BALANCERS if hosts[name]["addresses"][0]["held"]] == [fleet.active()]
    for name in BALANCERS:
        assert {one["server"]: one["status"] for one in hosts[name]["servers"] if one["backend"] == "sample"} == dict.fromkeys(
            APP_HOSTS, "UP"
        )
        assert [one["app"] for one in hosts[name]["certificates"]] == ["sample"]
    services = {(name, one["name"]): one for name, host in hosts.items() for one in host["services"]}
    assert all(one["version"] and one["active"] and one["open_files_limit"] for one in services.values())
    assert {name for _, name in services} == {"haproxy", "keepalived", "nginx", "supervisor", "mongod", "etcd"}
    assert sorted(services[name, "mongod"]["role"] for name in APP_HOSTS) == ["primary", *["secondary"] * (len(APP_HOSTS) - 1)]
    assert sorted(services[name, "etcd"]["role"] for name in APP_HOSTS) == [*["follower"] * (len(APP_HOSTS) - 1), "leader"]
    assert len({hosts[name]["apps"][0]["content"] for name in APP_HOSTS}) == 1


def test_what_is_not_well_and_what_differs_from_the_inventory_is_named(fleet: Fleet, tmp_path: Path) -> None:
    standby = fleet.standby()
    more = tmp_path / "more.yml"
    nobody = fleet.address.rpartition(".")[0] + ".9"
    more.write_text(yaml.safe_dump({"app_hosts": {"hosts": {"web9": {"ansible_host": nobody}}}}))
    expect_success(deploy("sample", "web1", tmp_path, entry(env={"SAMPLE_THEME": "dark"})))
    assert python(fleet.balancers["lb1"], SET.format("sample/web2 state drain")) == ""
    fleet.balancers[standby].run_expect([0], "systemctl stop keepalived")
    fleet.hosts["web2"].run_expect([0], "supervisorctl stop $(supervisorctl status | grep -o '^sample-[ab]:1')")
    fleet.hosts["web3"].run_expect([0], "nft flush ruleset")
    try:
        status, found = look(tmp_path, "-i", str(more))
    finally:
        fleet.hosts["web3"].run_expect([0], "systemctl reload funnel-firewall")
        fleet.hosts["web2"].run_expect([0], "supervisorctl start $(supervisorctl status | grep -o '^sample-[ab]:1')")
        fleet.balancers[standby].run_expect([0], "systemctl start keepalived")
        assert python(fleet.balancers["lb1"], SET.format("sample/web2 state ready")) == ""
        expect_success(deploy("sample", "app_hosts", tmp_path, entry()))
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
