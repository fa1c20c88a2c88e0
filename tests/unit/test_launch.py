from __future__ import annotations

import importlib.util
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, port_of


def test_the_ports_of_both_slots_interleave() -> None:
    spec = importlib.util.spec_from_file_location("launch", Path(__file__).parents[2] / "roles/app/files/launch.py")
    assert spec
    assert spec.loader
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)

    def ports(slot: str) -> list[str]:
        return [launch.placeholders(8000, slot, n, Path("/run"))["port"] for n in range(3)]

    assert [ports("a"), ports("b")] == [["8000", "8002", "8004"], ["8001", "8003", "8005"]]
    assert [ports(slot) for slot in SLOTS] == [[str(port_of(8000, slot, n)) for n in range(3)] for slot in SLOTS]
