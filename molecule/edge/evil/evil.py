"""An app that attacks who asks it, as soon as the file ``attack`` is in its directory ``shared``: ``evil.py SOCKET NUMBER``.

Each process does it in another way, at its health path and where the exporter asks for metrics. Until then it is healthy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SHARED = Path(os.environ["HOME"])
OK = b"HTTP/1.1 200 OK\r\n"

#: What a terminal, or whoever reads a log, would take for something else: a title, an erased screen, a line of another host,
#: a text from the right to the left.
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b2Jall good\rweb1 a/0: all bad \u202egnp.exe \u2028web2 of request evil-request"

TYPES = b"""\
# TYPE tornado_up foo
# TYPE process_max_fds histogram
# TYPE evil foo
evil 9e+999
process_open_fds 9e+999
process_max_fds 8
tornado_up{app="sample"} 0
tornado_requests_total{app="sample",status="5xx"} 1000
tornado_requests_total{status="5xx"} 3
"""

Talk = Callable[[socket.socket], None]


def endlessly(part: bytes, pause: float = 0.0) -> Talk:
    """Return what says something again and again."""

    def talk(connection: socket.socket) -> None:
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return talk


def once(words: bytes, then: Talk = socket.socket.close) -> Talk:
    """Return what says something, and then something else."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(words)
        then(connection)

    return talk


def nothing(_connection: socket.socket) -> None:
    """Let who asks wait."""
    time.sleep(60)


#: By the number of the process.
HEALTH: list[Talk] = [
    once(OK + b"\r\n" + b"[" * 60_000),
    endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"),
    once(OK, endlessly(b"X-Flood: 1\r\n", 0.01)),
    once(OK + b"\r\n", endlessly(b"x", 0.1)),
    nothing,
    endlessly(b"H" * 65_536),
]
METRICS: list[Talk] = [
    once(OK + b"\r\n" + TYPES),
    endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"),
    once(OK + b"\r\n", endlessly(b"process_max_fds 1\n", 0.01)),
    once(OK + b"\r\n", endlessly(b"9" * 65_536)),
    nothing,
    once(OK + b"\r\n" + b"process_max_fds 1\n" * 60_000),
]


def serve(path: Path, attack: Talk) -> None:
    """Answer on a socket."""
    listener = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    listener.listen(100)

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(10_000)
            (attack if (SHARED / "attack").exists() else once(OK + b"\r\nfine"))(connection)

    def accept() -> None:
        while True:
            threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept).start()


def say() -> None:
    """Say it to whoever reads it."""
    sys.stdout.write(f"{ESCAPES}\n")
    sys.stdout.flush()


def main(own: Path, number: int) -> None:
    """Serve; beside its own sockets the last process has sixty for metrics, and names without number."""
    say()
    run = own.parent
    serve(own, HEALTH[number])
    serve(run / f"{number}.metrics", METRICS[number])
    if number == len(METRICS) - 1:
        for other in range(100, 160):
            serve(run / f"{other}.metrics", METRICS[other % len(METRICS)])
        (run / "200.metrics").symlink_to("/srv/sample/live/run/0.metrics")
        for name in range(5_000):
            (run / f"{name}.name").touch()
    if number == 0:
        starts = run / "0.starts"
        starts.unlink()
        os.mkfifo(starts)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        say()
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
