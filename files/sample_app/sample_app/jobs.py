"""The example jobs, and the page that tells what they did."""

from __future__ import annotations

import asyncio
import datetime
import logging
from typing import TYPE_CHECKING

from tornado.ioloop import IOLoop

from sample_app.errors import NO_DATABASE, UnavailableError
from sample_app.handlers import BaseHandler
from sample_app.scheduler import Scheduler, Tick
from sample_app.services import Services
from sample_app.settings import Settings, identity

if TYPE_CHECKING:
    from sample_app.daos import Runs

KEPT = 24 * 3600
"""Seconds that what is known of a run is kept."""

log = logging.getLogger(__name__)


class ExampleJobs:
    """One job of each kind."""

    def __init__(self, config: Settings, runs: Runs) -> None:
        """Take the settings, and where to note what was run."""
        self.config = config
        self.runs = runs

    def schedule(self, scheduler: Scheduler) -> None:
        """Say what runs when."""
        scheduler.every(self.config.jobs_interval, self.record, single=True)
        scheduler.daily(datetime.time(3, 30), self.prune, single=True)
        scheduler.once_after(1, self.greet)

    async def record(self, tick: Tick) -> None:
        """Note that it runs, take some time, and note that it has ended; nothing if this tick was run."""
        if await self.runs.start(tick.job, tick.at, tick.token, identity()):
            await asyncio.sleep(self.config.jobs_seconds)
            await self.runs.finish(tick.job, tick.at, tick.token)

    async def prune(self, tick: Tick) -> None:
        """Remove what is old."""
        log.info("removed %d old runs", await self.runs.prune(tick.at - KEPT))

    async def greet(self, tick: Tick) -> None:
        """Say that this process is there."""
        log.info("the example jobs run, since %d", tick.at)


def start_jobs(config: Settings, services: Services) -> None:
    """Start the example jobs, as soon as the event loop runs."""
    if services.runs is None:
        log.error("the example jobs do not run: %s", NO_DATABASE)
        return
    scheduler = Scheduler(services.locks)
    ExampleJobs(config, services.runs).schedule(scheduler)
    IOLoop.current().add_callback(scheduler.start)
    services.ending.push_async_callback(scheduler.stop)


class JobsHandler(BaseHandler):
    """What the example job did."""

    async def get(self) -> None:
        """List its runs, the newest first."""
        if self.services.runs is None:
            raise UnavailableError(NO_DATABASE)
        self.write({"runs": await self.services.runs.newest(self.whole_number("limit", 100, 1000))})
