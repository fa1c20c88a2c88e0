"""Run a program of an app, or of its build, as its user: apart from root, from terminals and from every other process.

The program gets a transient unit of systemd, so it has a session of its own without a terminal, and no descriptor of its caller.
The unit bounds its memory, processes and file sizes. When the program ends, or its caller does, systemd kills all that it left,
whichever process group or session that is in. The command, the environment and the result go through a socket between root's
own processes: other users see none of it in lists of processes or units, and the program cannot forge its result.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import pwd
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, CommandResult, last_lines
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation_unit

#: Bytes of each output that are kept: its last ones.
MAX_OUTPUT = 4 << 20

#: What a unit may use: memory and processes as systemd.resource-control(5) has them, and bytes of a single file.
MEMORY, TASKS, FILE_SIZE = "80%", "4096", "16G"

#: What its main process needs as root: to become the user, in a directory that may be closed to root without capabilities.
CAPABILITIES = "CAP_SETUID CAP_SETGID CAP_DAC_READ_SEARCH"

#: Seconds beyond its time in which a unit has to be gone.
MARGIN = 30

_CHUNK = 1 << 16


def unit_command(name: str, description: str, timeout: float, *, private_tmp: bool) -> list[str]:
    """Return the command that starts a unit and waits for its end; nothing in it is secret."""
    properties = {
        "KillMode": "control-group",
        "KillSignal": "SIGKILL",
        "RuntimeMaxSec": f"{timeout + MARGIN:.0f}",
        "TimeoutStopSec": "10",
        "NoNewPrivileges": "yes",
        "PrivateTmp": "yes" if private_tmp else "no",
        "MemoryMax": MEMORY,
        "TasksMax": TASKS,
        "LimitNPROC": TASKS,  # of the user, also where the host's kernel counts no tasks of units
        "LimitFSIZE": FILE_SIZE,
        "LimitCORE": "0",
        "OOMPolicy": "continue",
        "CapabilityBoundingSet": CAPABILITIES,
    }
    return [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={name}", f"--description={description}"),
        *(f"--property={key}={value}" for key, value in properties.items()),
        *("--", sys.executable, "-IS", "-c", inspect.getsource(isolation_unit)),
    ]


def run(
    user: str,
    argv: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    timeout: float,
    description: str,
    stdin: int | None = None,
    separate_stderr: bool = False,
    private_tmp: bool = True,
    open_files: int | None = None,
) -> CommandResult:
    """Run ``argv`` as ``user``, in no group but its own, with ``environment`` and nothing else of root's.

    :arg description: what the unit is, for the host's journal; it is public.
    :arg stdin: a file descriptor that becomes its standard input; otherwise it has none.
    :arg separate_stderr: keep what it says on stderr apart.
    :arg private_tmp: give it temporary directories of its own, which are removed at its end.
    :arg open_files: files that it may have open at first, as far as the host allows.
    :raises CommandError: when it cannot be started, outlives ``timeout`` seconds, or is ended by a bound.
    """
    account = pwd.getpwnam(user)
    request = {
        "argv": list(argv),
        "environment": dict(environment),
        "directory": str(directory),
        "uid": account.pw_uid,
        "gid": account.pw_gid,
        "umask": 0o022,
        "separate_stderr": separate_stderr,
        "open_files": open_files,
    }
    name = f"funnel-{user}-{os.urandom(6).hex()}.service"
    command = unit_command(name, description, timeout, private_tmp=private_tmp)
    with _Unit(command, name, argv[0]) as unit:
        return unit.finish(request, stdin, timeout, separate_stderr=separate_stderr)


class _Unit(contextlib.ExitStack):
    """A unit while it runs; leaving the block ends it."""

    def __init__(self, command: Sequence[str], name: str, program: str) -> None:
        super().__init__()
        self.name, self.program = name, program
        self.control, theirs = socket.socketpair()
        self.enter_context(self.control)
        with theirs:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                    start_new_session=True,
                )
            except OSError as error:
                self.close()
                raise CommandError(f"{command[0]}, which programs are isolated with, cannot be started: {error}") from error
        self.callback(self._end)

    def _end(self) -> None:
        """End the unit: its main process ends with the socket."""
        self.control.close()
        try:
            self.process.wait(MARGIN)
        except subprocess.TimeoutExpired:
            kill = ["systemctl", "kill", "--signal=SIGKILL", self.name]
            subprocess.run(kill, check=False, capture_output=True, timeout=MARGIN)
            self.process.kill()
            self.process.wait()
        for stream in self._streams():
            stream.close()

    def _streams(self) -> list[IO[bytes]]:
        return [stream for stream in (self.process.stdout, self.process.stderr) if stream]

    def finish(self, request: dict[str, object], stdin: int | None, timeout: float, *, separate_stderr: bool) -> CommandResult:
        """Send the request, and return what became of it."""
        deadline = time.monotonic() + timeout
        self.control.settimeout(MARGIN)
        with contextlib.suppress(OSError):  # the unit could not be started, as its output says
            isolation_unit.send(self.control, request, stdin)
        output, errors, in_time = self._read(deadline)
        words = last_lines(f"{output}\n{errors}")
        if not in_time:
            raise CommandError(f"{self.program} did not end within {timeout:g} s:\n{words}")
        result = None
        with contextlib.suppress(OSError, ValueError):
            result, _descriptor = isolation_unit.receive(self.control)
        if result is None:
            raise CommandError(f"{self.program}: its unit {self.name} was ended:\n{words}")
        if "error" in result:
            raise CommandError(f"{self.program} cannot be started: {result['error']}")
        if result["status"] != 0 and result["out_of_memory"]:
            raise CommandError(f"{self.program} needed more memory than it may use on this host, and was ended:\n{words}")
        return CommandResult(result["status"], output, errors if separate_stderr else "")

    def _read(self, deadline: float) -> tuple[str, str, bool]:
        """Return the ends of both outputs, and whether both were closed in time: all that can write to them has ended then."""
        kept: dict[int, bytearray] = {}
        in_time = True
        with selectors.DefaultSelector() as selector:
            for stream in self._streams():
                selector.register(stream, selectors.EVENT_READ)
                kept[stream.fileno()] = bytearray()
            while selector.get_map() and in_time:
                for key, _events in selector.select(max(deadline - time.monotonic(), 0)):
                    chunk = os.read(key.fd, _CHUNK)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    kept[key.fd] += chunk
                    if len(kept[key.fd]) > 2 * MAX_OUTPUT:
                        del kept[key.fd][:-MAX_OUTPUT]
                in_time = time.monotonic() < deadline or not selector.get_map()
        output, errors = (_text(data) for data in kept.values())
        return output, errors, in_time


def _text(data: bytearray) -> str:
    cut = len(data) - MAX_OUTPUT
    begin = f"[{cut} bytes and more before this]\n" if cut > 0 else ""
    return begin + bytes(data[-MAX_OUTPUT:]).decode(errors="replace")
