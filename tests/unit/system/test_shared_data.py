from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system import shared_data
from ansible_collections.funnel.tornado.plugins.module_utils.system.shared_data import SharedDataError, receive


@pytest.mark.parametrize("kept_open", [False, True])
def test_output_of_a_program_is_received_until_it_ends(tmp_path: Path, *, kept_open: bool) -> None:
    """Another process may keep the pipe open, and write to it."""
    reader, writer = os.pipe()
    ended, content = threading.Event(), os.urandom(3 << 20)
    with (tmp_path / "backup").open("wb") as file, ThreadPoolExecutor(2) as threads:
        received = threads.submit(receive, reader, file.fileno(), ended)
        for start in range(0, len(content), 1 << 16):
            os.write(writer, content[start : start + (1 << 16)])
        if not kept_open:
            os.close(writer)
        ended.set()
        began = time.monotonic()
        received.result(10)
        assert time.monotonic() - began < 5
    if kept_open:
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"later")
        os.close(writer)
    assert (tmp_path / "backup").read_bytes() == content


def test_endless_output_of_another_process_does_not_prolong_a_backup(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    ended = threading.Event()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                os.write(writer, bytes(1 << 16))

    with (tmp_path / "backup").open("wb") as file, ThreadPoolExecutor(2) as threads:
        writing = threads.submit(write)
        received = threads.submit(receive, reader, file.fileno(), ended)
        while not file.tell() and not received.done():
            time.sleep(0.01)
        ended.set()
        received.result(10)
        writing.result(10)
    os.close(writer)


@pytest.mark.parametrize(
    ("limit", "size", "message"),
    [
        ("MAX_BACKUP", 1 << 16, "the backup has more than 0 GiB"),
        ("MIN_FREE", 1 << 60, "the file system of the backup has less than .* MiB free"),
    ],
)
def test_size_of_a_backup_is_limited(
    limit: str, size: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of an app has any size."""
    monkeypatch.setattr(shared_data, limit, size)
    reader, writer = os.pipe()
    os.write(writer, bytes(1 << 16))
    with (tmp_path / "backup").open("wb") as file, pytest.raises(SharedDataError, match=message):
        receive(reader, file.fileno(), threading.Event())
    os.close(writer)
