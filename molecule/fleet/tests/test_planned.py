"""What an operator does to a fleet that is busy: no client notices any of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import APP_HOSTS, BALANCERS, Clients, Fleet, entry
from tests.support.remote import deploy, eventually, expect_success, run_playbook
from tests.support.upgrades import publish_newer_packages, versions

#: Another one after each boot.
BOOT = "cat /proc/sys/kernel/random/boot_id"

#: What is upgraded on which hosts.
PACKAGES = {"lb": ["haproxy", "keepalived"], "web": ["nginx", "supervisor"]}


def boots(fleet: Fleet) -> dict[str, str]:
    """Return which boot each host is in."""
    return {name: host.check_output(BOOT) for name, host in fleet.hosts.items()}


@pytest.fixture(scope="module", autouse=True)
def own_entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End with the scenario's entry."""
    yield
    expect_success(deploy("sample", "app_hosts", tmp_path_factory.mktemp("own"), entry()))


def test_batches(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    with clients("deploy, two hosts at a time") as traffic:
        output = expect_success(
            deploy("sample", "app_hosts", tmp_path, entry(env={"SAMPLE_THEME": "dark"}), "-e", "batch=2", "-e", "pause=1")
        )
    assert set(fleet.themes().values()) == {"dark"}, output
    for load in traffic.loads.values():
        assert load.result.closes.get("1012", 0) >= load.shape.websockets, "all were told to connect again"


def test_a_canary_that_does_badly_then_well_and_back(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    expect_success(deploy("sample", "app_hosts", tmp_path, entry(env={"SAMPLE_THEME": "dark"})))
    light = entry(env={"SAMPLE_THEME": "light"})
    with clients("a canary that its check refuses"):
        status, output = deploy("sample", "app_hosts", tmp_path, light, "-e", "canary=true", "-e", "check=false")
    assert status != 0
    assert fleet.themes() == {"web1": "light", "web2": "dark", "web3": "dark"}, output
    assert all(f"sample: {name} " in output for name in APP_HOSTS), output
    assert "ansible-playbook funnel.tornado.rollback -i" in output

    with clients("the same again, and its check is content"):
        expect_success(deploy("sample", "app_hosts", tmp_path, light, "-e", "canary=true", "-e", "check=true"))
    assert set(fleet.themes().values()) == {"light"}

    with clients("rollback"):
        expect_success(run_playbook("playbooks/rollback.yml", "app_hosts", "-e", "app=sample"))
    assert set(fleet.themes().values()) == {"dark"}


def test_a_release_that_is_not_healthy_stops_at_the_canary(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    before = fleet.themes()
    sick = entry(env={"SAMPLE_THEME": "light"}, health={"path": "/none", "timeout": 3})
    with clients("a canary that is not healthy"):
        status, output = deploy("sample", "app_hosts", tmp_path, sick, "-e", "canary=true")
    assert status != 0
    assert fleet.themes() == before, output


def test_reboot(fleet: Fleet, clients: Clients) -> None:
    before = boots(fleet)
    fleet.hosts["web1"].check_output("touch /run/reboot-required")
    with clients("reboot.yml, all hosts", websockets_break=True):
        expect_success(run_playbook("playbooks/reboot.yml", "web1:web2", "-e", "only_needed=true"))
        assert [name for name, boot in boots(fleet).items() if boot != before[name]] == ["web1"]
        expect_success(run_playbook("playbooks/reboot.yml", "all:!web1", seconds=600))
    after = boots(fleet)
    assert [name for name in before if before[name] == after[name]] == []


def test_upgrade(fleet: Fleet, clients: Clients) -> None:
    for name, host in fleet.hosts.items():
        publish_newer_packages(host, PACKAGES[name[:-1]])
    fleet.hosts["web2"].check_output("touch /run/reboot-required")
    before = boots(fleet)
    with clients("upgrade.yml, all hosts", websockets_break=True):
        expect_success(
            run_playbook("playbooks/upgrade.yml", "balancers", "-e", f"packages={','.join(PACKAGES['lb'])}", seconds=600)
        )
        expect_success(run_playbook("playbooks/upgrade.yml", "app_hosts", seconds=600))
    found = {name: versions(host, PACKAGES[name[:-1]]) for name, host in fleet.hosts.items()}
    assert all(version.endswith("+newer") for one in found.values() for version in one), found
    after = boots(fleet)
    assert [name for name in before if before[name] != after[name]] == ["web2"]


def test_a_host_is_added_and_removed(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    fleet.add("web4", "trixie", inventory)
    try:
        with clients("a host is added"):
            expect_success(run_playbook("site.yml", "all", "-i", str(inventory)))
        eventually(fleet.whole)  # not before: the host with the fewest connections is the one that answers
        with clients("a host is removed"):
            expect_success(run_playbook("playbooks/balancers.yml", "all"))
            assert [set(fleet.servers(name)) for name in BALANCERS] == [set(APP_HOSTS)] * len(BALANCERS)
    finally:
        fleet.remove("web4")
