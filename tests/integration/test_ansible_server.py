from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ansible_server import Run, Server
from tests.support.remote import PLAIN_ENV, ROOT, eventually

ENVIRONMENT = os.environ | PLAIN_ENV


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(ROOT, ENVIRONMENT)
    yield server
    server.socket.close()
    assert server.process.wait(timeout=10) == 0


def play(directory: Path, *tasks: dict[str, Any]) -> list[str]:
    """Return the command line that runs tasks on this machine."""
    playbook = directory / "play.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": list(tasks)}]))
    return ["ansible-playbook", str(playbook), "-i", "localhost,", "--connection", "local"]


def result_of(run: Run) -> tuple[int, str]:
    """Wait for a run; return its exit status and its output without process IDs."""
    with run:
        output, _ = run.communicate(timeout=60)
    return run.wait(), re.sub(r"\d{3,}", "N", output)


def test_run_behaves_like_the_typed_command(server: Server, tmp_path: Path) -> None:
    words = "{{ lookup('ansible.builtin.env', 'WORDS') }} {{ words }}"
    tasks = [{"ansible.builtin.ping": {"data": words}}, {"ansible.builtin.fail": {"msg": words}}]
    command = [*play(tmp_path, *tasks), "-e", "words='and those'"]
    runs = [result_of(server.start(command, ROOT, ENVIRONMENT | {"WORDS": "these"}, typed=typed)) for typed in (True, False)]
    assert runs[0] == runs[1]
    status, output = runs[0]
    assert status == 2
    assert "these and those" in output


def test_runs_share_no_state(server: Server, tmp_path: Path) -> None:
    show = {"ansible.builtin.debug": {"msg": "{{ known | default('nothing') }}"}}
    command = play(tmp_path, show, {"ansible.builtin.set_fact": {"known": "something"}}, show)
    for _ in range(2):
        status, output = result_of(server.start(command, ROOT, ENVIRONMENT))
        assert status == 0
        assert re.findall("msg: (.*)", output) == ["nothing", "something"]


def test_different_configuration_uses_the_typed_command(server: Server, tmp_path: Path) -> None:
    command = play(tmp_path, {"ansible.builtin.debug": {"msg": "{{ lookup('ansible.builtin.config', 'DEFAULT_FORKS') }}"}})
    found = [result_of(server.start(command, ROOT, ENVIRONMENT | more)) for more in ({}, {"ANSIBLE_FORKS": "7"})]
    assert [re.findall(r"msg: '?(\d+)", output) for _, output in found] == [["20"], ["7"]]


def test_killed_run_leaves_no_process(server: Server, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = play(tmp_path, {"ansible.builtin.command": f"sh -c 'echo $$ > {mark}; sleep 60'"})
    with server.start(command, ROOT, ENVIRONMENT) as run:
        sleeping = int(eventually(lambda: mark.exists() and mark.read_text()))
        with pytest.raises(subprocess.TimeoutExpired):
            run.communicate(timeout=0.1)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(timeout=0.1)
        run.kill()
        run.communicate(timeout=10)
    assert run.returncode == -9
    eventually(lambda: not Path(f"/proc/{sleeping}").exists())
