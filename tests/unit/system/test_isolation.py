"""Request and main process of isolated units; tests of exploits on hosts cover the unit itself."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import NICE
from ansible_collections.funnel.tornado.plugins.module_utils.system import isolation, isolation_unit

NOBODY = pwd.getpwnam("nobody")


def test_the_command_of_a_unit_sets_limits_and_contains_no_secrets() -> None:
    command = isolation.unit_command("funnel-shop-1.service", "Build of shop", 60, private_tmp=True, background=False)
    assert command[:5] == ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
    properties = {word.removeprefix("--property=") for word in command if word.startswith("--property=")}
    assert {"KillMode=control-group", "NoNewPrivileges=yes", "RuntimeMaxSec=90", "PrivateTmp=yes"} <= properties
    assert {"CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID", "LockPersonality=yes"} <= properties
    over_proc = ("ProtectKernelTunables", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "InaccessiblePaths")
    assert not [word for word in properties if word.startswith(over_proc)], "sandboxes of builds must be able to mount /proc"
    assert "SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap" in properties
    assert {"MemoryMax=80%", "TasksMax=4096", "LimitNPROC=4096", "LimitFSIZE=16G", "LimitCORE=0"} <= properties
    assert command[command.index("--") + 1 :][:3] == [sys.executable, "-ISXutf8", "-c"]
    assert not [word for word in command[command.index("--") :] if "$" in word or "%" in word], "systemd would replace something"


def test_only_a_unit_in_the_background_has_a_low_priority() -> None:
    names = {f"Nice={NICE}", "CPUWeight=20", "IOWeight=20"}
    for background, expected in ((True, names), (False, set())):
        command = isolation.unit_command("funnel-shop-1.service", "x", 60, private_tmp=True, background=background)
        assert {word.removeprefix("--property=") for word in command} & names == expected


def request(*argv: str, **changed: Any) -> dict[str, Any]:
    usual = {
        "environment": {"PATH": "/usr/bin:/bin"},
        "directory": "/",
        "umask": 0o022,
        "separate_stderr": False,
        "open_files": None,
    }
    return {"argv": argv, "uid": NOBODY.pw_uid, "gid": NOBODY.pw_gid, **usual, **changed}


@pytest.fixture
def control() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    code = Path(isolation_unit.__file__).read_text()
    with ours, subprocess.Popen([sys.executable, "-IS", "-c", code], stdin=theirs.fileno(), stdout=subprocess.PIPE) as process:
        theirs.close()
        ours.settimeout(10)
        yield ours
        ours.close()
        process.wait(10)


def send_request(control: socket.socket, message: dict[str, Any], stdin: int | None = None) -> Any:
    isolation_unit.send(control, message, stdin)
    return isolation_unit.receive(control)[0]


@pytest.mark.parametrize(("program", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_the_exit_status_is_reported(control: socket.socket, program: str, status: int) -> None:
    assert send_request(control, request("sh", "-c", program))["status"] == status


def test_a_failed_start_is_reported(control: socket.socket) -> None:
    assert send_request(control, request("missing"))["error"] == "No such file or directory: missing"


def test_the_program_runs_as_the_user_without_inherited_descriptors(control: socket.socket) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        output = Path(name, "output")
        output.parent.chmod(0o777)
        script = "exec > output; id -u; id -G; env; readlink /proc/self/fd/*; true"
        assert send_request(control, request("sh", "-c", script, directory=name))["status"] == 0
        uid, groups, *others = output.read_text().splitlines()
    assert (uid, groups) == (str(NOBODY.pw_uid), str(NOBODY.pw_gid))
    assert {line for line in others if "=" in line} == {"PATH=/usr/bin:/bin", f"PWD={name}"}
    assert next(line for line in others if "=" not in line) == "/dev/null"
    assert not [line for line in others if "socket" in line]


def test_the_program_gets_none_of_the_capabilities_of_the_main_process(control: socket.socket) -> None:
    assert re.search(r"^CapEff:\s+0*[1-9a-f]", Path("/proc/self/status").read_text(), re.MULTILINE), "these tests run as root"
    found = send_request(control, request("grep", "-E", "^Cap(Prm|Eff|Amb):.*[1-9a-f]", "/proc/self/status"))
    assert found["status"] == 1, "the program has capabilities"


def test_the_directory_must_be_accessible_to_the_user(control: socket.socket) -> None:
    """A user who owns a directory above could exchange it for a link to a public directory inside a private one."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        private, link = Path(name, "private"), Path(name, "link")
        (private / "public").mkdir(parents=True)
        Path(name).chmod(0o755)
        private.chmod(0o700)
        link.symlink_to("private/public")
        assert send_request(control, request("pwd", directory=str(link)))["error"] == f"Permission denied: {link}"


def test_a_passed_descriptor_becomes_standard_input(control: socket.socket) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"text")
        file.seek(0)
        assert send_request(control, request("sh", "-c", '[ "$(cat)" = text ]'), file.fileno())["status"] == 0


def test_the_unit_exits_when_its_caller_has_exited() -> None:
    ours, theirs = socket.socketpair()
    code = Path(isolation_unit.__file__).read_text()
    with subprocess.Popen([sys.executable, "-IS", "-c", code], stdin=theirs.fileno(), process_group=0) as process:
        theirs.close()
        isolation_unit.send(ours, request("sleep", "600"))
        time.sleep(0.5)
        assert process.poll() is None
        ours.close()
        assert process.wait(10) == 1
        os.killpg(process.pid, 9)  # systemd, which is missing here, would do this
