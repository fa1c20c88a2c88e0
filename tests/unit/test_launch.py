from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, port_of


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    path = Path(__file__).parents[2] / "roles/app/files/launch.py"
    spec = importlib.util.spec_from_file_location("launch", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def release(**keys: Any) -> dict[str, Any]:
    return {"app": "shop", "id": "1f2e", "port": None, "processes": 2, **keys}


def test_a_socket_lies_in_the_slots_own_directory(launch: ModuleType) -> None:
    words = launch.placeholders(release(), "b", 1, Path("/srv/shop/slots/b/run"))
    assert words == {
        "process": "1",
        "socket": "/srv/shop/slots/b/run/1.sock",
        "port": "",
        "run": "/srv/shop/slots/b/run",
    }


def test_the_ports_of_both_slots_interleave(launch: ModuleType) -> None:
    def ports(slot: str) -> list[str]:
        return [launch.placeholders(release(port=8000), slot, n, Path("/run"))["port"] for n in range(3)]

    assert [ports("a"), ports("b")] == [["8000", "8002", "8004"], ["8001", "8003", "8005"]]
    assert [ports(slot) for slot in SLOTS] == [[str(port_of(8000, slot, n)) for n in range(3)] for slot in SLOTS]


def test_a_process_knows_who_it_is(launch: ModuleType) -> None:
    words = launch.placeholders(release(port=8000), "b", 0, Path("/run"))
    assert launch.words_environment(release(), "b", words) == {
        "PORT": "8001",
        "TORNADO_APP": "shop",
        "TORNADO_PROCESS": "0",
        "TORNADO_PROCESSES": "2",
        "TORNADO_RELEASE": "1f2e",
        "TORNADO_SLOT": "b",
    }
