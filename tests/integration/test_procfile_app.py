"""The tutorial app, started with the command of its Procfile, as on a platform."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.building import procfile
from tests.support.remote import eventually
from tests.support.servers import free_port

APP = Path(__file__).parents[2] / "files/procfile_app"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the app with ``$PORT``, in a process group of its own, as the launcher does."""
    command = procfile.parse_procfile((APP / "Procfile").read_text())["web"]
    environment = os.environ | {"PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(["sh", "-c", command], cwd=APP, env=environment, start_new_session=True) as started:
        yield started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def get(port: int) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    return response.status, response.read()


def members(group: int) -> list[int]:
    """Return the processes of a process group."""
    found = subprocess.run(["pgrep", "--pgroup", str(group)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def test_app_listens_on_port_with_a_process_per_cpu(process: subprocess.Popen[bytes], port: int) -> None:
    assert eventually(lambda: get(port)) == (200, b"Hello, world!")
    eventually(lambda: len(members(process.pid)) > len(os.sched_getaffinity(0)))


def test_sigterm_ends_all_processes(process: subprocess.Popen[bytes], port: int) -> None:
    assert eventually(lambda: get(port))[0] == 200
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=10)
    eventually(lambda: members(process.pid) == [])
