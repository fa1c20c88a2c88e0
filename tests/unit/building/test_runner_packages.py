from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.program import Run
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.building.runner_packages import RUNNER_PACKAGES, runner_packages


@pytest.mark.parametrize(
    ("run", "packages"),
    [
        ({"app": "a:b"}, ["tornado"]),
        ({"wsgi": "a:b"}, ["tornado"]),
        ({"asgi": "a:b"}, ["tornado", "uvicorn", "websockets"]),
        ({"app": "a:b", "loop": "uvloop"}, ["tornado", "uvloop"]),
        ({"command": "x {socket}"}, []),
    ],
)
def test_only_apps_that_the_runner_serves_get_its_packages(run: dict[str, Any], packages: list[str]) -> None:
    assert list(runner_packages(load({"shop": {"source": {"path": "."}, "run": run}})["shop"])) == packages


def test_kinds_are_keys_of_run() -> None:
    assert set(RUNNER_PACKAGES) <= set(Run.EXACTLY_ONE)
