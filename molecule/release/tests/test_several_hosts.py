"""Several hosts: no host switches if a build fails; a rollback has one target, also for hosts that never got the bad release."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients
from tests.support.remote import (
    APP_GROUP,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    find_leftovers,
    processes,
    run_playbook,
    run_site,
    sample_app_source,
    start_playbook,
)

LIGHT_LOAD = {"poll": "/sleep?seconds=1", "polls": 2, "websockets": 2}

#: Makes a host forget all releases but the live one, like a host that was replaced.
FORGET = """
python3 -c '
import json, pathlib, shutil
home = pathlib.Path("/srv/sample")
history = home / "history.json"
history.write_text(json.dumps(json.loads(history.read_text())[-1:]))
live = (home / "live/release").resolve()
for release in (home / "releases").iterdir():
    if release != live:
        shutil.rmtree(release)
'
"""


@pytest.fixture(scope="module", autouse=True)
def restore_entries(tmp_path_factory: pytest.TempPathFactory, hosts: dict[str, Host]) -> Iterator[None]:
    yield
    expect_success(run_site(APP_GROUP, tmp_path_factory.mktemp("own"), {}, "-e", "again=true"))
    assert [find_leftovers(host, "sample") for host in hosts.values()] == [[] for _ in hosts]


#: Makes releases that no earlier run has rolled back.
RUN = uuid.uuid4().hex


def entry(theme: str) -> dict[str, Any]:
    return apps(sample={"drain": 1, "processes": 1, "env": {"SAMPLE_THEME": theme, "RUN": RUN}})


def themes(hosts: dict[str, Host]) -> list[str]:
    """Return the theme that each host serves."""
    pages = [Site(address(host)).get("/").body.decode() for host in hosts.values()]
    return re.findall(r'data-theme="(\w+)"', "\n".join(pages))


def rollback(directory: Path, theme: str) -> tuple[int, str]:
    """Roll back while the inventory has the entry with a theme."""
    status, output = run_playbook("playbooks/rollback.yml", APP_GROUP, "-e", "app=sample", *extra_vars(directory, entry(theme)))
    return status, re.sub(r"\s+", " ", output)


def test_rollback_after_a_failed_canary_and_on_a_replaced_host(hosts: dict[str, Host], tmp_path: Path) -> None:
    for theme in ("oldest", "good"):
        expect_success(deploy("sample", APP_GROUP, tmp_path, entry(theme)))
    status, output = deploy("sample", APP_GROUP, tmp_path, entry("canary"), "-e", "canary=true", "-e", "check=false")
    assert status != 0, output
    assert themes(hosts) == ["canary", "good"]
    status, output = rollback(tmp_path, "canary")
    assert status == 0, output
    assert re.search(r"debian12: \w{12} -> \w{12}.*debian13: \w{12} stays", output), output
    assert themes(hosts) == ["good", "good"]

    expect_success(deploy("sample", APP_GROUP, tmp_path, entry("bad")))
    hosts["debian13"].check_output(FORGET)
    status, output = rollback(tmp_path, "bad")
    assert status != 0, output
    assert "sample: this host lacks release" in output
    assert "nothing was rolled back" in output
    assert themes(hosts) == ["bad", "bad"]
    status, output = rollback(tmp_path, "good")
    assert status == 0, output
    assert "-> builds the release, which this host lacks" in output
    assert themes(hosts) == ["good", "good"]


def test_rollback_is_continued_on_a_host_that_was_lost_meanwhile(hosts: dict[str, Host], tmp_path: Path) -> None:
    for theme in ("kept", "faulty"):
        expect_success(deploy("sample", APP_GROUP, tmp_path, entry(theme)))
    lost = hosts["debian13"]
    options = ("-e", "app=sample", "-e", "batch=1", "-e", "pause=5", *extra_vars(tmp_path, entry("faulty")))
    with start_playbook("playbooks/rollback.yml", APP_GROUP, *options) as run:
        eventually(lambda: themes(hosts) == ["kept", "faulty"], 60)
        lost.run("systemd-run sh -c 'systemctl stop ssh.socket ssh; pkill sshd; sleep 30; systemctl start ssh.socket'")
        output, _ = run.communicate(timeout=120)
    assert run.wait() != 0, output
    assert re.search(r"sample: debian12 \w{12} \(before: \w{12}\)", output), output
    assert re.search(r"sample: debian13 became unreachable; it served \w{12} before", output), output
    assert "to continue: fix the cause and run the same command again" in output
    eventually(lambda: lost.run("true").succeeded, 90)
    assert themes(hosts) == ["kept", "faulty"]
    status, output = rollback(tmp_path, "faulty")
    assert status == 0, output
    assert re.search(r"debian12: \w{12} stays.*debian13: \w{12} -> \w{12}", output), output
    assert themes(hosts) == ["kept", "kept"]


@contextmanager
def full_disk(host: Host, directory: str) -> Iterator[None]:
    """Move a directory's contents to a file system without free space."""
    script = f"""
set -e
mkdir /run/full
mount -t tmpfs -o mode=711 full /run/full
cp -a {directory}/. /run/full
mount -o remount,size=$(($(df --output=used -k /run/full | tail -n 1) + 256))k /run/full
mount --bind /run/full {directory}
"""
    host.run_expect([0], script)
    try:
        yield
    finally:
        host.run_expect([0], f"umount {directory} /run/full && rmdir /run/full")


def test_full_disk_on_one_host_prevents_switch_on_both(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    before = {name: processes(host, "sample") for name, host in hosts.items()}
    source = sample_app_source(tmp_path)
    (tmp_path / "app/large").write_bytes(b"x" * 5_000_000)
    with clients("a full disk on debian13", **LIGHT_LOAD), full_disk(hosts["debian13"], "/srv/sample/releases"):
        status, output = deploy("sample", APP_GROUP, tmp_path, apps(sample=source))
        assert find_leftovers(hosts["debian13"], "sample") == []
    assert status != 0, output
    assert re.search(r"tornado_apps.sample.*the disk is full at /srv/sample/releases \(\d+ KiB", output), output
    assert re.search(r"debian12 +: ok=\d+ +changed=1 +unreachable=0 +failed=0", output), "built, but not switched"
    assert {name: processes(host, "sample") for name, host in hosts.items()} == before


def test_only_the_changed_files_of_a_large_source_are_sent(hosts: dict[str, Host], tmp_path: Path) -> None:
    source = sample_app_source(tmp_path)
    (tmp_path / "app/large").write_bytes(os.urandom(20_000_000))
    expect_success(deploy("sample", APP_GROUP, tmp_path, apps(sample=source)))
    (tmp_path / "app/changed").write_text("a new file")
    before = {name: received_bytes(host) for name, host in hosts.items()}
    expect_success(deploy("sample", APP_GROUP, tmp_path, apps(sample=source)))
    for name, host in hosts.items():
        assert received_bytes(host) - before[name] < 10_000_000
        assert host.check_output("sha256sum /srv/sample/current/src/large").split()[0] == file_hash(tmp_path / "app/large")
        assert host.check_output("cat /srv/sample/current/src/changed") == "a new file"


def received_bytes(host: Host) -> int:
    return int(host.check_output("cat /sys/class/net/host0/statistics/rx_bytes"))


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
