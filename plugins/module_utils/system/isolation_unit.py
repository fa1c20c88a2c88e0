"""Main process of a unit of :mod:`isolation`, which runs a program as another user and reports its result.

The unit gets only the text of this module, so it must not import others. It runs as root, so that the program can neither kill it
nor forge its messages. Its standard input is a socket to the caller; when that is closed, it exits, and systemd kills the
remaining processes of the unit.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
from pathlib import Path
from typing import Any

#: Bytes of the length prefix of messages.
LENGTH = 4

#: Out-of-memory score of the program, such as a build, which the kernel must kill before the apps.
OOM_SCORE = 700


def send(control: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send a message and, optionally, a file descriptor."""
    data = json.dumps(message).encode()
    header = len(data).to_bytes(LENGTH, "big")
    socket.send_fds(control, [header], [] if descriptor is None else [descriptor])
    control.sendall(data)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """Receive a message and its file descriptor; no message if the other end was closed."""
    header, descriptors, _flags, _address = socket.recv_fds(control, LENGTH, 1)
    with control.makefile("rb") as stream:
        header += stream.read(LENGTH - len(header))
        data = stream.read(int.from_bytes(header, "big"))
    message = json.loads(data) if header and data else None
    return message, descriptors[0] if descriptors else None


def main() -> None:
    """Run the program of the request on standard input."""
    control = socket.socket(fileno=os.dup(0))
    request, stdin = receive(control)
    if request is not None:
        send(control, run(control, request, stdin))


def run(control: socket.socket, request: dict[str, Any], stdin: int | None) -> dict[str, Any]:
    """Run the program; return its exit status, or the error of its start."""
    if request["open_files"] is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(request["open_files"], hard), hard))
    before = _oom_score()
    _set_oom_score(OOM_SCORE)
    try:
        _enter(request["directory"], request["uid"], request["gid"])
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stderr=None if request["separate_stderr"] else 1,
            env=request["environment"],
            user=request["uid"],
            group=request["gid"],
            extra_groups=[],
            umask=request["umask"],
        )
    except OSError as error:
        return {"error": f"{error.strerror}: {error.filename}"}
    finally:
        _set_oom_score(before)
    if stdin is not None:
        os.close(stdin)  # so that the writer of a pipe notices when the program exits
    poller = select.poll()
    pidfd = os.pidfd_open(process.pid)
    poller.register(pidfd, select.POLLIN)
    poller.register(control, select.POLLIN)
    if pidfd not in [descriptor for descriptor, _events in poller.poll()]:
        os._exit(1)  # the caller has exited
    return {"status": process.wait(), "out_of_memory": _killed_for_memory()}


def _enter(directory: str, uid: int, gid: int) -> None:
    """Change to a directory with the permissions of a user, who may have exchanged one above it for a link."""
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        os.chdir(directory)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text(encoding="utf-8"))


def _set_oom_score(score: int) -> None:
    with contextlib.suppress(OSError):  # some containers do not allow lowering it
        Path("/proc/self/oom_score_adj").write_text(str(score), encoding="utf-8")


def _killed_for_memory() -> bool:
    """Return whether the out-of-memory killer has killed a process of this unit."""
    with contextlib.suppress(OSError, IndexError):
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::")[2]
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text(encoding="utf-8").split()
        return int(events[events.index("oom_kill") + 1]) > 0
    return False


if __name__ == "__main__":
    main()
