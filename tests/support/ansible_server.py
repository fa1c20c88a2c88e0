"""Runs ansible-playbook in forks of a process that has imported Ansible, which saves each run the import.

As a program it is that process: it takes requests on the socket that is its standard input, until the other end is closed.
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

#: The beginnings of the names of variables that Python or Ansible reads when it is imported.
READ_AT_IMPORT = ("ANSIBLE_", "HOME", "LANG", "LC_", "NO_COLOR", "PYTHON")

#: The longest request, in bytes; most of it is the environment.
LIMIT = 1 << 17

#: How a process id and an exit status are sent.
NUMBER = struct.Struct("i")


class Run:
    """A run of ansible-playbook in a session of its own, with the methods and attributes of `subprocess.Popen` that tests need.

    What it writes to standard error is part of its output.
    """

    def __init__(self, args: Sequence[str], output: int, status: socket.socket) -> None:
        """Wait until the run has begun; ``output`` is a pipe, ``status`` tells the process id and then the exit status."""
        self.args = args
        self.stdout = os.fdopen(output, encoding="utf-8")
        self.returncode: int | None = None
        self._status = status
        self._output = ""
        self._reader: threading.Thread | None = None
        self.pid = self._number()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return all that is printed, when the run has ended. Raises `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._output, None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, when there is one. Raises `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._number()
        return self.returncode

    def kill(self) -> None:
        """End the run at once, with the processes of its tasks, each of which is the first of a session of its own."""
        _signal(self.pid, signal.SIGSTOP)  # it starts no more of them
        for pid in (*_descendants(self.pid), self.pid):
            _signal(pid, signal.SIGKILL)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the end of the run, as `subprocess.Popen` does."""
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
    """Return the processes that a process has started, those that these have started, and so on."""
    found: list[int] = []
    with suppress(OSError):  # it has just ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found + [further for child in found for further in _descendants(child)]


class Server:
    """The process that has imported Ansible."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        """Start the process; Ansible's configuration is that of ``directory`` and ``environment``."""
        self.configuration = _configuration(directory, environment)
        self.socket, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # With -P the modules of this directory are not found before others.
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

        It is the command itself, as one that is ``typed``, if that is asked for, and if the configuration that Ansible
        reads when it is imported differs from that of the server.
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
    return directory, {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def serve(requests: socket.socket) -> None:
    """Start a run for each request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, (*descriptors,), _, _ = socket.recv_fds(requests, LIMIT, 2)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def attend(request: dict[str, Any], output: int, status: int) -> None:
    """Run what is requested in a process of its own, and tell how it ended."""
    run = os.fork()
    if run == 0:
        os.setsid()
        os.write(status, NUMBER.pack(os.getpid()))
        os.close(status)
        perform(output, **request)
    os.close(output)
    _, ended = os.waitpid(run, 0)
    os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def perform(output: int, args: list[str], directory: str, environment: dict[str, str], *, typed: bool) -> None:
    """Be the command ``args``. Does not return."""
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if typed:
        os.execvp(args[0], args)
    sys.argv = args
    # That of the server is shared by all its forks, and removed by the first of them that ends.
    temporary = tempfile.mkdtemp(prefix="ansible-local-", dir=Path(constants.DEFAULT_LOCAL_TMP).parent)
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    constants.set_constant("DEFAULT_LOCAL_TMP", temporary)
    playbook.main(args)


if __name__ == "__main__":
    playbook, constants = import_module("ansible.cli.playbook"), import_module("ansible.constants")
    gc.freeze()  # what all runs have in common is not copied by the collector of each
    serve(socket.socket(fileno=os.dup(0)))
