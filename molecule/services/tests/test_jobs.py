"""A job marked single runs once for each of its ticks, in two processes of each of two hosts, whatever becomes of who runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.remote import Site, done, eventually, hosts, run_playbook

testinfra_hosts = ["ansible://debian12"]

INTERVAL = 2


@pytest.fixture(scope="module", autouse=True)
def served(serve: Callable[..., dict[str, Any]]) -> Iterator[None]:
    """Serve the app with a job every two seconds, that takes one."""
    serve(SAMPLE_JOBS=1, SAMPLE_JOBS_INTERVAL=INTERVAL, SAMPLE_JOBS_SECONDS=1)
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
    """Return a run in progress that has half of its time to go."""
    newest = max(runs(site).values(), key=lambda run: int(run["tick"]), default=None)
    return newest or False if newest and newest["finished"] is None and time.time() < newest["tick"] + 0.5 else False


def once_each(found: dict[int, dict[str, Any]]) -> None:
    assert {tick: run["runs"] for tick, run in found.items()} == dict.fromkeys(found, 1)
    tokens = [found[tick]["token"] for tick in sorted(found)]
    assert tokens == sorted(set(tokens)), "a later run has to have a later token"


def test_each_tick_is_run_once_and_by_more_than_one_process(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    began = int(time.time())
    eventually(lambda: time.time() > began + 20)
    found = eventually(lambda: complete(site, began, began + 20))
    assert isinstance(found, dict)
    once_each(found)
    assert all(len(run["attempts"]) == 1 for run in found.values())
    assert len({(run["hostname"], run["pid"]) for run in found.values()}) > 1


def test_a_tick_whose_process_is_killed_is_run_by_another(sites: dict[str, Site]) -> None:
    site = sites["debian12"]
    began = int(time.time())
    victim: Any = eventually(lambda: running(site))
    hosts()[victim["hostname"]].run_expect([0], f"kill -KILL {victim['pid']}")
    found = eventually(lambda: complete(site, began, victim["tick"] + 5 * INTERVAL))
    assert isinstance(found, dict)
    once_each(found)
    again = found[victim["tick"]]
    assert again["attempts"][0]["pid"] == victim["pid"]
    assert (again["hostname"], again["pid"]) != (victim["hostname"], victim["pid"])
    assert again["token"] > victim["token"]


@pytest.fixture
def cut(sites: dict[str, Site]) -> Iterator[Callable[[str], Host]]:
    """Return a function that drops all that a host sends to etcd; the link is mended afterwards."""
    victims: list[Host] = []

    def cut(name: str) -> Host:
        host = hosts()[name]
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
    found = eventually(lambda: complete(sites[other], began, holder["tick"] + 8 * INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)
    later = [run for tick, run in found.items() if tick > holder["tick"] + INTERVAL]
    assert {run["hostname"] for run in later} == {other}
    # The host that is cut off serves all that needs no locks, and says what it lacks.
    assert sites[holder["hostname"]].get("/documents").status == 200
    ready = sites[holder["hostname"]].get("/readyz")
    assert ready.status == 503
    assert "lock server" in ready.body.decode()
    host.run_expect([0], "nft delete table inet cut")
    mended = int(time.time())
    eventually(lambda: complete(sites[other], mended, mended + 4 * INTERVAL))


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
    found = eventually(lambda: complete(sites["debian12"], back, back + 4 * INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)


def test_a_lock_server_goes_back_to_a_backup_and_the_jobs_go_on(sites: dict[str, Site], tmp_path: Path) -> None:
    done(run_playbook("playbooks/backup.yml", "lock", "-e", f"fetch={tmp_path}"))
    (snapshot,) = tmp_path.iterdir()
    done(run_playbook("playbooks/restore.yml", "lock", "-e", f"etcd={snapshot}"))
    eventually(lambda: all(site.get("/readyz").status == 200 for site in sites.values()))
    back = int(time.time())
    found = eventually(lambda: complete(sites["debian12"], back, back + 4 * INTERVAL), 40)
    assert isinstance(found, dict)
    once_each(found)
