"""The memory of a host and of its users."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import memory


def test_available_memory_includes_swap(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  2048 kB\nSwapFree:  1024 kB\n")
    assert memory.available(tmp_path, tmp_path / "none") == 3 << 20
    assert memory.available(tmp_path, tmp_path / "none", swap=False) == 2 << 20


@pytest.mark.parametrize(
    ("limit", "available"), [("max", 3), (str(256 << 20), 3), (str(2 << 20), 1.5), (str(1 << 20), 0.5), ("1", 0)]
)
def test_available_memory_is_bounded_by_the_limit_of_a_container(tmp_path: Path, limit: str, available: float) -> None:
    texts = {
        "meminfo": "MemAvailable:  2048 kB\nSwapFree:  1024 kB\n",
        "memory.max": f"{limit}\n",
        "memory.current": f"{1 << 20}\n",
        "memory.stat": f"anon 9\ninactive_file {1 << 18}\nactive_file {1 << 17}\nslab_reclaimable {1 << 17}\nslab 8\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert memory.available(tmp_path, tmp_path) == available * (1 << 20)


def test_memory_that_is_not_shared_is_counted_by_user(tmp_path: Path) -> None:
    for pid, uid in ((10, 997), (11, 997), (12, 0)):
        (tmp_path / str(pid)).mkdir()
        text = f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nRssAnon:\t  1024 kB\nRssFile:\t 9000 kB\nVmSwap:\t 512 kB\n"
        (tmp_path / f"{pid}/status").write_text(text)
    assert memory.used_by([997, 998], tmp_path) == {997: 3 << 20, 998: 0}


def test_this_process_is_measured() -> None:
    assert memory.used_by([os.getuid()])[os.getuid()] > 1 << 20
    assert memory.available() > 1 << 20
