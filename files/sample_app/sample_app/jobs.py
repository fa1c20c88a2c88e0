"""The example jobs, and the handler that lists their runs."""

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

RETENTION = 24 * 3600
"""Seconds to keep the record of a run."""

log = logging.getLogger(__name__)


class ExampleJobs:
    """One job of each kind."""

    def __init__(self, config: Settings, runs: Runs) -> None:
        """Use the settings, and record runs in ``runs``."""
        self.config = config
        self.runs = runs

    def schedule(self, scheduler: Scheduler) -> None:
        """Add the jobs to a scheduler."""
        scheduler.every(self.config.jobs_interval, self.record, single=True)
        scheduler.daily(datetime.time(3, 30), self.prune, single=True)
        scheduler.once_after(1, self.greet)

    async def record(self, tick: Tick) -> None:
        """Record a run that takes ``--jobs-seconds``; do nothing if the tick is finished."""
        if await self.runs.start(tick.job, tick.at, tick.token, identity()):
            await asyncio.sleep(self.config.jobs_seconds)
            await self.runs.finish(tick.job, tick.at, tick.token)

    async def prune(self, tick: Tick) -> None:
        """Delete old runs."""
        log.info("deleted %d old runs", await self.runs.prune(tick.at - RETENTION))

    async def greet(self, tick: Tick) -> None:
        """Log the start of the jobs."""
        log.info("example jobs started at %d", tick.at)


def start_jobs(config: Settings, services: Services) -> None:
    """Start the example jobs when the event loop runs."""
    if services.runs is None:
        log.error("cannot start the example jobs: %s", NO_DATABASE)
        return
    scheduler = Scheduler(services.locks)
    ExampleJobs(config, services.runs).schedule(scheduler)
    IOLoop.current().add_callback(scheduler.start)
    services.cleanup.push_async_callback(scheduler.stop)


class JobsHandler(BaseHandler):
    """The runs of the example job."""

    async def get(self) -> None:
        """List up to ``limit`` runs, newest first."""
        if self.services.runs is None:
            raise UnavailableError(NO_DATABASE)
        self.write({"runs": await self.services.runs.newest(self.int_argument("limit", 100, 1000))})
