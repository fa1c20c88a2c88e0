"""Scheduled jobs: periodic, daily, and once after a delay; in each process, or (``single``) once in the whole fleet.

Processes identify a tick of a single job by its due time, so the clocks of their hosts must be in sync.
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

MAX_DELAY = 60
"""Seconds after which a tick of a single job is skipped, because of an outage of the lock server or repeated failures."""

RETRY_INTERVAL = 1.0
"""Seconds until a failed single job is retried."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tick:
    """One scheduled run of a job.

    :arg at: Unix time at which it is due, the same in all processes.
    :arg token: fencing token of a single job's lock, 0 for other jobs.
    """

    job: str
    at: int
    token: int = 0


Job = Callable[[Tick], Awaitable[None]]
"""A job. A single job must tolerate that its process is killed during a tick, and another process runs the same tick."""

Schedule = Callable[[float], int]
"""Returns the first due time after a Unix time."""


class Scheduler:
    """Runs jobs in the event loop."""

    def __init__(self, locks: LockManager | None = None) -> None:
        """Use the locks of the fleet; without them single jobs do not run."""
        self.locks = locks
        self.jobs: list[Callable[[], Awaitable[None]]] = []
        self.tasks: list[asyncio.Future[None]] = []

    def every(self, seconds: int, job: Job, *, single: bool = False) -> None:
        """Run a job whenever the Unix time is a multiple of ``seconds``: at the same time in all processes."""
        self.add(lambda after: (int(after) // seconds + 1) * seconds, job, single=single)

    def daily(self, at: datetime.time, job: Job, *, single: bool = False) -> None:
        """Run a job daily at a time, in UTC unless it has a time zone."""
        self.add(lambda after: next_daily(at, after), job, single=single)

    def once_after(self, seconds: float, job: Job) -> None:
        """Run a job once in this process, ``seconds`` after the start."""

        async def run() -> None:
            await asyncio.sleep(seconds)
            await self.run(job, int(time.time()))

        self.jobs.append(run)

    def add(self, schedule: Schedule, job: Job, *, single: bool) -> None:
        """Run a job on a schedule."""
        if not single:
            self.jobs.append(lambda: self.run_here(schedule, job))
        elif self.locks is not None:
            self.jobs.append(functools.partial(self.run_single, self.locks, schedule, job))
        else:
            log.error("%s does not run: a single job requires a lock server", job.__name__)

    def start(self) -> None:
        """Start the jobs in the running event loop."""
        self.tasks = [asyncio.ensure_future(job()) for job in self.jobs]

    async def stop(self) -> None:
        """Cancel the jobs, and wait until they have ended."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def run(self, job: Job, at: int) -> None:
        """Run a job in this process; log a failure, after which later ticks still run."""
        try:
            await job(Tick(job.__name__, at))
        except UnavailableError as error:
            log.warning("%s failed: %s", job.__name__, error.log_message)
        except Exception:
            log.exception("%s failed", job.__name__)

    async def run_here(self, schedule: Schedule, job: Job) -> None:
        """Run a job on schedule in this process; skip ticks that are due while it runs."""
        while not is_cancelled():
            due = schedule(time.time())
            await sleep_until(due)
            await self.run(job, due)

    async def run_single(self, locks: LockManager, schedule: Schedule, job: Job) -> None:
        """Ensure that every tick of a job runs once in the fleet, here or elsewhere, with a delay of at most `MAX_DELAY`."""
        name, logged = job.__name__, ""
        due = schedule(time.time())
        start = due - 1
        while not is_cancelled():
            await sleep_until(due)
            try:
                last = await locks.last_done(name)
                due = schedule(max(last or start, time.time() - MAX_DELAY))
                ran = due <= time.time() and await locks.once(name, due, functools.partial(run_under, job, due))
                if ran and last and due > schedule(last):
                    log.warning("%s was skipped from %d until %d: more than %d s late", name, schedule(last), due, MAX_DELAY)
                logged = ""
            except (UnavailableError, LockLostError) as error:
                reason = error.reason or "" if isinstance(error, UnavailableError) else "the lock was lost"
                if reason != logged:
                    log.warning("%s of %d is pending: %s", name, due, reason)
                logged = reason
                await asyncio.sleep(RETRY_INTERVAL)
            except Exception:
                log.exception("%s of %d failed", name, due)
                await asyncio.sleep(RETRY_INTERVAL)


async def run_under(job: Job, at: int, lock: Lock) -> None:
    """Run a single job under its lock."""
    await job(Tick(job.__name__, at, lock.token))


def is_cancelled() -> bool:
    """Return whether this task was cancelled, even if the cancellation was lost.

    Python 3.11's ``wait_for``, which the database driver uses, may return a result instead: python/cpython#86296.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def sleep_until(at: float) -> None:
    """Sleep until a Unix time, in steps, because the clock may be adjusted meanwhile."""
    while (left := at - time.time()) > 0:
        await asyncio.sleep(min(left, 30))


def next_daily(at: datetime.time, after: float) -> int:
    """Return the first Unix time after ``after`` at the given time of day."""
    zone = at.tzinfo or datetime.UTC
    today = datetime.datetime.fromtimestamp(after, zone).date()
    times = (datetime.datetime.combine(today + datetime.timedelta(days=days), at.replace(tzinfo=zone)) for days in range(3))
    return next(int(time.timestamp()) for time in times if int(time.timestamp()) > after)
