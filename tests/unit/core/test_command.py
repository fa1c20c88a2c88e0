"""Programs of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core import command as module

#: Makes a terminal its controlling terminal, like a module without pipelining has one; then runs a program that writes to it.
CODE = """
import fcntl, termios
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import run
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with open("/dev/tty", "w") as terminal:
    terminal.write("own;")
print(run(["sh", "-c", "echo forged >/dev/tty"], check=False).status != 0)
"""


def test_programs_cannot_write_to_the_terminal() -> None:
    controller, terminal = os.openpty()
    try:
        command = [sys.executable, "-c", CODE]
        paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(module.__file__).parents[6]), *sys.path])}
        ended = subprocess.run(command, stdin=terminal, capture_output=True, env=paths, start_new_session=True, check=True)
        assert ended.stdout == b"True\n"
        os.set_blocking(controller, False)
        assert os.read(controller, 100) == b"own;"
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize("path", ["/opt/first:/usr/bin", "/opt/first", None])
def test_system_programs_are_found_whatever_the_path_of_the_connection(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    monkeypatch.setenv("PATH", path) if path else monkeypatch.delenv("PATH")
    directories = module.run(["sh", "-c", "echo $PATH"]).output.strip().split(":")
    assert directories[0] == ("/opt/first" if path else "/usr/local/sbin")
    assert {"/usr/sbin", "/sbin", "/usr/bin"} <= {*directories}
    assert len(directories) == len({*directories})
