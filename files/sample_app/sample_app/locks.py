"""Distributed locks, and work that runs once, across all processes of all hosts that share an etcd.

A lock is a key with a lease. The holder renews the lease; a holder that exits or is disconnected loses it. Work under a lock
is cancelled shortly before the lease can expire, if it could not be renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec

from sample_app.errors import UnavailableError
from sample_app.etcd import Etcd

P = ParamSpec("P")

POLL_INTERVAL = 0.25
"""Seconds between two attempts to acquire a lock that another process holds."""

SAFETY_MARGIN = 0.2
"""Fraction of the TTL, at the end of a lease, in which no work runs under the lock."""


class LockHeldError(Exception):
    """Another process holds the lock."""


class LockLostError(Exception):
    """The lock was lost, and the work under it was cancelled."""


@dataclass(frozen=True)
class Lock:
    """A lock, which is held unless ``silent`` was requested.

    The fencing token is larger than those of all previous holders. A resource that rejects smaller tokens than it has seen is
    safe from a holder that has not noticed yet that it has lost its lock.
    """

    name: str
    token: int = 0

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self.token > 0


class AcquiredLock(NamedTuple):
    """An acquired lock: its lease, its token, and the time of the event loop until which work may run under it."""

    lease: str
    token: int
    until: float


class LockManager:
    """The locks of one app. Every method may raise UnavailableError when etcd is unavailable."""

    def __init__(self, etcd: Etcd, *, prefix: str, ttl: int = 5) -> None:
        """Use etcd with keys that start with ``prefix``; the lock of a holder that exits expires after ``ttl`` seconds."""
        self.etcd = etcd
        self.prefix = prefix
        self.ttl = ttl

    @contextlib.asynccontextmanager
    async def lock(self, name: str, *, blocking: bool = True, silent: bool = False) -> AsyncIterator[Lock]:
        """Hold a lock: ``async with locks.lock("accounts") as lock: ...``.

        :arg blocking: wait until the lock is free; otherwise raise LockHeldError if another process holds it.
        :arg silent: do not raise LockHeldError, but return a lock that is not ``held``.
        :raises LockLostError: if the lock is lost before the end of the block.
        """
        while (acquired := await self.try_acquire(name)) is None and blocking:
            await asyncio.sleep(POLL_INTERVAL)
        if acquired is None and not silent:
            raise LockHeldError(name)
        if acquired is None:
            yield Lock(name)
            return
        try:
            async with asyncio.timeout_at(acquired.until) as limit:
                keeper = asyncio.create_task(self.renew(acquired.lease, limit))
                try:
                    yield Lock(name, acquired.token)
                finally:
                    keeper.cancel()
        except TimeoutError:
            if limit.expired():
                raise LockLostError(name) from None
            raise
        finally:
            await self.release(acquired.lease)

    async def ping(self) -> None:
        """Verify that etcd responds and accepts the credentials."""
        await self.etcd.get(self.key("locks", "ping"))

    async def try_acquire(self, name: str) -> AcquiredLock | None:
        """Try to acquire a lock; return None if another process holds it."""
        key = self.key("locks", name)
        if await self.etcd.get(key) is not None:
            return None
        sent = asyncio.get_running_loop().time()
        lease, seconds = await self.etcd.grant(self.ttl)
        token = 0
        try:
            token = await self.etcd.create(key, f"{socket.gethostname()} {os.getpid()}", lease)
        finally:
            if not token:
                await self.release(lease)
        return AcquiredLock(lease, token, sent + seconds * (1 - SAFETY_MARGIN)) if token else None

    async def renew(self, lease: str, limit: asyncio.Timeout) -> None:
        """Renew a lease, and extend the deadline of the work under it after each confirmation of etcd."""
        pause = self.ttl / 3
        while True:
            await asyncio.sleep(pause)
            sent = asyncio.get_running_loop().time()
            try:
                seconds = await self.etcd.keep_alive(lease)
            except UnavailableError:
                pause = POLL_INTERVAL
                continue
            if limit.expired():
                return
            limit.reschedule(sent + seconds * (1 - SAFETY_MARGIN))  # in the past if the lease has expired
            pause = seconds / 3

    async def release(self, lease: str) -> None:
        """Release a lock; if etcd is unavailable, the lock is free when the lease expires."""
        with contextlib.suppress(UnavailableError):
            await self.etcd.revoke(lease)

    async def once(self, name: str, occasion: int, work: Callable[[Lock], Awaitable[None]]) -> bool:
        """Run work once among all processes that call this; return whether it ran here.

        The work runs under the lock of that name, and is recorded as done only if the lock is still held at its end. Other
        callers wait meanwhile, and run the work if its process exits before the end.

        :arg occasion: number of the occasion, which must increase, such as the Unix time at which the work is due.
        :raises LockLostError: if the lock was lost before the end; another process then runs the work.
        """
        while (await self.last_done(name) or 0) < occasion:
            async with self.lock(name, blocking=False, silent=True) as lock:
                if lock.held:
                    if (await self.last_done(name) or 0) >= occasion:
                        return False
                    await work(lock)
                    await self.record_done(lock, occasion)
                    return True
            await asyncio.sleep(POLL_INTERVAL)
        return False

    async def last_done(self, name: str) -> int | None:
        """Return the last occasion of work that ran `once`, or None."""
        occasion = await self.etcd.get(self.key("done", name))
        return None if occasion is None else int(occasion)

    async def record_done(self, lock: Lock, occasion: int) -> None:
        """Record that work under a lock is done; retry while the lock is held. Raises LockLostError."""
        lock_key, done_key = self.key("locks", lock.name), self.key("done", lock.name)
        while True:
            with contextlib.suppress(UnavailableError):
                if await self.etcd.put_while(lock_key, lock.token, done_key, str(occasion)):
                    return
                raise LockLostError(lock.name)
            await asyncio.sleep(POLL_INTERVAL)

    def run_once(self, name: str, every: int) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, Awaitable[bool]]]:
        """Decorate a coroutine function so that only the first call in the fleet in each interval runs it.

        A call returns when the work is done, and returns whether it ran here, as `once` does.

        :arg every: length of an interval in seconds. Intervals start at multiples of it in Unix time, so clocks must be in sync.
        """

        def decorate(function: Callable[P, Awaitable[object]]) -> Callable[P, Awaitable[bool]]:
            @functools.wraps(function)
            async def run(*args: P.args, **kwargs: P.kwargs) -> bool:
                async def work(_lock: Lock) -> None:
                    await function(*args, **kwargs)

                return await self.once(name, int(time.time()) // every * every, work)

            return run

        return decorate

    def key(self, kind: str, name: str) -> str:
        """Return the key in etcd."""
        return f"{self.prefix}/{kind}/{name}"
