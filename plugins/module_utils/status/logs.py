"""What the processes of an app have logged: the last lines of all of them, and then what has come since.

supervisord renames ``a-0.log`` to ``a-0.log.1``, that to ``a-0.log.2``, ...: a file is known by its inode.
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
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

#: The name of a log: the slot, the type of a worker, the number of the process.
NAME = re.compile(r"([ab])-(?:(.+)-)?(\d+)\.log")

#: The time of a line, at its beginning or after a bracket, a word or a key of JSON: ISO 8601, as Python's logging has it, or
#: Tornado's own way, ``[I 261121 03:14:15 web:2348]``.
ISO = re.compile(r"\S{0,12}?\s?\W?(?<!\d)(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:Z| ?[+-]\d\d:?\d\d)?)")
TORNADO = re.compile(r"\[[A-Z] (\d{6} \d\d:\d\d:\d\d)\b")

#: Characters of a line that are shown.
LINE_SIZE = 16_384

#: Bytes of a file that are read at a time, the last ones, and lines of them: an app that logs more than that is not followed.
LOG_SIZE = 8 << 20
MAX_LINES = 20_000

#: Bytes that are read at a time from the end of a file.
BLOCK = 1 << 16

#: Seconds between two looks for new lines.
INTERVAL = 0.2

#: How far each log was read, by its name: the inode of the file, and bytes.
Position = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Line:
    """A line of a process, such as ``a/0``, with its time in seconds since 1970; without one, that of the line before it."""

    time: float
    process: str
    text: str


def tail(layout: Layout, count: int) -> tuple[list[Line], Position]:
    """Return the last ``count`` lines of an app on this host, in the order of their times, and the position after them."""
    found: list[Line] = []
    position: Position = {}
    for log, process in _logs(layout).items():
        data = b""
        for file in _files(log):
            end = _end(file, count - data.count(b"\n"))
            position.setdefault(log.name, _position(file, end))
            data = end + data
            if data.count(b"\n") > count:  # the first line may be a piece of one
                break
        found += _lines(log, process, data)[-count:]
    return _in_order(found)[-count:] if count else [], position


def news(layout: Layout, since: Mapping[str, tuple[int, int]], wait: float) -> tuple[list[Line], Position]:
    """Return what was logged since a position, in the order of the times, and the position after it.

    :arg wait: seconds to wait for a first line.
    """
    deadline = time.monotonic() + wait
    while True:
        found: list[Line] = []
        position: Position = {}
        for log, process in _logs(layout).items():
            data = b""
            for file in _files(log):
                inode, start = since.get(log.name, (_inode(file), 0))
                known = inode == _inode(file)
                size = os.fstat(file.fileno()).st_size
                file.seek(max(start if known and start <= size else 0, size - LOG_SIZE))
                part = file.read(LOG_SIZE)
                position.setdefault(log.name, _position(file, part))
                data = part + data
                if known:
                    break
            found += _lines(log, process, data)
        if found or time.monotonic() >= deadline:
            return _in_order(found), position
        time.sleep(INTERVAL)


def line_time(text: str) -> float | None:
    """Return the time of a line in seconds since 1970, None if it has none; one that names no zone is this host's."""
    with contextlib.suppress(OverflowError, ValueError):
        if match := ISO.match(text):
            return datetime.fromisoformat(re.sub(" (?=[+-])", "", match[1])).timestamp()
        if match := TORNADO.match(text):
            return datetime.strptime(match[1], "%y%m%d %H:%M:%S").timestamp()
    return None


def _logs(layout: Layout) -> dict[Path, str]:
    """Return the logs of an app, also of processes that are no more, and what the processes are called."""
    found = {path: NAME.fullmatch(path.name) for path in sorted(layout.logs.glob("*.log"))}
    return {path: f"{name[1]}/{f'{name[2]}.' if name[2] else ''}{name[3]}" for path, name in found.items() if name}


def _files(log: Path) -> Iterator[BinaryIO]:
    """Yield the files of a log, open, from the newest one on; each once, also if they are renamed meanwhile."""
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
    """Return the position after the last complete line of a file that was read to its end; ``end`` is what was read."""
    return _inode(file), file.tell() - len(end) + end.rfind(b"\n") + 1


def _end(file: BinaryIO, count: int) -> bytes:
    """Return the end of a file, with ``count`` lines at least if it has so many and they are not too long."""
    start = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []
    lines = 0
    while start and lines <= count and len(blocks) < LOG_SIZE // BLOCK:
        size = min(BLOCK, start)
        start -= size
        file.seek(start)
        blocks.append(file.read(size))
        lines += blocks[-1].count(b"\n")
    data = b"".join(reversed(blocks))
    file.seek(start + len(data))
    return data


def _lines(log: Path, process: str, data: bytes) -> list[Line]:
    """Return the complete lines of what a process has logged."""
    texts = data[: data.rfind(b"\n") + 1].decode(errors="replace").split("\n")[:-1][-MAX_LINES:]
    times = [line_time(text) for text in texts]
    now = next((moment for moment in times if moment is not None), None) or _modified(log)
    found = []
    for moment, text in zip(times, texts, strict=True):
        now = max(now, moment or now)
        found.append(Line(now, process, _shown(text)))
    return found


def _shown(text: str) -> str:
    shown = printable(text[: LINE_SIZE + 1].rstrip("\r"), line=True)
    return f"{shown[:LINE_SIZE]}..." if len(text) > LINE_SIZE else shown


def _modified(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except FileNotFoundError:  # it is being rotated
        return time.time()


def _in_order(lines: list[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: line.time)
