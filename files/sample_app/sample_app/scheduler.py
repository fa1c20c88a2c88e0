"""Jobs: every so often, once after a while, and daily; in each process, or (``single``) once in the whole fleet.

Processes know a tick of a single job by the time that it is due, so the clocks of their hosts have to agree.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sample_app.errors import UnavailableError
from sample_app.locks import Lock, LockLostError, LockManager

LATE = 60
"""Seconds after which a tick of a single job is given up: the lock server was down so long, or the job failed again and again."""

RETRY = 1.0
"""Seconds until a single job that could not be run is tried again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tick:
    """One time that a job runs.

    :arg at: the unix time that it is due, the same in all processes.
    :arg token: the fencing token of a single job's lock, 0 for others.
    """

    job: str
    at: int
    token: int = 0


Job = Callable[[Tick], Awaitable[None]]
"""A job. A single one should take it well if a process was killed in the middle of it, and another runs the same tick."""

Timetable = Callable[[float], int]
"""Tells the first time after another that a job is due."""


class Scheduler:
    """Runs jobs beside what the event loop serves."""

    def __init__(self, locks: LockManager | None = None) -> None:
        """Take the locks of the fleet; without them a single job does not run."""
        self.locks = locks
        self.jobs: list[Callable[[], Awaitable[None]]] = []
        self.tasks: list[asyncio.Future[None]] = []

    def every(self, seconds: int, job: Job, *, single: bool = False) -> None:
        """Run a job each time that the unix time is a multiple of ``seconds``: at the same time in all processes."""
        self.add(lambda after: (int(after) // seconds + 1) * seconds, job, single=single)

    def daily(self, at: datetime.time, job: Job, *, single: bool = False) -> None:
        """Run a job at a time of each day, which is UTC if it does not name its zone."""
        self.add(lambda after: next_daily(at, after), job, single=single)

    def once_after(self, seconds: float, job: Job) -> None:
        """Run a job once in this process, so long after the start."""

        async def run() -> None:
            await asyncio.sleep(seconds)
            await self.run(job, int(time.time()))

        self.jobs.append(run)

    def add(self, timetable: Timetable, job: Job, *, single: bool) -> None:
        """Run a job by a timetable."""
        if not single:
            self.jobs.append(lambda: self.run_here(timetable, job))
        elif self.locks is not None:
            self.jobs.append(functools.partial(self.run_single, self.locks, timetable, job))
        else:
            log.error("%s does not run: it is to run once in the fleet, and there is no lock server", job.__name__)

    def start(self) -> None:
        """Begin, in the running event loop."""
        self.tasks = [asyncio.ensure_future(job()) for job in self.jobs]

    async def stop(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def run(self, job: Job, at: int) -> None:
        """Run a job here; that it fails is logged, and no reason not to run it the next time."""
        try:
            await job(Tick(job.__name__, at))
        except UnavailableError as error:
            log.warning("%s failed: %s", job.__name__, error.log_message)
        except Exception:
            log.exception("%s failed", job.__name__)

    async def run_here(self, timetable: Timetable, job: Job) -> None:
        """Run a job in this process; ticks that it was too slow for are left out."""
        while not is_cancelled():
            due = timetable(time.time())
            await sleep_until(due)
            await self.run(job, due)

    async def run_single(self, locks: LockManager, timetable: Timetable, job: Job) -> None:
        """See to it that a job is run, here or elsewhere: every tick after the last that was, no later than `LATE`."""
        name, told = job.__name__, ""
        due = timetable(time.time())
        begun = due - 1
        while not is_cancelled():
            await sleep_until(due)
            try:
                last = await locks.last(name)
                due = timetable(max(last or begun, time.time() - LATE))
                ran = due <= time.time() and await locks.once(name, due, functools.partial(run_under, job, due))
                if ran and last and due > timetable(last):
                    log.warning("%s was not run from %d until %d: more than %d s late", name, timetable(last), due, LATE)
                told = ""
            except (UnavailableError, LockLostError) as error:
                reason = error.reason or "" if isinstance(error, UnavailableError) else "the lock was lost"
                if reason != told:
                    log.warning("%s of %d is not done yet: %s", name, due, reason)
                told = reason
                await asyncio.sleep(RETRY)
            except Exception:
                log.exception("%s of %d failed", name, due)
                await asyncio.sleep(RETRY)


async def run_under(job: Job, at: int, lock: Lock) -> None:
    """Run a single job, which has the lock."""
    await job(Tick(job.__name__, at, lock.token))


def is_cancelled() -> bool:
    """Say whether this task was told to end, even if nobody noticed.

    Python 3.11's ``wait_for``, which the database's driver uses, may return a result instead: python/cpython#86296.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def sleep_until(at: float) -> None:
    """Sleep until a unix time; in steps, because the clock may be set meanwhile."""
    while (left := at - time.time()) > 0:
        await asyncio.sleep(min(left, 30))


def next_daily(at: datetime.time, after: float) -> int:
    """Return the first unix time after another at which it is that time of the day."""
    zone = at.tzinfo or datetime.UTC
    today = datetime.datetime.fromtimestamp(after, zone).date()
    times = (datetime.datetime.combine(today + datetime.timedelta(days=days), at.replace(tzinfo=zone)) for days in range(3))
    return next(int(time.timestamp()) for time in times if int(time.timestamp()) > after)
