"""Runs ansible-playbook in forks of a server process that has imported Ansible, which saves the import in each run.

As a program it is the server: it receives requests on the socket at its standard input until the other end closes.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

#: Prefixes of environment variables that Python or Ansible reads at import.
IMPORT_VARIABLES = ("ANSIBLE_", "HOME", "LANG", "LC_", "NO_COLOR", "PYTHON")

#: Maximum size of a request in bytes, most of which is the environment.
MAX_REQUEST = 1 << 17

#: The directory of packed modules in Ansible's temporary directory.
PACKED_MODULES = "ansiballz_cache"

#: The format of a process ID and an exit status.
NUMBER = struct.Struct("i")


class Run:
    """A run of ansible-playbook in its own session, with the part of the interface of `subprocess.Popen` that tests need.

    Standard error is part of the output.
    """

    def __init__(self, args: Sequence[str], output: int, status: socket.socket) -> None:
        """Wait until the run has started; ``output`` is a pipe, ``status`` sends the process ID and then the exit status."""
        self.args = args
        self.stdout = os.fdopen(output, encoding="utf-8")
        self.returncode: int | None = None
        self._status = status
        self._output = ""
        self._reader: threading.Thread | None = None
        self.pid = self._number()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the whole output when the run has ended. Raises `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._output, None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when the run has ended. Raises `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._number()
        return self.returncode

    def kill(self) -> None:
        """Kill the run and the processes of its tasks, each of which has its own session."""
        _signal(self.pid, signal.SIGSTOP)  # prevents new processes
        for pid in (*_descendants(self.pid), self.pid):
            _signal(pid, signal.SIGKILL)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the end of the run, like `subprocess.Popen`."""
        self.wait()
        if self._reader is None:
            self.stdout.close()
        self._status.close()

    def _number(self) -> int:
        [number] = NUMBER.unpack(self._status.recv(NUMBER.size))
        return int(number)

    def _read(self) -> None:
        with self.stdout:
            self._output = self.stdout.read()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    found: list[int] = []
    with suppress(OSError):  # the process has ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found + [descendant for child in found for descendant in _descendants(child)]


class Server:
    """A process that has imported Ansible."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        """Start the process with the Ansible configuration of ``directory`` and ``environment``."""
        self.configuration = _configuration(directory, environment)
        self.socket, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # -P keeps this directory out of the module search path.
        command = [sys.executable, "-P", __file__]
        with requests:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                stdin=requests.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start(self, args: Sequence[str], directory: Path, environment: Mapping[str, str], *, typed: bool = False) -> Run:
        """Start ansible-playbook.

        Run the command itself, without the server's imports, if ``typed``, or if its configuration differs from the server's.
        """
        typed = typed or _configuration(directory, environment) != self.configuration
        request = {"args": args, "directory": str(directory), "environment": dict(environment), "typed": typed}
        output, their_output = os.pipe()
        status, their_status = socket.socketpair()
        with their_status:
            socket.send_fds(self.socket, [json.dumps(request).encode()], [their_output, their_status.fileno()])
        os.close(their_output)
        return Run(args, output, status)


def _configuration(directory: Path, environment: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    return directory, {name: value for name, value in environment.items() if name.startswith(IMPORT_VARIABLES)}


def serve(requests: socket.socket) -> None:
    """Start a run for each request until the client closes the socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, (*descriptors,), _, _ = socket.recv_fds(requests, MAX_REQUEST, 2)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            handle_request(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def handle_request(request: dict[str, Any], output: int, status: int) -> None:
    """Run a request in its own process and send its exit status."""
    run = os.fork()
    if run == 0:
        os.setsid()
        os.write(status, NUMBER.pack(os.getpid()))
        os.close(status)
        execute(output, **request)
    os.close(output)
    _, ended = os.waitpid(run, 0)
    os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def execute(output: int, args: list[str], directory: str, environment: dict[str, str], *, typed: bool) -> None:
    """Replace this process by the command ``args``. Does not return."""
    with Path(os.devnull).open() as null:
        os.dup2(null.fileno(), sys.stdin.fileno())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if typed:
        os.execvp(args[0], args)
    sys.argv = args
    Path("/proc/self/comm").write_text(Path(args[0]).name)  # named like the command in ps
    # All forks share the server's temporary directory, and the first to exit would remove it.
    packed = Path(constants.DEFAULT_LOCAL_TMP, PACKED_MODULES)
    temporary = tempfile.mkdtemp(prefix="ansible-local-", dir=packed.parents[1])
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    atexit.register(share_modules, Path(temporary, PACKED_MODULES), packed)
    share_modules(packed, Path(temporary, PACKED_MODULES))
    constants.set_constant("DEFAULT_LOCAL_TMP", temporary)
    playbook.main(args)


def share_modules(source: Path, target: Path) -> None:
    """Link the modules that Ansible has packed in ``source`` to ``target``: packing takes half a second of CPU time each."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*"):
        with suppress(OSError):  # another run has shared it, or has just replaced its temporary name
            os.link(file, target / file.name)


if __name__ == "__main__":
    playbook, constants = import_module("ansible.cli.playbook"), import_module("ansible.constants")
    gc.freeze()  # keeps the collector of a fork from copying shared memory
    serve(socket.socket(fileno=os.dup(0)))
