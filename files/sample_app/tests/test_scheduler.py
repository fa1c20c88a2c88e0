"""Jobs: when they are due, and that a single one runs once in the fleet, whatever happens to its processes."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import time
import zoneinfo
from collections.abc import Callable
from typing import Any

import pytest
from sample_app.scheduler import Scheduler, Tick, next_daily

from tests.sample_app import App
from tests.servers import Server, link

Start = Callable[..., App]
Eventually = Callable[..., Any]

INTERVAL = 2
TTL = 3


def test_a_job_runs_every_so_often_and_another_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Tick] = []

    async def job(tick: Tick) -> None:
        seen.append(tick)
        raise ValueError("a failure is no end")

    async def later(tick: Tick) -> None:
        seen.append(tick)

    async def single(_tick: Tick) -> None:
        pytest.fail("there is no lock server")

    async def run() -> None:
        scheduler = Scheduler()
        scheduler.every(1, job)
        scheduler.every(1, single, single=True)
        scheduler.once_after(0.1, later)
        scheduler.start()
        await asyncio.sleep(3.2)
        await scheduler.stop()
        await asyncio.sleep(1.1)

    asyncio.run(run())
    ticks = [tick.at for tick in seen if tick.job == "job"]
    assert 2 <= len(ticks) <= 4
    assert ticks == sorted(set(ticks))
    assert len(seen) == len(ticks) + 1
    assert "a failure is no end" in caplog.text
    assert "single does not run: it is to run once in the fleet, and there is no lock server" in caplog.text


def test_a_daily_job_is_due_at_its_time() -> None:
    noon = int(datetime.datetime(2026, 3, 28, 12, tzinfo=datetime.UTC).timestamp())
    half_past = datetime.time(12, 30)
    assert next_daily(half_past, noon) == noon + 1800
    assert next_daily(half_past, noon + 1800) == noon + 1800 + 86400
    zurich = datetime.time(4, 0, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich"))
    due = next_daily(zurich, noon)
    assert due == datetime.datetime(2026, 3, 29, 2, tzinfo=datetime.UTC).timestamp(), "summer time has begun in the night"
    assert next_daily(zurich, due) - due == 86400


@pytest.fixture
def fleet(start: Start, database: dict[str, str], locks: dict[str, str]) -> Callable[..., list[App]]:
    """Return a function that starts processes which run the example jobs, like those of several hosts."""

    def fleet(count: int, **environment: str) -> list[App]:
        jobs = {"SAMPLE_JOBS": "1", "SAMPLE_JOBS_INTERVAL": str(INTERVAL), "SAMPLE_LOCK_TTL": str(TTL)}
        everywhere = database | locks | jobs | environment
        return [start(**everywhere, TORNADO_PROCESS=str(number)) for number in range(count)]

    return fleet


def runs(app: App) -> list[dict[str, Any]]:
    """Return the runs of the example job, the oldest first."""
    return list(reversed(app.ask("/jobs?limit=1000").json["runs"]))


def finished(app: App) -> list[dict[str, Any]]:
    return [run for run in runs(app) if run["finished"]]


def check_ticks(app: App, interval: int = INTERVAL) -> None:
    """Every tick since the first was run once, and the tokens grow."""
    done = finished(app)
    ticks = [run["tick"] for run in done]
    assert ticks == list(range(ticks[0], ticks[-1] + interval, interval))
    assert {run["runs"] for run in done} == {1}
    tokens = [run["token"] for run in done]
    assert tokens == sorted(set(tokens))


def test_a_single_job_runs_once_per_tick(fleet: Callable[..., list[App]], eventually: Eventually) -> None:
    apps = fleet(4)
    eventually(lambda: len(finished(apps[0])) >= 5)
    check_ticks(apps[0])
    for run in finished(apps[0]):
        assert len(run["attempts"]) == 1
        assert run["pid"] in {app.pid for app in apps}
        assert run["job"] == "record"


def holder(witness: App, others: list[App], eventually: Eventually) -> tuple[App, dict[str, Any]]:
    """Wait for a run of one of the others that has just begun, and return its process and the run."""
    processes = {app.pid: app for app in others}

    def begun() -> list[dict[str, Any]]:
        return [run for run in runs(witness) if not run["finished"] and run["pid"] in processes]

    run = eventually(begun)[-1]
    return processes[run["pid"]], run


def after(app: App, tick: int, eventually: Eventually, interval: int = INTERVAL) -> dict[str, Any]:
    """Wait until the tick and two others are done, and return its run."""
    eventually(lambda: [run for run in finished(app) if run["tick"] >= tick + 2 * interval])
    check_ticks(app, interval)
    return next(run for run in finished(app) if run["tick"] == tick)


def test_another_process_runs_the_tick_of_one_that_is_killed(fleet: Callable[..., list[App]], eventually: Eventually) -> None:
    witness, *apps = fleet(4, SAMPLE_JOBS_SECONDS="1")
    victim, run = holder(witness, apps, eventually)
    os.kill(victim.pid, signal.SIGKILL)
    again = after(witness, run["tick"], eventually)
    assert [attempt["pid"] for attempt in again["attempts"]] == [victim.pid, again["pid"]]
    assert again["pid"] != victim.pid
    assert again["token"] > run["token"]


def test_a_process_that_is_interrupted_gives_its_lock_back_at_once(
    fleet: Callable[..., list[App]], eventually: Eventually
) -> None:
    witness, *apps = fleet(3, SAMPLE_JOBS_SECONDS="1", SAMPLE_LOCK_TTL="120")
    victim, run = holder(witness, apps, eventually)
    os.kill(victim.pid, signal.SIGINT)
    assert victim.popen.wait(10) == 0
    again = after(witness, run["tick"], eventually)
    assert [attempt["pid"] for attempt in again["attempts"]] == [victim.pid, again["pid"]]


def test_a_process_that_was_paused_does_nothing_under_a_lock_that_it_has_lost(
    fleet: Callable[..., list[App]], eventually: Eventually
) -> None:
    witness, *apps = fleet(3, SAMPLE_JOBS_SECONDS="1")
    victim, run = holder(witness, apps, eventually)
    os.kill(victim.pid, signal.SIGSTOP)
    again = after(witness, run["tick"], eventually)
    assert again["pid"] != victim.pid
    os.kill(victim.pid, signal.SIGCONT)
    assert victim.ask("/healthz").status == 200
    time.sleep(2 * INTERVAL)
    check_ticks(witness)
    assert again == next(one for one in runs(witness) if one["tick"] == run["tick"])


@pytest.mark.parametrize(("seconds", "attempts"), [("1", 1), ("3.5", 2)], ids=["finishes first", "is cancelled"])
def test_a_process_that_is_cut_off_from_the_lock_server(
    fleet: Callable[..., list[App]], etcd: Server, eventually: Eventually, seconds: str, attempts: int
) -> None:
    slow = {"SAMPLE_JOBS_SECONDS": seconds, "SAMPLE_JOBS_INTERVAL": "4", "SAMPLE_LOCK_TTL": "2"}
    with link(etcd.port) as wire:
        (witness,) = fleet(1, **slow)
        (victim,) = fleet(1, **slow, ETCD_ENDPOINTS=f"http://127.0.0.1:{wire.port}")
        _, run = holder(witness, [victim], eventually)
        wire.pause()
        again = after(witness, run["tick"], eventually, 4)
        assert len(again["attempts"]) == attempts
        assert again["attempts"][0]["pid"] == victim.pid
        assert again["pid"] == (victim.pid if attempts == 1 else witness.pid)
        later = [one for one in finished(witness) if one["tick"] > run["tick"]]
        assert {one["pid"] for one in later} == {witness.pid}
        victim.wait_for("record of [0-9]+ is not done yet: the lock")
        assert (victim.ask("/documents").status, victim.ask("/readyz").status) == (200, 503)
        wire.resume()
        eventually(lambda: victim.ask("/readyz").status == 200)


def test_ticks_that_an_outage_of_the_lock_server_held_up_are_made_up_for(
    fleet: Callable[..., list[App]], etcd: Server, eventually: Eventually
) -> None:
    apps = fleet(3)
    eventually(lambda: finished(apps[0]))
    etcd.stop()
    time.sleep(3 * INTERVAL)
    outage = int(time.time())
    etcd.start()
    eventually(lambda: finished(apps[0])[-1]["tick"] > outage)
    check_ticks(apps[0])
    apps[0].wait_for("record of [0-9]+ is not done yet: the lock server does not answer")


def test_ticks_that_no_process_was_there_for_are_made_up_for(fleet: Callable[..., list[App]], eventually: Eventually) -> None:
    apps = fleet(2)
    eventually(lambda: finished(apps[0]))
    for app in apps:
        app.kill()
    time.sleep(2 * INTERVAL)
    (late,) = fleet(1)
    started = int(time.time())
    eventually(lambda: finished(late)[-1]["tick"] > started)
    check_ticks(late)


def test_a_tick_is_tried_again_when_the_database_is_back(
    fleet: Callable[..., list[App]], mongod: Server, eventually: Eventually
) -> None:
    apps = fleet(2)
    eventually(lambda: finished(apps[0]))
    mongod.stop()
    time.sleep(2 * INTERVAL)
    outage = int(time.time())
    mongod.start()
    eventually(lambda: apps[0].ask("/jobs").status == 200)
    eventually(lambda: finished(apps[0])[-1]["tick"] > outage)
    check_ticks(apps[0])
