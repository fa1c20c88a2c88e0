"""Faults: only in-flight requests to the failed component may fail, and service recovers quickly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.fleet import HEAL_PARTITION, PARTITION, SCHEMES, Clients, Fleet, app_entry, power, power_off, run_fault
from tests.support.remote import deploy, eventually, expect_success, processes

#: An app host that is not the first member of the database or lock cluster.
VICTIM = "web3"

#: The log directories, and the other directories that serving and deploying an app write to, except sockets.
LOGS = "/var/log/nginx /var/log/sample /var/log/supervisor"
WRITTEN = "/srv/sample/releases /srv/sample/environments /srv/sample/shared /var/lib/nginx /tmp /var/tmp"

#: Simulates a full disk for these directories: existing files stay readable, and writes fail for lack of space.
FILL = f"""
mkdir /run/full && mount -t tmpfs -o size=200m,mode=755 tmpfs /run/full
for directory in {WRITTEN}; do
    over=/run/full/$(echo $directory | tr / -)
    mkdir $over $over/upper $over/work && chown --reference=$directory $over/upper && chmod --reference=$directory $over/upper
    mount -t overlay -o lowerdir=$directory,upperdir=$over/upper,workdir=$over/work overlay $directory || exit
done
for directory in {LOGS}; do
    cp --archive $directory /run/full && mount --bind /run/full/$(basename $directory) $directory || exit
done
nginx -s reopen && kill -USR2 $(supervisorctl pid) || exit
head -c 200m /dev/zero > /run/full/zero 2> /dev/null
! echo full > /srv/sample/shared/new
"""
FREE = f"umount -l {WRITTEN} {LOGS} /run/full && rmdir /run/full && nginx -s reopen && kill -USR2 $(supervisorctl pid)"


@pytest.fixture
def disk_full(fleet: Fleet) -> Iterator[Callable[[], object]]:
    """Return a function that fills an app host's disk; free the space after the test."""
    host = fleet.hosts[VICTIM]
    yield lambda: host.check_output(FILL)
    host.check_output(FREE)


@pytest.fixture
def slow_start(fleet: Fleet) -> Iterator[Callable[[Host], object]]:
    """Return a function that delays the start of HAProxy, like on a busy host."""
    directory = "/run/systemd/system/haproxy.service.d"
    write = f"mkdir {directory} && printf '[Service]\\nExecStartPre=/bin/sleep 0.5\\n' > {directory}/slow.conf"
    yield lambda host: host.check_output(f"{write} && systemctl daemon-reload")
    for host in fleet.balancers.values():
        host.check_output(f"rm -rf {directory} && systemctl daemon-reload")


def test_killed_app_process(fleet: Fleet, clients: Clients) -> None:
    before = processes(fleet.hosts[VICTIM], "sample")
    with clients("app process killed") as traffic:
        traffic.inject(lambda: run_fault(fleet.hosts[VICTIM], f"kill -KILL {min(before.values())}"))
    assert len(set(processes(fleet.hosts[VICTIM], "sample").values()) & set(before.values())) == 1


def test_killed_nginx(fleet: Fleet, clients: Clients) -> None:
    with clients("nginx killed") as traffic:
        traffic.inject(lambda: run_fault(fleet.hosts[VICTIM], "pkill -KILL -x nginx"))
        eventually(fleet.is_healthy)


def test_killed_haproxy_keeps_the_floating_ip(fleet: Fleet, clients: Clients, slow_start: Callable[[Host], object]) -> None:
    name = fleet.active()
    slow_start(fleet.hosts[name])
    with clients("HAProxy killed") as traffic:
        # Connections wait until systemd has restarted HAProxy, including keepalived's health check.
        traffic.inject(lambda: run_fault(fleet.hosts[name], "pkill -KILL -x haproxy"))
        assert fleet.active() == name, "a failover would close connections"


def test_hanging_haproxy_causes_failover(fleet: Fleet, clients: Clients) -> None:
    hanging = fleet.hosts[(name := fleet.active())]
    try:
        with clients("HAProxy hangs") as traffic:
            # The kernel keeps accepting connections until the failover.
            traffic.inject(lambda: run_fault(hanging, "pkill -STOP -x haproxy"), outage=2.5)
            assert fleet.active() != name
    finally:
        hanging.check_output("pkill -CONT -x haproxy")
    with clients("HAProxy resumes"):
        eventually(fleet.is_healthy)
        assert fleet.active() != name, "the floating IP must not move back, which would close connections"


def test_app_host_loses_power_and_misses_a_deploy(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    others = set(fleet.app_hosts) - {VICTIM}
    theme = "light" if fleet.themes()[VICTIM] == "dark" else "dark"
    changed = app_entry(env={"SAMPLE_THEME": theme})
    with clients("app host loses power") as traffic:
        traffic.inject(lambda: power_off(VICTIM))
        assert VICTIM not in fleet.serving_hosts()
        power("up", VICTIM)
    with clients("app host is back"):
        eventually(fleet.is_healthy, 60)

    power_off(VICTIM)
    try:
        with clients("deploy without the host", post="") as traffic:
            status, output = deploy("sample", "app_hosts", tmp_path, changed, "-e", "strict=true")
            assert status != 0
            assert f"{VICTIM}: unreachable, and strict=true requires every host; nothing was changed" in output
            status, output = deploy("sample", "app_hosts", tmp_path, changed)
            assert status != 0
            assert re.search(rf"{VICTIM} .* unreachable=1 ", output)
    finally:
        power("up", VICTIM)
    eventually(fleet.is_healthy, 60)
    assert {name for name, found in fleet.themes().items() if found == theme} == others
    with clients("repeated deploy"):
        expect_success(deploy("sample", "app_hosts", tmp_path, changed))
    assert set(fleet.themes().values()) == {theme}


def test_partition_between_balancer_and_app_host(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    name, host = fleet.active(), fleet.hosts[VICTIM]
    try:
        with clients("network partition") as traffic:
            traffic.inject(lambda: run_fault(host, PARTITION.format(fleet.addresses[name])))
            assert fleet.servers(name)[VICTIM].startswith("DOWN")
            assert fleet.servers(fleet.standby())[VICTIM] == "UP"
        status, output = deploy("sample", "all", tmp_path, app_entry())
        assert status != 0
        problem = rf"not all backends are up at the load balancers:\s+{name}: server {VICTIM} of backend sample is DOWN"
        assert re.search(problem, output), output
        with clients("network partition healed"):
            host.check_output(HEAL_PARTITION)
            eventually(fleet.is_healthy)
    finally:
        host.run(HEAL_PARTITION)


def test_full_disk_blocks_only_deploys(fleet: Fleet, clients: Clients, disk_full: Callable[[], object], tmp_path: Path) -> None:
    before = fleet.releases()
    # Only writes of the app itself fail.
    with clients("disk full", post="/echo") as traffic:
        disk_full()
        status, output = deploy("sample", "app_hosts", tmp_path, app_entry(env={"NEW": "requires a build"}))
        assert status != 0
        assert f"fatal: [{VICTIM}]: FAILED!" in output
        assert "the disk is full at /tmp" in output
        assert fleet.releases() == before
    assert set(traffic.loads) == set(SCHEMES)
