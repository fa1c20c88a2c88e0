"""Rollbacks in an incident: they preempt a running deploy, go further back each time, and are not undone by the next deploy."""

from __future__ import annotations

import json
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.ansible_server import Run
from tests.support.remote import (
    Site,
    address,
    apps,
    deploy,
    expect_success,
    extra_vars,
    find_leftovers,
    processes,
    run_playbook,
    run_site,
    start_playbook,
)

HOST = "debian13"

#: Seconds between the start of the module and the switch to the old release: one, if no other scenario uses the CPUs.
WITHIN = 3.0

#: Prints how many seconds after the start of the module switch the traffic was moved; a second start drains the replaced slot.
MEASURE = """
began=$(journalctl --identifier=ansible-funnel.tornado.switch --output=short-unix --lines=2 --quiet | head -n 1 | cut -d ' ' -f 1)
stat --format="%.Y $began" /srv/sample/live | awk '{ print $1 - $2 }'
"""


#: A request that opens a websocket.
UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


#: An empty frame of a client that answers a ping.
PONG = b"\x8a\x80\0\0\0\0"

#: Workers of the drained slot, which ends one as soon as the drain begins and the other, a singleton, before.
WORKERS = {"queue": {"command": "sleep 1000"}, "clock": {"command": "sleep 1000", "singleton": True}}

#: Makes releases that no earlier run has rolled back.
RUN = uuid.uuid4().hex


def entry(theme: str, **keys: Any) -> dict[str, Any]:
    return apps(sample={"processes": 1, "drain": 300, "env": {"SAMPLE_THEME": theme, "RUN": RUN}} | keys)


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    return hosts[HOST]


@pytest.fixture(scope="module", autouse=True)
def restore_entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    expect_success(run_site(HOST, tmp_path_factory.mktemp("own"), {}, "-e", "again=true"))


@pytest.fixture(autouse=True)
def assert_no_leftovers(host: Host) -> Iterator[None]:
    yield
    assert find_leftovers(host, "sample") == []


def live(host: Host) -> str:
    return host.check_output("basename $(readlink -f /srv/sample/current)").strip()


def history(host: Host) -> list[dict[str, str]]:
    return list(json.loads(host.check_output("cat /srv/sample/history.json")))


def rollback(*options: str) -> tuple[int, str]:
    status, output = run_playbook("playbooks/rollback.yml", HOST, "-e", "app=sample", *options)
    return status, re.sub(r"\s+", " ", output)


@contextmanager
def open_websocket(host: Host) -> Iterator[None]:
    """Keep a websocket open, which makes a switch drain the slot that serves it."""
    with Site(address(host)).connect() as connection:
        connection.sendall(UPGRADE.format(address(host)).encode())
        assert b" 101 " in connection.recv(1000)
        threading.Thread(target=answer_pings, args=[connection], daemon=True).start()
        yield


def answer_pings(connection: socket.socket) -> None:
    """Answer the pings of the app, which would close the websocket after some time otherwise."""
    with suppress(OSError):
        while connection.recv(1000):
            connection.sendall(PONG)


@contextmanager
def running_deploy(host: Host, directory: Path, variables: dict[str, Any], step: str) -> Iterator[Run]:
    """Start a deploy and wait until it reaches a step."""
    run = start_playbook("playbooks/deploy.yml", HOST, "-e", "app=sample", *extra_vars(directory, variables))
    try:
        host.run_expect([0], f"timeout 60 sh -c 'until grep -q {step} /srv/sample/.lock; do sleep 0.05; done'")
        yield run
    finally:
        run.communicate(timeout=60)


def assert_instant(host: Host, release: str) -> None:
    assert 0 < float(host.check_output(MEASURE)) < WITHIN
    assert Site(address(host)).get("/whoami").json["release"] == release


