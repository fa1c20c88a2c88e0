"""Locks and things to be done once, across all processes of all hosts that share an etcd.

A lock is a key that lives as long as its lease. The holder keeps the lease alive; a holder that is gone, or is cut off, loses
it. What is done under a lock is cancelled a little before the lease can have ended, if it could not be kept alive.
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

POLL = 0.25
"""Seconds between two looks at a lock that another process holds."""

SAFETY = 0.2
"""The part of a lease's time, at its end, in which nothing is done any more under the lock."""


class LockHeldError(Exception):
    """Another process has the lock."""


class LockLostError(Exception):
    """The lock was lost while something was done under it, which was cancelled."""


@dataclass(frozen=True)
class Lock:
    """A lock: held, or (which only a silent one can be) not.

    The token is larger than that of everyone who has held the lock before. Who is given one refuses a smaller one than it has
    seen: so a holder that does not know yet that it has lost its lock does no harm (a "fencing token").
    """

    name: str
    token: int = 0

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self.token > 0


class Taken(NamedTuple):
    """A lock that was taken: its lease, its token, and the event loop's time until which something may be done under it."""

    lease: str
    token: int
    until: float


class LockManager:
    """The locks of one app. Every method may raise UnavailableError when etcd does not answer."""

    def __init__(self, etcd: Etcd, *, prefix: str, ttl: int = 5) -> None:
        """Take etcd, what the app's keys begin with, and the seconds after which the lock of a holder that is gone is free."""
        self.etcd = etcd
        self.prefix = prefix
        self.ttl = ttl

    @contextlib.asynccontextmanager
    async def lock(self, name: str, *, blocking: bool = True, silent: bool = False) -> AsyncIterator[Lock]:
        """Hold a lock: ``async with locks.lock("accounts") as lock: ...``.

        :arg blocking: wait until it is free. If not, LockHeldError is raised when another process has it.
        :arg silent: instead of that, go on with a lock that is not ``held``.
        :raises LockLostError: when the lock was lost before the end.
        """
        while (taken := await self.take(name)) is None and blocking:
            await asyncio.sleep(POLL)
        if taken is None and not silent:
            raise LockHeldError(name)
        if taken is None:
            yield Lock(name)
            return
        try:
            async with asyncio.timeout_at(taken.until) as limit:
                keeper = asyncio.create_task(self.keep(taken.lease, limit))
                try:
                    yield Lock(name, taken.token)
                finally:
                    keeper.cancel()
        except TimeoutError:
            if limit.expired():
                raise LockLostError(name) from None
            raise
        finally:
            await self.release(taken.lease)

    async def ping(self) -> None:
        """Return when etcd answers, and lets this app in."""
        await self.etcd.get(self.key("locks", "ping"))

    async def take(self, name: str) -> Taken | None:
        """Take a lock; None if another process has it."""
        key = self.key("locks", name)
        if await self.etcd.get(key) is not None:
            return None
        asked = asyncio.get_running_loop().time()
        lease, seconds = await self.etcd.grant(self.ttl)
        token = 0
        try:
            token = await self.etcd.create(key, f"{socket.gethostname()} {os.getpid()}", lease)
        finally:
            if not token:
                await self.release(lease)
        return Taken(lease, token, asked + seconds * (1 - SAFETY)) if token else None

    async def keep(self, lease: str, limit: asyncio.Timeout) -> None:
        """Keep a lease alive, and put off the end of what is done under it as often as etcd has confirmed that."""
        pause = self.ttl / 3
        while True:
            await asyncio.sleep(pause)
            asked = asyncio.get_running_loop().time()
            try:
                seconds = await self.etcd.keep_alive(lease)
            except UnavailableError:
                pause = POLL
                continue
            if limit.expired():
                return
            limit.reschedule(asked + seconds * (1 - SAFETY))  # in the past if the lease has ended: at once
            pause = seconds / 3

    async def release(self, lease: str) -> None:
        """Give a lock back; if etcd cannot be told, it will see to it when the lease ends."""
        with contextlib.suppress(UnavailableError):
            await self.etcd.revoke(lease)

    async def once(self, name: str, occasion: int, work: Callable[[Lock], Awaitable[None]]) -> bool:
        """Do something once among all processes that ask for it; return whether it was done here.

        It is done under the lock of that name, and noted as done only if the lock is still held then. Whoever comes while
        it is being done waits, to do it if the process that does it is gone before it is through.

        :arg occasion: which time it is: a number that grows, such as the unix time that it is due.
        :raises LockLostError: when the lock was lost before the end; then it is another's turn.
        """
        while (await self.last(name) or 0) < occasion:
            async with self.lock(name, blocking=False, silent=True) as lock:
                if lock.held:
                    if (await self.last(name) or 0) >= occasion:
                        return False
                    await work(lock)
                    await self.note(lock, occasion)
                    return True
            await asyncio.sleep(POLL)
        return False

    async def last(self, name: str) -> int | None:
        """Return the last occasion that something was done `once`; None if it never was."""
        noted = await self.etcd.get(self.key("done", name))
        return None if noted is None else int(noted)

    async def note(self, lock: Lock, occasion: int) -> None:
        """Note that something was done under a lock; tried as long as the lock is held. Raises LockLostError."""
        held, done = self.key("locks", lock.name), self.key("done", lock.name)
        while True:
            with contextlib.suppress(UnavailableError):
                if await self.etcd.put_while(held, lock.token, done, str(occasion)):
                    return
                raise LockLostError(lock.name)
            await asyncio.sleep(POLL)

    def run_once(self, name: str, every: int) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, Awaitable[bool]]]:
        """Decorate a coroutine function so that, of all calls in the fleet, only the first in each span of time does anything.

        A call returns when it is done, and tells whether it was done here; the rest is as for `once`.

        :arg every: the seconds of a span. Spans begin where the unix time is a multiple of them, so clocks have to agree.
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
        """Return what etcd calls something."""
        return f"{self.prefix}/{kind}/{name}"
