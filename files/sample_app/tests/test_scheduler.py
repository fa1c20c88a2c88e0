"""Scheduled jobs: due times, and single jobs that run once in the fleet despite failures of processes and servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import time
import zoneinfo
from collections.abc import Callable
from typing import Any

import pytest
from sample_app.daos import Runs
from sample_app.database import connect
from sample_app.etcd import Etcd
from sample_app.locks import LockLostError, LockManager
from sample_app.scheduler import Scheduler, Tick, next_daily
from sample_app.settings import Settings

from tests.support.remote import eventually
from tests.support.sample_app import App
from tests.support.servers import Server, link

Start = Callable[..., App]

INTERVAL = 2
TTL = 3


def test_periodic_job_repeats_and_delayed_job_runs_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Tick] = []

    async def job(tick: Tick) -> None:
        seen.append(tick)
        raise ValueError("an ordinary failure")

    async def later(tick: Tick) -> None:
        seen.append(tick)

    async def single(_tick: Tick) -> None:
        pytest.fail("no lock server is configured")

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
    assert "an ordinary failure" in caplog.text
    assert "single does not run: a single job requires a lock server" in caplog.text


@pytest.mark.parametrize("options", [{}, {"single": True}], ids=["here", "single"])
def test_scheduler_stops_despite_a_lost_cancellation(locks: dict[str, str], options: dict[str, bool]) -> None:
    seen: list[Tick] = []

    async def job(tick: Tick) -> None:
        seen.append(tick)
        with contextlib.suppress(*[asyncio.CancelledError] * (len(seen) == 1)):
            await asyncio.sleep(60)

    async def run() -> None:
        scheduler = Scheduler(LockManager(Etcd([locks["ETCD_ENDPOINTS"]]), prefix=locks["TORNADO_APP"]))
        scheduler.every(1, job, **options)
        scheduler.start()
        while not seen:
            await asyncio.sleep(0.1)
        await asyncio.wait_for(scheduler.stop(), 10)

    asyncio.run(run())
    assert len(seen) == 1


def test_daily_job_is_due_at_its_time() -> None:
    noon = int(datetime.datetime(2026, 3, 28, 12, tzinfo=datetime.UTC).timestamp())
    half_past = datetime.time(12, 30)
    assert next_daily(half_past, noon) == noon + 1800
    assert next_daily(half_past, noon + 1800) == noon + 1800 + 86400
    zurich = datetime.time(4, 0, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich"))
    due = next_daily(zurich, noon)
    assert due == datetime.datetime(2026, 3, 29, 2, tzinfo=datetime.UTC).timestamp(), "daylight saving time starts that night"
    assert next_daily(zurich, due) - due == 86400


def test_daily_job_runs_at_its_time() -> None:
    seen: list[tuple[Tick, float]] = []

    async def job(tick: Tick) -> None:
        seen.append((tick, time.time()))

    due = int(time.time()) + 2

    async def run() -> None:
        scheduler = Scheduler()
        scheduler.daily(datetime.datetime.fromtimestamp(due, datetime.UTC).time(), job)
        scheduler.start()
        await asyncio.sleep(due + 1.5 - time.time())
        await scheduler.stop()

    asyncio.run(run())
    ((tick, ran),) = seen
    assert tick == Tick("job", due)
    assert due <= ran < due + 1


def test_old_fencing_token_is_rejected(database: dict[str, str]) -> None:
    async def run() -> None:
        found = connect(Settings(db_uri=database["MONGODB_URI"]))
        runs = Runs(found)
        assert await runs.start("job", 10, 1, {"pid": 1})
        assert await runs.start("job", 10, 2, {"pid": 2})
        with pytest.raises(LockLostError):
            await runs.finish("job", 10, 1)
        with pytest.raises(LockLostError):
            await runs.start("job", 10, 1, {"pid": 1})
        (shown,) = await runs.newest(9)
        assert (shown["token"], shown["pid"], shown["finished"]) == (2, 2, None)
        await runs.finish("job", 10, 2)
        assert not await runs.start("job", 10, 3, {"pid": 3})
        (shown,) = await runs.newest(9)
        assert (shown["token"], shown["runs"]) == (2, 1)
        assert [attempt["token"] for attempt in shown["attempts"]] == [1, 2, 1, 3], "including rejected attempts"
        await found.client.close()

    asyncio.run(run())


@pytest.fixture
def fleet(start: Start, database: dict[str, str], locks: dict[str, str]) -> Callable[..., list[App]]:
    """Return a function that starts processes with the example jobs, like those of several hosts."""

    def fleet(count: int, **environment: str) -> list[App]:
        jobs = {"SAMPLE_JOBS": "1", "SAMPLE_JOBS_INTERVAL": str(INTERVAL), "SAMPLE_LOCK_TTL": str(TTL)}
        everywhere = database | locks | jobs | environment
        return [start(**everywhere, TORNADO_PROCESS=str(number)) for number in range(count)]

    return fleet


def runs(app: App) -> list[dict[str, Any]]:
    """Return the runs of the example job, oldest first."""
    return list(reversed(app.fetch("/jobs?limit=1000").json["runs"]))


def finished(app: App) -> list[dict[str, Any]]:
    return [run for run in runs(app) if run["finished"]]


def assert_ticks(app: App, interval: int = INTERVAL) -> None:
    """Verify that every tick since the first ran once, with increasing tokens."""
    done = finished(app)
    ticks = [run["tick"] for run in done]
    assert ticks == list(range(ticks[0], ticks[-1] + interval, interval))
    assert {run["runs"] for run in done} == {1}
    tokens = [run["token"] for run in done]
    assert tokens == sorted(set(tokens))


def test_single_job_runs_once_per_tick(fleet: Callable[..., list[App]]) -> None:
    apps = fleet(4)
    eventually(lambda: len(finished(apps[0])) >= 5)
    assert_ticks(apps[0])
    for run in finished(apps[0]):
        assert len(run["attempts"]) == 1
        assert run["pid"] in {app.pid for app in apps}
        assert run["job"] == "record"


def running_job(witness: App, others: list[App]) -> tuple[App, dict[str, Any]]:
    """Wait for an unfinished run of one of the others, and return its process and the run."""
    processes = {app.pid: app for app in others}
    # No process retries the first run of all: later processes do not know about it.
    eventually(lambda: finished(witness))

    def unfinished() -> list[dict[str, Any]]:
        return [run for run in runs(witness) if not run["finished"] and run["pid"] in processes]

    run = eventually(unfinished)[-1]
    return processes[run["pid"]], run


def finished_run(app: App, tick: int, interval: int = INTERVAL) -> dict[str, Any]:
    """Wait until the tick and the two following ones are finished, and return its run."""
    eventually(lambda: [run for run in finished(app) if run["tick"] >= tick + 2 * interval])
    assert_ticks(app, interval)
    return next(run for run in finished(app) if run["tick"] == tick)


def test_another_process_runs_the_tick_of_a_killed_process(fleet: Callable[..., list[App]]) -> None:
    witness, *apps = fleet(4, SAMPLE_JOBS_SECONDS="1.5")
    victim, run = running_job(witness, apps)
    os.kill(victim.pid, signal.SIGKILL)
    again = finished_run(witness, run["tick"])
    assert [attempt["pid"] for attempt in again["attempts"]] == [victim.pid, again["pid"]]
    assert again["pid"] != victim.pid
    assert again["token"] > run["token"]


def test_interrupted_process_releases_its_lock_immediately(fleet: Callable[..., list[App]]) -> None:
    witness, *apps = fleet(3, SAMPLE_JOBS_SECONDS="1.5", SAMPLE_LOCK_TTL="120")
    victim, run = running_job(witness, apps)
    os.kill(victim.pid, signal.SIGINT)
    assert victim.popen.wait(30) == 0
    again = finished_run(witness, run["tick"])
    assert [attempt["pid"] for attempt in again["attempts"]] == [victim.pid, again["pid"]]


def test_resumed_process_does_nothing_after_losing_its_lock(fleet: Callable[..., list[App]]) -> None:
    witness, *apps = fleet(3, SAMPLE_JOBS_SECONDS="1.5")
    victim, run = running_job(witness, apps)
    os.kill(victim.pid, signal.SIGSTOP)
    again = finished_run(witness, run["tick"])
    assert again["pid"] != victim.pid
    os.kill(victim.pid, signal.SIGCONT)
    assert victim.fetch("/healthz").status == 200
    time.sleep(2 * INTERVAL)
    assert_ticks(witness)
    assert again == next(other for other in runs(witness) if other["tick"] == run["tick"])


@pytest.mark.parametrize(("seconds", "ttl", "finisher"), [("2", "6", 0), ("5", "3", 1)], ids=["finishes first", "is cancelled"])
def test_process_disconnected_from_the_lock_server(
    fleet: Callable[..., list[App]], etcd: Server, seconds: str, ttl: str, finisher: int
) -> None:
    slow = {"SAMPLE_JOBS_SECONDS": seconds, "SAMPLE_JOBS_INTERVAL": "6", "SAMPLE_LOCK_TTL": ttl}
    with link(etcd.port) as wire:
        (victim,) = fleet(1, **slow, ETCD_ENDPOINTS=f"http://127.0.0.1:{wire.port}")
        _, run = running_job(victim, [victim])
        wire.pause()
        (witness,) = fleet(1, **slow)
        again = finished_run(witness, run["tick"], 6)
        # A finished run that could not be recorded in the lock server is attempted by the other process, and rejected.
        assert [attempt["pid"] for attempt in again["attempts"]] == [victim.pid, witness.pid]
        assert again["pid"] == again["attempts"][finisher]["pid"]
        later = [other for other in finished(witness) if other["tick"] > run["tick"]]
        assert {other["pid"] for other in later} == {witness.pid}
        victim.wait_for("record of [0-9]+ is pending: the lock")
        assert (victim.fetch("/documents").status, victim.fetch("/readyz").status) == (200, 503)
        wire.resume()
        eventually(lambda: victim.fetch("/readyz").status == 200)


def test_ticks_delayed_by_an_outage_of_the_lock_server_run_later(fleet: Callable[..., list[App]], etcd: Server) -> None:
    apps = fleet(3)
    eventually(lambda: finished(apps[0]))
    etcd.stop()
    time.sleep(3 * INTERVAL)
    outage = int(time.time())
    etcd.start()
    eventually(lambda: finished(apps[0])[-1]["tick"] > outage)
    assert_ticks(apps[0])
    apps[0].wait_for("record of [0-9]+ is pending: the lock server is unavailable")


def test_ticks_missed_while_no_process_ran_run_later(fleet: Callable[..., list[App]]) -> None:
    apps = fleet(2)
    eventually(lambda: finished(apps[0]))
    for app in apps:
        app.kill()
    time.sleep(2 * INTERVAL)
    (late,) = fleet(1)
    started = int(time.time())
    eventually(lambda: finished(late)[-1]["tick"] > started)
    assert_ticks(late)


def test_tick_is_retried_when_the_database_recovers(fleet: Callable[..., list[App]], mongod: Server) -> None:
    apps = fleet(2)
    eventually(lambda: finished(apps[0]))
    mongod.stop()
    time.sleep(2 * INTERVAL)
    outage = int(time.time())
    mongod.start()
    eventually(lambda: apps[0].fetch("/jobs").status == 200)
    eventually(lambda: finished(apps[0])[-1]["tick"] > outage)
    assert_ticks(apps[0])
