"""A job marked single runs once for each of its ticks, in two processes of each of two hosts, whatever becomes of who runs it."""

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

#: What a run takes: long enough for a command to reach its host over SSH meanwhile, and to be cut off in the middle.
SECONDS = 3


@pytest.fixture(scope="module", autouse=True)
def served(serve: Callable[..., dict[str, Any]]) -> Iterator[None]:
    """Serve the app with its job."""
    serve(SAMPLE_JOBS=1, SAMPLE_JOBS_INTERVAL=INTERVAL, SAMPLE_JOBS_SECONDS=SECONDS)
    yield
    serve()


def runs(site: Site) -> dict[int, dict[str, Any]]:
    """Return what is known of each tick, by its time."""
    return {run["tick"]: run for run in site.get("/jobs?limit=1000").json["runs"]}


def complete(site: Site, since: int, until: int) -> dict[int, dict[str, Any]] | bool:
    """Return the runs of all ticks of a span of time, once each of them has ended."""
    known = runs(site)
    wanted = range(since + (-since % INTERVAL), until, INTERVAL)
    found = {tick: known[tick] for tick in wanted if known.get(tick, {}).get("finished")}
    return len(found) == len(wanted) and found


def running(site: Site) -> dict[str, Any] | bool:
    """Return a run in progress that has most of its time to go."""
    newest = max(runs(site).values(), key=lambda run: int(run["tick"]), default=None)
    return newest or False if newest and newest["finished"] is None and time.time() < newest["tick"] + SECONDS / 3 else False


def once_each(found: dict[int, dict[str, Any]]) -> None:
    assert {tick: run["runs"] for tick, run in found.items()} == dict.fromkeys(found, 1)
    tokens = [found[tick]["token"] for tick in sorted(found)]
    assert tokens == sorted(set(tokens)), "a later run has to have a later token"


def test_each_tick_is_run_once_and_by_more_than_one_process(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    began = int(time.time())
    found = eventually(lambda: complete(site, began, began + 4 * INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)
    # Whoever begins it is noted, also those who are told that it was done.
    assert {tick: len(run["attempts"]) for tick, run in found.items()} == dict.fromkeys(found, 1)

    def runners() -> set[tuple[str, int]]:
        return {(run["hostname"], run["pid"]) for tick, run in runs(site).items() if tick >= began}

    eventually(lambda: len(runners()) > 1, 60)  # each tick is a race that anyone may win


def test_a_tick_whose_process_is_killed_is_run_by_another(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    connected = {name: host for name, host in hosts().items() if host.run("true").succeeded}
    began = int(time.time())
    victim: Any = eventually(lambda: running(site))
    connected[victim["hostname"]].run_expect([0], f"kill -KILL {victim['pid']}")
    found = eventually(lambda: complete(site, began, victim["tick"] + 2 * INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)
    again = found[victim["tick"]]
    assert again["attempts"][0]["pid"] == victim["pid"]
    assert (again["hostname"], again["pid"]) != (victim["hostname"], victim["pid"])
    assert again["token"] > victim["token"]


@pytest.fixture
def cut(sites: dict[str, Site]) -> Iterator[Callable[[str], Host]]:
    """Return a function that drops all that a host sends to etcd; the link is mended afterwards."""
    connected = {name: host for name, host in hosts().items() if host.run("true").succeeded}
    victims: list[Host] = []

    def cut(name: str) -> Host:
        host = connected[name]
        victims.append(host)
        rules = "table inet cut { chain out { type filter hook output priority 0; tcp dport 2379 drop; }; }"
        host.run_expect([0], "nft %s", rules)
        return host

    yield cut
    for host in victims:
        host.run("nft delete table inet cut")
    eventually(lambda: all(site.get("/readyz").status == 200 for site in sites.values()))


def test_a_tick_whose_host_is_cut_off_is_run_by_the_other(sites: dict[str, Site], cut: Callable[[str], Host]) -> None:
    began = int(time.time())
    holder: Any = eventually(lambda: running(sites["debian12"]))
    host = cut(holder["hostname"])
    other = next(name for name in sites if name != holder["hostname"])
    found = eventually(lambda: complete(sites[other], began, holder["tick"] + 3 * INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)
    # The holder may have been through before it had to stop, and could not tell so: then the other is refused.
    attempts = found[holder["tick"]]["attempts"]
    assert [attempt["hostname"] for attempt in attempts] == [holder["hostname"], other]
    later = [run for tick, run in found.items() if tick > holder["tick"]]
    assert {run["hostname"] for run in later} == {other}
    # The host that is cut off serves all that needs no locks, and says what it lacks.
    assert sites[holder["hostname"]].get("/documents").status == 200
    ready = sites[holder["hostname"]].get("/readyz")
    assert ready.status == 503
    assert "lock server" in ready.body.decode()
    host.run_expect([0], "nft delete table inet cut")
    mended = int(time.time())
    eventually(lambda: complete(sites[other], mended, mended + INTERVAL))


def test_a_lock_server_that_is_away_stops_nothing_else(sites: dict[str, Site]) -> None:
    server = hosts("lock")["lock"]
    server.run_expect([0], "systemctl stop etcd")
    try:
        states = eventually(
            lambda: {name: answer for name, site in sites.items() if (answer := site.get("/readyz")).status == 503}
        )
        assert states.keys() == sites.keys()
        assert all(site.get("/documents").status == 200 for site in sites.values())
    finally:
        server.run_expect([0], "systemctl start etcd")
    back = int(time.time())
    found = eventually(lambda: complete(sites["debian12"], back, back + INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)


def test_a_lock_server_goes_back_to_a_backup_and_the_jobs_go_on(sites: dict[str, Site], tmp_path: Path) -> None:
    expect_success(run_playbook("playbooks/backup.yml", "lock", "-e", f"fetch={tmp_path}"))
    (snapshot,) = tmp_path.iterdir()
    expect_success(run_playbook("playbooks/restore.yml", "lock", "-e", f"etcd={snapshot}"))
    eventually(lambda: all(site.get("/readyz").status == 200 for site in sites.values()))
    back = int(time.time())
    found = eventually(lambda: complete(sites["debian12"], back, back + INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)
