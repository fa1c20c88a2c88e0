"""A singleton job runs once per tick across two hosts with two processes each, despite failures of its runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import Site, eventually, expect_success, hosts, run_playbook

testinfra_hosts = ["ansible://debian12"]

INTERVAL = 5

#: Duration of a run in seconds, long enough to interrupt it over SSH.
SECONDS = 3


@pytest.fixture(scope="module", autouse=True)
def deploy_app(serve: Callable[..., dict[str, Any]]) -> Iterator[None]:
    """Deploy the app with its job; deploy it without after the module."""
    serve(SAMPLE_JOBS=1, SAMPLE_JOBS_INTERVAL=INTERVAL, SAMPLE_JOBS_SECONDS=SECONDS)
    yield
    serve()


def job_runs(site: Site) -> dict[int, dict[str, Any]]:
    """Return the recorded run of each tick, by its time."""
    return {run["tick"]: run for run in site.get("/jobs?limit=1000").json["runs"]}


def completed_runs(site: Site, since: int, until: int) -> dict[int, dict[str, Any]] | bool:
    """Return the runs of all ticks in a period once all have finished."""
    recorded = job_runs(site)
    ticks = range(since + (-since % INTERVAL), until, INTERVAL)
    found = {tick: recorded[tick] for tick in ticks if recorded.get(tick, {}).get("finished")}
    return len(found) == len(ticks) and found


def current_run(site: Site) -> dict[str, Any] | bool:
    """Return the run in progress if most of its duration remains."""
    newest = max(job_runs(site).values(), key=lambda run: int(run["tick"]), default=None)
    return newest or False if newest and newest["finished"] is None and time.time() < newest["tick"] + SECONDS / 3 else False


def assert_run_once(found: dict[int, dict[str, Any]]) -> None:
    assert {tick: run["runs"] for tick, run in found.items()} == dict.fromkeys(found, 1)
    tokens = [found[tick]["token"] for tick in sorted(found)]
    assert tokens == sorted(set(tokens)), "tokens must increase with the runs"


def test_each_tick_runs_once_and_processes_take_turns(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    began = int(time.time())
    found = eventually(lambda: completed_runs(site, began, began + 4 * INTERVAL), 40)
    assert isinstance(found, dict)
    assert_run_once(found)
    # Every attempt is recorded, including those of processes that find the tick completed.
    assert {tick: len(run["attempts"]) for tick, run in found.items()} == dict.fromkeys(found, 1)

    def runners() -> set[tuple[str, int]]:
        return {(run["hostname"], run["pid"]) for tick, run in job_runs(site).items() if tick >= began}

    eventually(lambda: len(runners()) > 1, 60)  # any process may win a tick


def test_tick_of_killed_process_is_run_by_another(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    connected = {name: host for name, host in hosts().items() if host.run("true").succeeded}
    began = int(time.time())
    victim: Any = eventually(lambda: current_run(site))
    connected[victim["hostname"]].run_expect([0], f"kill -KILL {victim['pid']}")
    found = eventually(lambda: completed_runs(site, began, victim["tick"] + 2 * INTERVAL), 40)
    assert isinstance(found, dict)
    assert_run_once(found)
    retried = found[victim["tick"]]
    assert retried["attempts"][0]["pid"] == victim["pid"]
    assert (retried["hostname"], retried["pid"]) != (victim["hostname"], victim["pid"])
    assert retried["token"] > victim["token"]


@pytest.fixture
def partition(sites: dict[str, Site]) -> Iterator[Callable[[str], Host]]:
    """Return a function that drops packets from a host to etcd; restore the network after the test."""
    connected = {name: host for name, host in hosts().items() if host.run("true").succeeded}
    victims: list[Host] = []

    def partition(name: str) -> Host:
        host = connected[name]
        victims.append(host)
        rules = "table inet cut { chain out { type filter hook output priority 0; tcp dport 2379 drop; }; }"
        host.run_expect([0], "nft %s", rules)
        return host

    yield partition
    for host in victims:
        host.run("nft delete table inet cut")
    eventually(lambda: all(site.get("/readyz").status == 200 for site in sites.values()))


def test_tick_of_partitioned_host_is_run_by_the_other(sites: dict[str, Site], partition: Callable[[str], Host]) -> None:
    began = int(time.time())
    holder: Any = eventually(lambda: current_run(sites["debian12"]))
    host = partition(holder["hostname"])
    other = next(name for name in sites if name != holder["hostname"])
    found = eventually(lambda: completed_runs(sites[other], began, holder["tick"] + 3 * INTERVAL), 40)
    assert isinstance(found, dict)
    assert_run_once(found)
    # The holder may have finished without recording it before the partition; then the other attempt is rejected.
    attempts = found[holder["tick"]]["attempts"]
    assert [attempt["hostname"] for attempt in attempts] == [holder["hostname"], other]
    later = [run for tick, run in found.items() if tick > holder["tick"]]
    assert {run["hostname"] for run in later} == {other}
    # The partitioned host serves everything that requires no lock, and reports the missing lock server.
    assert sites[holder["hostname"]].get("/documents").status == 200
    ready = sites[holder["hostname"]].get("/readyz")
    assert ready.status == 503
    assert "lock server" in ready.body.decode()
    host.run_expect([0], "nft delete table inet cut")
    healed = int(time.time())
    eventually(lambda: completed_runs(sites[other], healed, healed + INTERVAL))


def test_unavailable_lock_server_affects_only_jobs(sites: dict[str, Site]) -> None:
    server = hosts("lock")["lock"]
    server.run_expect([0], "systemctl stop etcd")
    try:
        states = eventually(
            lambda: {name: response for name, site in sites.items() if (response := site.get("/readyz")).status == 503}
        )
        assert states.keys() == sites.keys()
        assert all(site.get("/documents").status == 200 for site in sites.values())
    finally:
        server.run_expect([0], "systemctl start etcd")
    restarted = int(time.time())
    found = eventually(lambda: completed_runs(sites["debian12"], restarted, restarted + INTERVAL), 40)
    assert isinstance(found, dict)
    assert_run_once(found)


def test_jobs_continue_after_restore_of_lock_server(sites: dict[str, Site], tmp_path: Path) -> None:
    expect_success(run_playbook("playbooks/backup.yml", "lock", "-e", f"fetch={tmp_path}"))
    (snapshot,) = tmp_path.iterdir()
    expect_success(run_playbook("playbooks/restore.yml", "lock", "-e", f"etcd={snapshot}"))
    eventually(lambda: all(site.get("/readyz").status == 200 for site in sites.values()))
    restarted = int(time.time())
    found = eventually(lambda: completed_runs(sites["debian12"], restarted, restarted + INTERVAL), 40)
    assert isinstance(found, dict)
    assert_run_once(found)
