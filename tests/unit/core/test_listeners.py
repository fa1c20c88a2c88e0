"""The programs that listen on ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.listeners import first_unprivileged_port, tcp_listeners


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listener_is_found_with_its_process(family: socket.AddressFamily) -> None:
    with socket.socket(family) as server, socket.socket(family) as silent:
        for each in (server, silent):
            each.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        server.listen()
        found = {listener.port: listener for listener in tcp_listeners()}
        listener = found[server.getsockname()[1]]
        assert listener.address == server.getsockname()[0]
        assert (listener.pid, listener.user) == (os.getpid(), os.geteuid())
        assert listener.process in str(listener)
        assert silent.getsockname()[1] not in found


def test_the_unit_of_a_listener_is_the_innermost_one(tmp_path: Path) -> None:
    row = "0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711"
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text(f"heading\n{row}\n")
    process = tmp_path / "812"
    (process / "fd").mkdir(parents=True)
    (process / "fd/4").symlink_to("socket:[4711]")
    (process / "cgroup").write_text("0::/system.slice/apache2.service\n")
    (process / "status").write_text("Name:\tapache2\nUid:\t33\t0\t33\t33\n")
    (process / "comm").write_text("apache2\n")
    assert [str(listener) for listener in tcp_listeners(tmp_path)] == ["apache2 (pid 812, apache2.service)"]


def test_the_name_of_a_listener_does_not_control_the_terminal_of_the_operator() -> None:
    program = (
        "import ctypes, socket; ctypes.CDLL(None).prctl(15, b'\\x1b[2J\\xff\\nok'); s = socket.create_server(('127.0.0.1', 0))"
    )
    program += "; print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        [found] = [str(listener) for listener in tcp_listeners() if listener.port == port]
        process.communicate("\n")
    assert found.startswith(f"\\x1b[2J\ufffd\\nok (pid {process.pid}")


def test_the_first_unprivileged_port_is_a_setting_of_the_kernel(tmp_path: Path) -> None:
    assert first_unprivileged_port(tmp_path) == 1024
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ip_unprivileged_port_start").write_text("80\n")
    assert first_unprivileged_port(tmp_path) == 80
