from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.workers import memory_limit, run_concurrently


def test_items_run_concurrently_up_to_the_limit_and_keep_their_order() -> None:
    def work(number: int) -> tuple[int, float]:
        time.sleep(0.3 if number < 2 else 0)
        return number, time.monotonic()

    results = run_concurrently(work, range(4), 2)
    ended = [result[1] for result in results if result]
    assert [result[0] for result in results if result] == [0, 1, 2, 3]
    assert abs(ended[0] - ended[1]) < 0.25, "the first two overlap"
    assert min(ended[2:]) >= min(ended[:2]), "the third waits for one of them"


def test_a_killed_process_affects_no_other() -> None:
    def work(number: int) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert run_concurrently(work, range(3), 3) == [0, None, 2]


def test_a_single_item_needs_no_process() -> None:
    assert run_concurrently(lambda _item: os.getpid(), ["shop"], 2) == [os.getpid()]
    assert run_concurrently(lambda _item: os.getpid(), [], 2) == []


def test_processes_are_limited_by_the_available_memory(tmp_path: Path) -> None:
    for available, limit in ((3 << 20, 6), ((3 << 20) - 1, 5), (1000, 1)):
        (tmp_path / "meminfo").write_text(f"MemTotal:       8000000 kB\nMemAvailable:   {available} kB\nSwapFree: 8000000 kB\n")
        assert memory_limit(512 << 20, tmp_path, tmp_path) == limit
    assert memory_limit(512 << 20) >= 1


def test_processes_are_limited_by_the_memory_of_a_container(tmp_path: Path) -> None:
    texts = {
        "meminfo": f"MemAvailable: {64 << 20} kB\n",
        "memory.max": f"{2 << 30}\n",
        "memory.current": f"{1 << 30}\n",
        "memory.stat": f"anon 9\nactive_file {1 << 29}\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert memory_limit(512 << 20, tmp_path, tmp_path) == 3
