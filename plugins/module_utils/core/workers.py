"""Child processes that run a function for several items concurrently, so that each can fail, or be killed, on its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeVar, cast

from ansible_collections.funnel.tornado.plugins.module_utils.core.memory import CGROUP, available
from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import PROC

T = TypeVar("T")
R = TypeVar("R")


def run_concurrently(function: Callable[[T], R], items: Iterable[T], limit: int) -> list[R | None]:
    """Call ``function`` for each item in a child process of its own, at most ``limit`` at a time; return the results in order.

    The result is None for a process that was killed. A single item needs no process.
    """
    waiting = list(enumerate(items))
    if len(waiting) == 1:
        return [function(waiting[0][1])]
    results: list[R | None] = [None] * len(waiting)
    running: dict[Connection[R, R], tuple[int, ForkProcess]] = {}
    while waiting or running:
        while waiting and len(running) < limit:
            number, item = waiting.pop(0)
            reader, process = _start(function, item)
            running[reader] = number, process
        for ended in multiprocessing.connection.wait(list(running)):
            reader = cast("Connection[R, R]", ended)
            number, process = running.pop(reader)
            with contextlib.suppress(EOFError), reader:
                results[number] = reader.recv()
            process.join()
    return results


def memory_limit(size: int, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Return how many processes of ``size`` bytes fit into the memory that is available without swap, at least one."""
    return max(1, available(proc, cgroup, swap=False) // size)


def _start(function: Callable[[T], R], item: T) -> tuple[Connection[R, R], ForkProcess]:
    """Start a process; return the end of a pipe from which its result can be read."""
    context = multiprocessing.get_context("fork")  # the code of a module on a host cannot be imported again
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=lambda: writer.send(function(item)))
    process.start()
    writer.close()
    return reader, process
