"""Values that the launcher duplicates, because it runs without the collection, are the same in both."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building.release import _base_environment
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, port_of
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisor_config import STOP_MARGIN
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import ENVIRONMENT
from tests.support.programs import load


def test_the_ports_of_the_slots_interleave() -> None:
    launch = load("launch")

    def ports(slot: str) -> list[str]:
        return [launch.placeholders(8000, slot, n, Path("/run"))["port"] for n in range(3)]

    assert [ports("a"), ports("b")] == [["8000", "8002", "8004"], ["8001", "8003", "8005"]]
    assert [ports(slot) for slot in SLOTS] == [[str(port_of(8000, slot, n)) for n in range(3)] for slot in SLOTS]


def test_a_build_hook_has_the_environment_of_the_releases_other_programs(tmp_path: Path) -> None:
    launch: Any = load("launch")
    launch.HERE = tmp_path
    launched = launch.base_environment()
    built = {**ENVIRONMENT, "HOME": "", "USER": "", **_base_environment(tmp_path)}
    own = ("HOME", "USER")  # those of the builder
    assert built.keys() == launched.keys()
    assert {name: value for name, value in built.items() if name not in own} == {
        name: value for name, value in launched.items() if name not in own
    }


@pytest.mark.parametrize(("inherited", "kept"), [("-100", "500"), ("0", "500"), ("700", "700")])
def test_a_process_does_not_inherit_the_oom_protection_of_supervisord(tmp_path: Path, inherited: str, kept: str) -> None:
    launch: Any = load("launch")
    launch.HERE, launch.OOM_SCORE = tmp_path, tmp_path / "oom_score_adj"
    launch.OOM_SCORE.write_text(inherited)
    (tmp_path / "src").mkdir()
    (tmp_path / "secrets.json").write_text("{}")
    release = {"app": "shop", "id": "1", "environment": {}, "open_files": 0}
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            launch.execute(["true"], release, {})
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert launch.OOM_SCORE.read_text() == kept


def test_launcher_runner_and_supervisord_have_the_same_stop_margin() -> None:
    assert STOP_MARGIN == load("launch").STOP_MARGIN == load("runner.replacing").KILL_GRACE
