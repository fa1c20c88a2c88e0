from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc

NOBODY = 4_194_304 + 1  # above the kernel's largest pid_max
APP = f"shop-{os.getpid()}"  # unique to this test run


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], env={"TORNADO_APP": APP, "TORNADO_SLOT": "b"}) as process:
        yield process
        process.kill()


def wait_until_started(child: subprocess.Popen[bytes]) -> None:
    """Wait for its exec(2), which sets its environment."""
    deadline = time.monotonic() + 5
    while child.pid not in proc.pids_with_environment(os.getuid(), {"TORNADO_APP": APP}) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_parents_children_and_ancestry(child: subprocess.Popen[bytes]) -> None:
    assert proc.parent(child.pid) == os.getpid()
    assert child.pid in proc.children(os.getpid())
    assert list(proc.ancestry(child.pid))[:2] == [child.pid, os.getpid()]


def test_descendants_are_found_by_reading_each_process_once(
    child: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = proc.descendants(os.getppid())
    assert {os.getppid(), os.getpid(), child.pid} <= set(found)
    assert proc.descendants(child.pid) == [child.pid]
    assert proc.descendants(0) == proc.descendants(1) == []
    for pid in range(1, 1001):  # a chain: each process is the child of the one before
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) S {pid - 1} " + "0 " * 20)
    reads: list[int] = []

    def count_reads(pid: int, stat: Callable[[int], list[str] | None] = proc.stat) -> list[str] | None:
        reads.append(pid)
        return stat(pid)

    monkeypatch.setattr(proc, "PROC", tmp_path)
    monkeypatch.setattr(proc, "stat", count_reads)
    assert proc.descendants(500) == list(range(500, 1001))
    assert len(reads) == 1000


def test_processes_are_found_by_environment_and_user(child: subprocess.Popen[bytes]) -> None:
    wait_until_started(child)
    assert proc.pids_with_environment(os.getuid(), {"TORNADO_APP": APP, "TORNADO_SLOT": "b"}) == [child.pid]
    assert proc.pids_with_environment(os.getuid(), {"TORNADO_APP": APP, "TORNADO_SLOT": "a"}) == []
    assert proc.pids_with_environment(os.getuid() + 1, {"TORNADO_APP": APP}) == []


def test_a_process_that_has_taken_the_id_of_another_is_not_signaled(child: subprocess.Popen[bytes]) -> None:
    wait_until_started(child)
    own = {"TORNADO_APP": APP, "TORNADO_SLOT": "b"}
    proc.send_signal(child.pid, signal.SIGKILL, os.getuid(), own | {"TORNADO_SLOT": "a"})
    proc.send_signal(child.pid, signal.SIGKILL, os.getuid() + 1, own)
    proc.send_signal(NOBODY, signal.SIGKILL, os.getuid(), own)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    proc.send_signal(child.pid, signal.SIGTERM, os.getuid(), own)
    assert child.wait(5) == -signal.SIGTERM


def test_zombies_do_not_count_as_processes(child: subprocess.Popen[bytes]) -> None:
    assert proc.stat(child.pid)
    child.kill()
    deadline = time.monotonic() + 5
    while proc.stat(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proc.stat(child.pid) is None
    assert (proc.stat(NOBODY), proc.parent(NOBODY), proc.uptime(NOBODY)) == (None, 0, 0)


def test_open_sockets_of_a_process_are_found() -> None:
    with socket.socket() as opened:
        inode = os.fstat(opened.fileno()).st_ino
        assert proc.holds_socket(os.getpid(), {inode})
    assert not proc.holds_socket(os.getpid(), {inode})


def test_a_process_group_contains_the_children_of_its_leader() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        assert proc.process_group(child) == process.pid
        assert sorted(proc.process_groups()[process.pid]) == sorted([process.pid, child])
        os.killpg(process.pid, signal.SIGKILL)
    assert proc.process_group(NOBODY) == 0


def test_any_command_name_is_parsed() -> None:
    code = "open('/proc/self/comm', 'wb').write(b'a) b\\xff'); print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert proc.parent(process.pid) == os.getpid()
        assert process.pid in proc.children(os.getpid())
        process.kill()


def test_time_without_a_free_cpu_is_measured_also_of_child_processes() -> None:
    busy = "while :; do :; done & while :; do :; done & while :; do :; done & wait"
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), "sh", "-c", busy]
    with subprocess.Popen(command, process_group=0) as process:
        try:
            began = time.monotonic()
            while (waited := proc.cpu_wait(process.pid)) < 0.3 and time.monotonic() < began + 30:
                time.sleep(0.05)
            assert 0.3 <= waited <= time.monotonic() - began + 1
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert proc.cpu_wait(process.pid) == proc.cpu_wait(0) == 0


def test_resource_usage_is_0_after_a_process_has_exited(tmp_path: Path) -> None:
    before = proc.count_open_files(os.getpid())
    with (tmp_path / "one").open("w"):
        assert proc.count_open_files(os.getpid()) == before + 1
    assert proc.rss(os.getpid()) > 1 << 20
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert (proc.count_open_files(ended.pid), proc.rss(ended.pid)) == (0, 0)


def test_low_priority_is_inherited_and_ends() -> None:
    before = os.nice(0)
    with proc.low_priority():
        inherited = subprocess.run(["nice"], capture_output=True, text=True, check=True).stdout
        assert (os.nice(0), int(inherited)) == (max(before, proc.NICE),) * 2
    assert os.nice(0) == before