@pytest.mark.parametrize(("step", "keys"), [("drain", {}), ("soak", {"soak": 60})])
def test_rollback_preempts_a_deploy_after_its_switch(host: Host, tmp_path: Path, step: str, keys: dict[str, Any]) -> None:
    expect_success(deploy("sample", HOST, tmp_path, entry("light", workers=WORKERS)))
    good = live(host)
    with open_websocket(host):
        with running_deploy(host, tmp_path, entry(f"bad-{step}", workers=WORKERS, **keys), step) as run:
            bad = live(host)
            assert bad != good
            output = rollback()
            assert output[0] == 0, output
        assert_instant(host, good)
    assert run.returncode != 0
    message = re.sub(r"\s+", " ", run.communicate()[0])
    assert re.search(
        rf"sample: this deploy was preempted by a rollback of \S+@\S+ during the step: {step} of release {bad}", message
    )
    assert [found["release"] for found in history(host)[-2:]] == [bad, good]
    assert history(host)[-2]["undone"] == "rolled back"
    assert "@" in history(host)[-2]["undone_by"]
    assert {name.partition(".")[2] for name in processes(host, "sample")} == {"", "queue:0", "clock:0"}


def test_rollback_returns_to_the_slot_that_a_killed_deploy_still_drains(host: Host, tmp_path: Path) -> None:
    expect_success(deploy("sample", HOST, tmp_path, entry("light")))
    good = live(host)
    with open_websocket(host):
        with running_deploy(host, tmp_path, entry("bad-killed"), "drain"):
            host.check_output('kill -KILL $(python3 -c \'import json; print(json.load(open("/srv/sample/.lock"))["pid"])\')')
        status, output = rollback()
        assert status == 0, output
        assert_instant(host, good)


@pytest.mark.parametrize(("step", "hooks"), [("build", {"build": "sleep 60"}), ("before_switch", {"before_switch": "sleep 60"})])
def test_rollback_aborts_a_deploy_before_its_switch(host: Host, tmp_path: Path, step: str, hooks: dict[str, str]) -> None:
    expect_success(deploy("sample", HOST, tmp_path, entry("light")))
    good, before = live(host), len(history(host))
    with running_deploy(host, tmp_path, entry(f"bad-{step}", hooks=hooks), step) as run:
        status, output = rollback()
        assert status == 0, output
        assert f"{HOST}: {good} stays" in output
    assert run.returncode != 0
    assert "this deploy was preempted by a rollback" in re.sub(r"\s+", " ", run.communicate()[0])
    assert (live(host), len(history(host))) == (good, before)


def test_newer_deploy_preempts_an_older_one(host: Host, tmp_path: Path) -> None:
    with running_deploy(host, tmp_path, entry("slow", hooks={"before_switch": "sleep 60"}), "before_switch") as run:
        expect_success(deploy("sample", HOST, tmp_path, entry("newer"), "-e", "preempt=true"))
    assert "this deploy was preempted by a deploy of" in re.sub(r"\s+", " ", run.communicate()[0])
    assert b'data-theme="newer"' in Site(address(host)).get("/").body


def test_rollbacks_go_further_back_and_deploys_do_not_bring_back_a_bad_release(host: Host, tmp_path: Path) -> None:
    releases = []
    for theme in ("first", "second", "third"):
        expect_success(deploy("sample", HOST, tmp_path, entry(theme, drain=1)))
        releases.append(live(host))
    for expected in releases[1::-1]:
        status, output = rollback()
        assert status == 0, output
        assert live(host) == expected

    output = expect_success(deploy("sample", HOST, tmp_path, entry("third", drain=1)))
    assert re.search(rf"release {releases[2]} of revision \w+ was rolled\s+back\s+at \S+\s+by\s+\S+@", output), output
    assert live(host) == releases[0]
    status, output = run_playbook("playbooks/status.yml", HOST)
    assert f"sample: release {releases[2]}" in re.sub(r"\s+", " ", output), output
    expect_success(deploy("sample", HOST, tmp_path, entry("third", drain=1), "-e", "again=true"))
    assert live(host) == releases[2]
