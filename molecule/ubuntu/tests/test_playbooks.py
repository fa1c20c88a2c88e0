"""Every role and playbook on Ubuntu, with the fleet of the scenario ``fleet``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.acme import fetch_roots
from tests.support.fleet import NAME, PRINT_BOOT_ID, Fleet, app_entry
from tests.support.remote import Site, deploy, eventually, expect_success, processes, run_playbook
from tests.support.upgrades import publish_newer_packages, versions


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """Return the fleet."""
    return Fleet()


@pytest.fixture
def site(fleet: Fleet) -> Site:
    """Return the site at the floating IP."""
    return Site(fleet.floating_ip, NAME)


def status(directory: Path) -> dict[str, Any]:
    """Return the report of status.yml by host, which has no problems."""
    file = directory / "status.json"
    expect_success(run_playbook("playbooks/status.yml", "all", "-e", f"json={file}"))
    found = json.loads(file.read_text())
    assert found["problems"] == []
    return dict(found["hosts"])


def test_site_playbook_provisions_every_tier(fleet: Fleet, tmp_path: Path) -> None:
    eventually(fleet.is_healthy, 60)
    roots = fetch_roots(fleet.addresses["web3"], tmp_path)
    assert Site(fleet.floating_ip, NAME, https=True, ca=roots).get("/readyz").status == 200
    for name, host in status(tmp_path).items():
        tier = {"haproxy", "keepalived"} if name in fleet.balancers else {"nginx", "supervisor", "mongod", "etcd"}
        logs = {"rsyslog"} if name in ("web1", "web2") else set()
        assert {service["name"] for service in host["services"] if service["active"]} == tier | logs


@pytest.mark.parametrize("name", ["web1", "web2"])
def test_log_server_receives_lines_from_the_fleet(fleet: Fleet, name: str) -> None:
    for sender in fleet.balancers.values():
        sender.check_output(f"logger --udp --server {fleet.addresses[name]} --port 514 --tag probe --rfc3164 received")
    lines = "grep --recursive --files-with-matches 'received' /var/log/fleet | sort"
    eventually(
        lambda: fleet.hosts[name].check_output(lines).split() == [f"/var/log/fleet/{lb}/probe.log" for lb in fleet.balancers]
    )


@pytest.mark.parametrize("name", ["web1", "web2", "lb1", "lb2"])
def test_optional_roles_configure_exporters_firewall_and_upgrades(fleet: Fleet, name: str) -> None:
    host = fleet.hosts[name]
    assert "policy drop" in host.check_output("nft list table inet funnel")
    expected = "1" if name.startswith("web") else ""
    services = "prometheus-node-exporter apt-daily-upgrade.timer"
    shown = host.check_output(f"apt-config dump --format '%v' APT::Periodic::Unattended-Upgrade; systemctl is-active {services}")
    assert shown == f"{expected}active\nactive"


def test_deploy_restart_and_rollback(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.themes()
    expect_success(deploy("sample", "all", tmp_path, app_entry(env={"SAMPLE_THEME": "dark"})))
    assert fleet.themes() == dict.fromkeys(before, "dark")
    started = {name: set(processes(host, "sample").values()) for name, host in fleet.app_hosts.items()}
    expect_success(run_playbook("playbooks/restart.yml", "all", "-e", "app=sample"))
    for name, host in fleet.app_hosts.items():
        assert started[name].isdisjoint(processes(host, "sample").values())
    expect_success(run_playbook("playbooks/rollback.yml", "all", "-e", "app=sample"))
    assert fleet.themes() == before
    eventually(fleet.is_healthy, 60)


def test_commands_logs_requests_and_maintenance_mode(fleet: Fleet, site: Site) -> None:
    request = site.get("/nowhere").headers["x-request-id"]
    assert " 404 GET /nowhere " in expect_success(run_playbook("playbooks/find_request.yml", "all", "-e", f"id={request}"))
    assert " 404 GET /nowhere " in expect_success(run_playbook("playbooks/logs.yml", "all", "-e", "app=sample"))
    command = ["-e", "app=sample", "-e", "command=hostname", "-e", "once=false"]
    output = expect_success(run_playbook("playbooks/run.yml", "all", *command))
    assert {name for name in fleet.app_hosts if f"\n  {name}\n" in output} == set(fleet.app_hosts)
    for state, code in (("on", 503), ("off", 200)):
        expect_success(run_playbook("playbooks/maintenance.yml", "all", "-e", "app=sample", "-e", f"state={state}"))
        assert {
            Site(address, NAME).get("/whoami").status for name, address in fleet.addresses.items() if name in fleet.app_hosts
        } == {code}


def test_backups_of_mongodb_and_etcd_are_restored(site: Site, tmp_path: Path) -> None:
    location = site.request("POST", "/documents", '{"title": "kept"}', {"Content-Type": "application/json"}).headers["location"]
    expect_success(run_playbook("playbooks/backup.yml", "all", "-e", f"fetch={tmp_path}"))
    backups = {kind: sorted(path for path in tmp_path.iterdir() if kind in path.name) for kind in ("mongodb", "etcd")}
    assert site.request("DELETE", location).status == 204
    expect_success(run_playbook("playbooks/restore.yml", "all", "-e", f"mongodb={backups['mongodb'][0]}", "-e", "force=true"))
    assert site.get(location).json["title"] == "kept"
    expect_success(run_playbook("playbooks/restore.yml", "all", "-e", f"etcd={backups['etcd'][0]}"))
    eventually(lambda: site.get("/readyz").status == 200)


def boot_ids(fleet: Fleet) -> dict[str, str]:
    """Return the boot ID of each host."""
    return {name: host.check_output(PRINT_BOOT_ID) for name, host in fleet.hosts.items()}


def test_hosts_are_upgraded_and_rebooted(fleet: Fleet) -> None:
    """The playbook upgrade.yml imports reboot.yml."""
    before = boot_ids(fleet)
    upgraded = {"web1": "nginx", "lb2": "haproxy"}
    for name, package in upgraded.items():
        publish_newer_packages(fleet.hosts[name], [package])
        fleet.hosts[name].check_output("touch /run/reboot-required")
    expect_success(run_playbook("playbooks/upgrade.yml", "web1:lb2", "-e", "packages=nginx,haproxy", seconds=600))
    assert all(versions(fleet.hosts[name], [package])[0].endswith("+newer") for name, package in upgraded.items())
    after = boot_ids(fleet)
    assert {name for name in before if before[name] != after[name]} == set(upgraded)
    eventually(fleet.is_healthy, 60)


def test_app_is_removed(fleet: Fleet) -> None:
    expect_success(run_playbook("playbooks/remove.yml", "all", "-e", "app=sample", "-e", '{"tornado_apps": {}}'))
    for host in fleet.app_hosts.values():
        assert host.run("ls -d /srv/sample /etc/nginx/sites-enabled/*sample*; id sample").stdout == ""
