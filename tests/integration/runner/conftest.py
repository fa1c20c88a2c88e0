"""Fixtures that start the runner."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runner import PATIENCE, SAMPLE_APP, Process


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Return a function that starts a runner of the sample app, or of another target, without waiting for it."""
    with contextlib.ExitStack() as processes:

        def spawn(
            *arguments: str | Path,
            target: str = "sample_app.web:make_app",
            cwd: Path = SAMPLE_APP,
            env: dict[str, str] | None = None,
            **options: Any,
        ) -> Process:
            process = Process([target, *map(str, arguments)], cwd, env or {}, **options)
            processes.callback(process.kill)
            return process

        yield spawn


@pytest.fixture
def serve(spawn: Callable[..., Process]) -> Callable[..., Process]:
    """Return a function that starts a runner, on a free port by default, and waits until it serves."""

    def serve(*arguments: str | Path, **options: Any) -> Process:
        if "--socket" not in arguments and "--port" not in arguments:
            arguments += ("--port", "0")
        process = spawn(*arguments, **options)
        address = process.wait_for(r" serving .* on (?:unix:(\S+)|https?://\S+:(\d+)) ")
        process.address = int(address[2]) if address[2] else Path(address[1])
        return process

    return serve


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Return a function that waits until a condition is true, and returns its result."""

    def eventually(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert time.monotonic() < end, "timeout"
            time.sleep(0.01)
        return result

    return eventually
