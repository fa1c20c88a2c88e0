"""Isolated execution of programs of apps and builds, as an unprivileged user in a transient systemd unit.

The program gets a session of its own without a terminal, and no file descriptor of its caller. The unit limits its memory,
processes and file sizes. When the program or its caller exits, systemd kills all remaining processes of the unit. The command,
the environment and the result are passed through a socket between processes of root: other users cannot see them in process lists
or units, and the program cannot forge its result.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, CommandResult, last_lines
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import NICE
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation_unit

#: Bytes that are kept from the end of each output.
MAX_OUTPUT = 4 << 20

#: Limits of a unit, systemd.resource-control(5): memory, processes, and size of a file.
MEMORY, TASKS, FILE_SIZE = "80%", "4096", "16G"

#: Capabilities of its main process, which changes to the user. Ansible's Python may be in a private home of another user.
CAPABILITIES = "CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID"

#: What no program of an app needs. It may use namespaces, as the sandbox of a browser does, and be traced by a debugger. Nothing
#: is mounted below /proc, as the kernel would refuse a new /proc in user namespaces, which sandboxes of builds require.
HARDENING = {
    "ProtectKernelModules": "yes",
    "LockPersonality": "yes",
    "RestrictRealtime": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap",
    "SystemCallErrorNumber": "EPERM",
}

#: Priority in the background: a fifth of what a busy service, such as that of the apps, gets of CPUs and disks, and all that is
#: idle. Kernels without these controllers use the nice value.
BACKGROUND = {"CPUWeight": "20", "IOWeight": "20", "Nice": str(NICE)}

#: Seconds after the timeout within which a unit must exit.
MARGIN = 30

_CHUNK = 1 << 16


def unit_command(name: str, description: str, timeout: float, *, private_tmp: bool, background: bool) -> list[str]:
    """Return the command that starts a unit and waits for its exit; it contains no secrets."""
    properties = {
        "KillMode": "control-group",
        "KillSignal": "SIGKILL",
        "RuntimeMaxSec": f"{timeout + MARGIN:.0f}",
        "TimeoutStopSec": "10",
        "NoNewPrivileges": "yes",
        "PrivateTmp": "yes" if private_tmp else "no",
        "MemoryMax": MEMORY,
        "TasksMax": TASKS,
        "LimitNPROC": TASKS,  # per user, for kernels without a task limit for units
        "LimitFSIZE": FILE_SIZE,
        "LimitCORE": "0",
        "OOMPolicy": "continue",
        "CapabilityBoundingSet": CAPABILITIES,
        **HARDENING,
        **(BACKGROUND if background else {}),
    }
    return [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={name}", f"--description={description}"),
        *(f"--property={key}={value}" for key, value in properties.items()),
        *("--", sys.executable, "-ISXutf8", "-c", inspect.getsource(isolation_unit)),
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
    background: bool = False,
    open_files: int | None = None,
) -> CommandResult:
    """Run ``argv`` as ``user``, in its own group only, with ``environment`` and nothing else inherited from root.

    :arg description: description of the unit in the journal; it is public.
    :arg stdin: file descriptor of its standard input; /dev/null if unset.
    :arg separate_stderr: capture stderr separately.
    :arg private_tmp: use private temporary directories, which are removed afterwards.
    :arg background: let services, such as those of apps, use CPUs and disks first.
    :arg open_files: soft limit of open files, up to the hard limit.
    :raises CommandError: if it cannot be started, exceeds ``timeout`` seconds, or is killed because of a limit.
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
    command = unit_command(name, description, timeout, private_tmp=private_tmp, background=background)
    with _Unit(command, name, argv[0]) as unit:
        return unit.finish(request, stdin, timeout, separate_stderr=separate_stderr)


class _Unit(contextlib.ExitStack):
    """A running unit; leaving the context stops it."""

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
                raise CommandError(f"{command[0]}, which isolates programs, cannot be started: {error}") from error
        self.callback(self._stop)

    def _stop(self) -> None:
        """Stop the unit: its main process exits when the socket is closed."""
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
        """Send the request and return the result."""
        deadline = Deadline(timeout)
        self.control.settimeout(MARGIN)
        with contextlib.suppress(OSError):  # the output reports why the unit could not be started
            isolation_unit.send(self.control, request, stdin)
        output, errors, in_time = self._read(deadline)
        lines = last_lines(f"{output}\n{errors}")
        if not in_time:
            raise CommandError(f"{self.program} did not end within {timeout:g} s:\n{lines}")
        result = None
        with contextlib.suppress(OSError, ValueError):
            result, _descriptor = isolation_unit.receive(self.control)
        if result is None:
            raise CommandError(f"{self.program}: its unit {self.name} was killed:\n{lines}")
        if "error" in result:
            raise CommandError(f"{self.program} cannot be started: {result['error']}")
        if result["status"] != 0 and result["out_of_memory"]:
            raise CommandError(f"{self.program} was killed because it exceeded its memory limit on this host:\n{lines}")
        return CommandResult(result["status"], output, errors if separate_stderr else "")

    def _read(self, deadline: Deadline) -> tuple[str, str, bool]:
        """Return the ends of both outputs, and whether both were closed in time: all their writers have exited then."""
        kept: dict[int, bytearray] = {}
        in_time = True
        with selectors.DefaultSelector() as selector:
            for stream in self._streams():
                selector.register(stream, selectors.EVENT_READ)
                kept[stream.fileno()] = bytearray()
            while selector.get_map() and in_time:
                for key, _events in selector.select(deadline.remaining):
                    chunk = os.read(key.fd, _CHUNK)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    kept[key.fd] += chunk
                    if len(kept[key.fd]) > 2 * MAX_OUTPUT:
                        del kept[key.fd][:-MAX_OUTPUT]
                in_time = not deadline.expired or not selector.get_map()
        output, errors = (_text(data) for data in kept.values())
        return output, errors, in_time


def _text(data: bytearray) -> str:
    cut = len(data) - MAX_OUTPUT
    omitted = f"[at least {cut} bytes omitted]\n" if cut > 0 else ""
    return omitted + bytes(data[-MAX_OUTPUT:]).decode(errors="replace")
