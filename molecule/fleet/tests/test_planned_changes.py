"""Planned changes of a fleet under load: rolling deploys, canaries, reboots, upgrades and scaling lose no request."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import APP_HOSTS, BALANCERS, NAME, PRINT_BOOT_ID, Clients, Fleet, app_entry
from tests.support.recipes import User
from tests.support.remote import Site, deploy, eventually, expect_success, python, run_playbook
from tests.support.upgrades import publish_newer_packages, versions

#: Packages that are upgraded, by the prefix of host names.
PACKAGES = {"lb": ["haproxy", "keepalived"], "web": ["nginx", "supervisor"]}


#: Prints the answers of a load balancer to two requests from each of several addresses of a host.
ASK = """
import http.client, json
found = []
for source in {sources} * 2:
    connection = http.client.HTTPConnection("{address}", timeout=10, source_address=(source, 0))
    connection.request("GET", "/whoami", headers={{"Host": "{name}"}})
    found.append(json.load(connection.getresponse()))
print(json.dumps(found))
"""

#: Adds or deletes addresses of a host.
ADDRESSES = "for address in {sources}; do ip address {change} $address/32 dev host0; done"


def boot_ids(fleet: Fleet) -> dict[str, str]:
    """Return the boot ID of each host."""
    return {name: host.check_output(PRINT_BOOT_ID) for name, host in fleet.hosts.items()}


@pytest.fixture(scope="module", autouse=True)
def restore_entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Restore the scenario's entry after the module."""
    yield
    expect_success(deploy("sample", "all", tmp_path_factory.mktemp("restore"), app_entry()))


def process(answer: Any) -> tuple[str, int]:
    """Return the host and the process ID in an answer."""
    return answer["hostname"], answer["pid"]


def test_client_with_cookies_stays_with_its_process(fleet: Fleet) -> None:
    """The cookie of nginx selects the process, that of HAProxy the host; both load balancers accept them."""
    served = []
    for _ in range(16):
        user = User(Site(fleet.floating_ip, NAME))
        served.append(process(user.get("/whoami").json))
        for name in BALANCERS * 2:
            user.site = Site(fleet.addresses[name], NAME)
            assert process(user.get("/whoami").json) == served[-1]
    assert {host for host, _ in served} == set(APP_HOSTS)
    assert len(set(served)) > len(APP_HOSTS), "all processes of a host get clients"


def test_address_of_a_client_selects_its_process(fleet: Fleet, tmp_path: Path) -> None:
    """The clients are addresses of a host; a load balancer with another version of HAProxy may select another app host."""
    client, network = fleet.hosts["web1"], fleet.floating_ip.rpartition(".")[0]
    sources = [f"{network}.{number}" for number in range(200, 216)]  # so many that they do not all select the same process
    expect_success(deploy("sample", "all", tmp_path, app_entry(affinity="address")))
    client.check_output(ADDRESSES.format(change="add", sources=" ".join(sources)))
    try:
        served = set()
        for name in BALANCERS:
            answers = python(client, ASK.format(address=fleet.addresses[name], name=NAME, sources=sources))
            first, second = (list(map(process, found)) for found in (answers[: len(sources)], answers[len(sources) :]))
            assert first == second
            served |= {*first}
        assert len({host for host, _ in served}) > 1
        assert len(served) > len({host for host, _ in served}), "all processes of a host get clients"
    finally:
        client.check_output(ADDRESSES.format(change="delete", sources=" ".join(sources)))
        expect_success(deploy("sample", "all", tmp_path, app_entry()))


