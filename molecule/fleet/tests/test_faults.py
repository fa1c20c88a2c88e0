"""What fails: only requests that are in flight on what died may fail, once, and soon all is as before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.fleet import CUT, MEND, SCHEMES, Clients, Fleet, entry, harm, power, power_off
from tests.support.remote import deploy, eventually, expect_success, processes

#: An app host that is neither the first member of the database nor of the lock servers.
VICTIM = "web3"

#: The logs, and what else is written to while an app serves and is deployed, but for its sockets.
LOGS = "/var/log/nginx /var/log/sample /var/log/supervisor"
WRITTEN = "/srv/sample/releases /srv/sample/environments /srv/sample/shared /var/lib/nginx /tmp /var/tmp"

#: Fills the disk as far as it is theirs: what is there can be read and opened, and the next write has no space left.
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
    """Return a function that fills an app host's disk; it has space again afterwards."""
    host = fleet.hosts[VICTIM]
    yield lambda: host.check_output(FILL)
    host.check_output(FREE)


@pytest.fixture
def slow_start(fleet: Fleet) -> Iterator[Callable[[Host], object]]:
    """Return a function that has HAProxy start as slowly as on a busy host."""
    directory = "/run/systemd/system/haproxy.service.d"
    write = f"mkdir {directory} && printf '[Service]\\nExecStartPre=/bin/sleep 0.5\\n' > {directory}/slow.conf"
    yield lambda host: host.check_output(f"{write} && systemctl daemon-reload")
    for host in fleet.balancers.values():
        host.check_output(f"rm -rf {directory} && systemctl daemon-reload")


def test_a_tornado_is_killed(fleet: Fleet, clients: Clients) -> None:
    before = processes(fleet.hosts[VICTIM], "sample")
    with clients("a Tornado is killed") as traffic:
        traffic.strike(lambda: harm(fleet.hosts[VICTIM], f"kill -KILL {min(before.values())}"))
    assert len(set(processes(fleet.hosts[VICTIM], "sample").values()) & set(before.values())) == 1


def test_nginx_is_killed(fleet: Fleet, clients: Clients) -> None:
    with clients("nginx is killed") as traffic:
        traffic.strike(lambda: harm(fleet.hosts[VICTIM], "pkill -KILL -x nginx"))
        eventually(fleet.whole)


def test_haproxy_is_killed(fleet: Fleet, clients: Clients, slow_start: Callable[[Host], object]) -> None:
    name = fleet.active()
    slow_start(fleet.hosts[name])
    with clients("HAProxy is killed") as traffic:
        # What comes until systemd has started it again waits, keepalived's question as well.
        traffic.strike(lambda: harm(fleet.hosts[name], "pkill -KILL -x haproxy"))
        assert fleet.active() == name, "each move cuts connections"


def test_haproxy_hangs(fleet: Fleet, clients: Clients) -> None:
    sick = fleet.hosts[(name := fleet.active())]
    try:
        with clients("HAProxy hangs") as traffic:
            # The kernel goes on taking connections for it, until the address has moved.
            traffic.strike(lambda: harm(sick, "pkill -STOP -x haproxy"), lasting=2.5)
            assert fleet.active() != name
    finally:
        sick.check_output("pkill -CONT -x haproxy")
    with clients("HAProxy goes on"):
        eventually(fleet.whole)
        assert fleet.active() != name, "the address stays: to take it back would cut connections"


def test_an_app_host_loses_its_power_and_misses_a_deploy(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    others = set(fleet.app_hosts) - {VICTIM}
    theme = "light" if fleet.themes()[VICTIM] == "dark" else "dark"
    other = entry(env={"SAMPLE_THEME": theme})
    with clients("an app host loses its power") as traffic:
        traffic.strike(lambda: power_off(VICTIM))
        assert VICTIM not in fleet.serving()
        power("up", VICTIM)
    with clients("the app host is back"):
        eventually(fleet.whole, 60)

    power_off(VICTIM)
    try:
        with clients("a deploy without it", post="") as traffic:
            status, output = deploy("sample", "app_hosts", tmp_path, other, "-e", "strict=true")
            assert status != 0
            assert f"{VICTIM}: unreachable; strict skips no host, and nothing was changed" in output
            status, output = deploy("sample", "app_hosts", tmp_path, other)
            assert status != 0
            assert re.search(rf"{VICTIM} .* unreachable=1 ", output)
    finally:
        power("up", VICTIM)
    eventually(fleet.whole, 60)
    assert {name for name, found in fleet.themes().items() if found == theme} == others
    with clients("the same again"):
        expect_success(deploy("sample", "app_hosts", tmp_path, other))
    assert set(fleet.themes().values()) == {theme}


def test_the_active_balancer_loses_its_power(fleet: Fleet, clients: Clients) -> None:
    name, standby = fleet.active(), fleet.standby()
    with clients("the active balancer loses its power") as traffic:
        traffic.strike(lambda: power_off(name))
    with clients("the balancer is back"):
        power("up", name)
        eventually(fleet.whole, 60)
        assert fleet.active() == standby, "the address stays: to take it back would cut connections"


def test_the_link_between_balancer_and_app_host_is_cut(fleet: Fleet, clients: Clients) -> None:
    name, host = fleet.active(), fleet.hosts[VICTIM]
    try:
        with clients("a link is cut") as traffic:
            traffic.strike(lambda: harm(host, CUT.format(fleet.addresses[name])))
            assert fleet.servers(name)[VICTIM].startswith("DOWN")
            assert fleet.servers(fleet.standby())[VICTIM] == "UP"
        with clients("the link is mended"):
            host.check_output(MEND)
            eventually(fleet.whole)
    finally:
        host.run(MEND)


def test_a_disk_is_full(fleet: Fleet, clients: Clients, disk_full: Callable[[], object], tmp_path: Path) -> None:
    before = fleet.releases()
    # What an app itself has to write it cannot; all else goes on.
    with clients("a disk is full", post="/echo") as traffic:
        disk_full()
        status, output = deploy("sample", "app_hosts", tmp_path, entry(env={"NEW": "which takes a build"}))
        assert status != 0
        assert f"failed: [{VICTIM}]" in output
        assert "the file system at /srv/sample/releases is full" in output
        assert fleet.releases() == before
    assert set(traffic.loads) == set(SCHEMES)
