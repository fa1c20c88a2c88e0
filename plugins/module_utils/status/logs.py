"""Log lines of the processes of an app: the last ones, and those since a position.

supervisord rotates ``a-0.log`` to ``a-0.log.1``, and that to ``a-0.log.2``, so a position identifies a file by its inode.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

#: The name of a log file: slot, process type of a worker, and number of the process.
NAME = re.compile(r"([ab])-(?:(.+)-)?(\d+)\.log")

#: The time of a line, at its start or after a bracket, a word or a JSON key: ISO 8601, the format of Python's logging, or that of
#: Tornado, ``[I 261121 03:14:15 web:2348]``.
ISO = re.compile(r"\S{0,12}?\s?\W?(?<!\d)(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:Z| ?[+-]\d\d:?\d\d)?)")
TORNADO = re.compile(r"\[[A-Z] (\d{6} \d\d:\d\d:\d\d)\b")

#: Maximum number of characters of a line that are returned.
MAX_LINE_SIZE = 16_384

#: Maximum number of bytes and lines returned per file and call, counted from the end: an app that logs faster loses lines.
MAX_READ_SIZE = 8 << 20
MAX_LINES = 20_000

#: Bytes read at a time from the end of a file.
BLOCK_SIZE = 1 << 16

#: Seconds between two checks for new lines.
INTERVAL = 0.2

#: The end of what was read of each log, by name: the inode of the file, and the offset in bytes.
Position = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class LogLine:
    """A line that a process, such as ``a/0``, logged; its unix time, or that of the preceding line if it has none."""

    time: float
    process: str
    text: str


def tail(layout: Layout, count: int) -> tuple[list[LogLine], Position]:
    """Return the last ``count`` lines of an app on this host, sorted by time, and the position after them."""
    found: list[LogLine] = []
    position: Position = {}
    for log, process in _log_files(layout).items():
        data = b""
        for file in _open_rotated(log):
            end = _read_end(file, count - data.count(b"\n"))
            position.setdefault(log.name, _position(file, end))
            data = end + data
            if data.count(b"\n") > count:  # the first line may be incomplete
                break
        found += _parse_lines(log, process, data)[-count:]
    return _sort(found)[-count:] if count else [], position


def read_since(layout: Layout, since: Mapping[str, tuple[int, int]], wait: float) -> tuple[list[LogLine], Position]:
    """Return the lines since a position, sorted by time, and the position after them.

    :arg wait: seconds to wait for the first line.
    """
    deadline = Deadline(wait)
    while True:
        found: list[LogLine] = []
        position: Position = {}
        for log, process in _log_files(layout).items():
            data = b""
            for file in _open_rotated(log):
                inode, start = since.get(log.name, (_inode(file), 0))
                is_last_read = inode == _inode(file)
                size = os.fstat(file.fileno()).st_size
                file.seek(max(start if is_last_read and start <= size else 0, size - MAX_READ_SIZE))
                part = file.read(MAX_READ_SIZE)
                position.setdefault(log.name, _position(file, part))
                data = part + data
                if is_last_read:
                    break
            found += _parse_lines(log, process, data)
        if found or deadline.expired:
            return _sort(found), position
        time.sleep(INTERVAL)


def line_time(text: str) -> float | None:
    """Return the unix time of a line, None if it has none. A time without a zone is local time."""
    with contextlib.suppress(OverflowError, ValueError):
        if match := ISO.match(text):
            return datetime.fromisoformat(re.sub(" (?=[+-])", "", match[1])).timestamp()
        if match := TORNADO.match(text):
            return datetime.strptime(match[1], "%y%m%d %H:%M:%S").timestamp()
    return None


def _log_files(layout: Layout) -> dict[Path, str]:
    """Return the log files of an app and the names of their processes, including processes that no longer exist."""
    found = {path: NAME.fullmatch(path.name) for path in sorted(layout.logs.glob("*.log"))}
    return {path: f"{name[1]}/{f'{name[2]}.' if name[2] else ''}{name[3]}" for path, name in found.items() if name}


def _open_rotated(log: Path) -> Iterator[BinaryIO]:
    """Yield the current and the rotated files of a log, newest first; each once, even if a rotation renames them meanwhile."""
    seen = set()
    rotated = len(list(log.parent.glob(f"{log.name}.*")))
    for name in [log.name, *(f"{log.name}.{number + 1}" for number in range(rotated))]:
        with contextlib.suppress(FileNotFoundError), log.with_name(name).open("rb") as file:
            if _inode(file) not in seen:
                seen.add(_inode(file))
                yield file


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino


def _position(file: BinaryIO, end: bytes) -> tuple[int, int]:
    """Return the position after the last complete line of a file whose last bytes, ``end``, were read."""
    return _inode(file), file.tell() - len(end) + end.rfind(b"\n") + 1


def _read_end(file: BinaryIO, count: int) -> bytes:
    """Return the end of a file with at least ``count`` lines, as far as it has them within `MAX_READ_SIZE`."""
    start = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []
    lines = 0
    while start and lines <= count and len(blocks) < MAX_READ_SIZE // BLOCK_SIZE:
        size = min(BLOCK_SIZE, start)
        start -= size
        file.seek(start)
        blocks.append(file.read(size))
        lines += blocks[-1].count(b"\n")
    data = b"".join(reversed(blocks))
    file.seek(start + len(data))
    return data


def _parse_lines(log: Path, process: str, data: bytes) -> list[LogLine]:
    """Return the complete lines in a piece of a log."""
    texts = data[: data.rfind(b"\n") + 1].decode(errors="replace").split("\n")[:-1][-MAX_LINES:]
    times = [line_time(text) for text in texts]
    now = next((moment for moment in times if moment is not None), None) or _modified(log)
    found = []
    for moment, text in zip(times, texts, strict=True):
        now = max(now, moment or now)
        found.append(LogLine(now, process, _printable_line(text)))
    return found


def _printable_line(text: str) -> str:
    shown = printable(text[: MAX_LINE_SIZE + 1].rstrip("\r"), line=True)
    return f"{shown[:MAX_LINE_SIZE]}..." if len(text) > MAX_LINE_SIZE else shown


def _modified(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except FileNotFoundError:  # a rotation is in progress
        return time.time()


def _sort(lines: list[LogLine]) -> list[LogLine]:
    return sorted(lines, key=lambda line: line.time)