def test_deploy_in_batches(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    with clients("deploy, two hosts at a time") as traffic:
        output = expect_success(
            deploy("sample", "app_hosts", tmp_path, app_entry(env={"SAMPLE_THEME": "dark"}), "-e", "batch=2", "-e", "pause=1")
        )
    assert set(fleet.themes().values()) == {"dark"}, output
    for load in traffic.loads.values():
        assert load.result.closes.get("1012", 0) >= load.shape.websockets, "all websockets must be asked to reconnect"


def test_failing_canary_stops_the_deploy_and_passing_one_completes_it(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    expect_success(deploy("sample", "app_hosts", tmp_path, app_entry(env={"SAMPLE_THEME": "dark"})))
    canary = app_entry(env={"SAMPLE_THEME": "canary", "RUN": uuid.uuid4().hex})  # not rolled back before
    with clients("canary with failing check"):
        status, output = deploy("sample", "app_hosts", tmp_path, canary, "-e", "canary=true", "-e", "check=false")
    assert status != 0
    assert fleet.themes() == {"web1": "canary", "web2": "dark", "web3": "dark"}, output
    assert all(f"sample: {name} " in output for name in APP_HOSTS), output
    assert "ansible-playbook funnel.tornado.rollback -i" in output

    with clients("canary with passing check"):
        expect_success(deploy("sample", "app_hosts", tmp_path, canary, "-e", "canary=true", "-e", "check=true"))
    assert set(fleet.themes().values()) == {"canary"}

    with clients("rollback"):
        expect_success(run_playbook("playbooks/rollback.yml", "app_hosts", "-e", "app=sample"))
    assert set(fleet.themes().values()) == {"dark"}


def test_unhealthy_release_stops_at_the_canary(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    before = fleet.themes()
    unhealthy = app_entry(env={"SAMPLE_THEME": "light"}, health={"path": "/none", "timeout": 3})
    with clients("unhealthy canary"):
        status, output = deploy("sample", "app_hosts", tmp_path, unhealthy, "-e", "canary=true")
    assert status != 0
    assert fleet.themes() == before, output


def test_rolling_reboot(fleet: Fleet, clients: Clients) -> None:
    before = boot_ids(fleet)
    fleet.hosts["web1"].check_output("touch /run/reboot-required")
    with clients("reboot.yml, all hosts but web3", websockets_break=True):  # test_clients.py reboots web3
        expect_success(run_playbook("playbooks/reboot.yml", "web1:web2", "-e", "only_needed=true"))
        assert [name for name, boot in boot_ids(fleet).items() if boot != before[name]] == ["web1"]
        expect_success(run_playbook("playbooks/reboot.yml", "all:!web1:!web3", seconds=600))
    after = boot_ids(fleet)
    assert [name for name in before if before[name] == after[name]] == ["web3"]


def test_rolling_upgrade(fleet: Fleet, clients: Clients) -> None:
    for name, host in fleet.hosts.items():
        publish_newer_packages(host, PACKAGES[name[:-1]])
    fleet.hosts["web2"].check_output("touch /run/reboot-required")
    before = boot_ids(fleet)
    with clients("upgrade.yml, all hosts", websockets_break=True):
        expect_success(
            run_playbook("playbooks/upgrade.yml", "balancers", "-e", f"packages={','.join(PACKAGES['lb'])}", seconds=600)
        )
        expect_success(run_playbook("playbooks/upgrade.yml", "app_hosts", seconds=600))
    found = {name: versions(host, PACKAGES[name[:-1]]) for name, host in fleet.hosts.items()}
    assert all(version.endswith("+newer") for installed in found.values() for version in installed), found
    after = boot_ids(fleet)
    assert [name for name in before if before[name] != after[name]] == ["web2"]


def test_host_is_added_and_removed(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    fleet.add("web4", "trixie", inventory)
    try:
        with clients("host added"):
            expect_success(run_playbook("site.yml", "all", "-i", str(inventory)))
        eventually(fleet.is_healthy)  # not under load: HAProxy prefers the host with the fewest connections
        with clients("host removed"):
            expect_success(run_playbook("playbooks/balancers.yml", "all"))
            assert [set(fleet.servers(name)) for name in BALANCERS] == [set(APP_HOSTS)] * len(BALANCERS)
    finally:
        fleet.remove("web4")
