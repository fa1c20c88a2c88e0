"""Comparison of hosts with the later tasks of a play, by a playbook whose hosts cannot be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: The directories of collections in a clone, and around an unpacked collection.
COLLECTIONS = (ROOT / ".collections", Path(*ROOT.parts[:-3]))

PLAYBOOK = """
- hosts: all
  gather_facts: false
  vars:
    name: from the play
    __funnel_packages: {codename: bookworm, versions: "{{ dict(installed | product(['1.0'])) }}"}
  tasks:
    - name: An earlier task
      ansible.builtin.set_fact: {earlier: true}
    - name: Compare
      funnel.tornado.group_outdated: {key: outdated}
      changed_when: false
      register: compared
    - meta: end_play
    - name: Install git
      funnel.tornado.packages: {name: [git]}
      register: git
    - name: Install what git requires
      funnel.tornado.packages: {name: "{{ git.versions | map('regex_replace', '^git$', 'libc6') }}"}
    - name: Install the packages
      funnel.tornado.packages: {name: ["{{ item }}"]}
      loop: "{{ further }}"
      register: all_packages
    - name: Use the results of a loop
      funnel.tornado.packages: {name: "{{ all_packages.results | map(attribute='item') }}"}
      when: all_packages.results | length > 1
    - name: In a block
      when: command is defined
      vars: {program: "{{ command }}"}
      block:
        - name: Run a command
          ansible.builtin.command: "{{ program }}"
    - name: Use a variable that may be undefined
      funnel.tornado.packages: {name: "{{ [missing] }}"}
      when: faulty is defined

- hosts: localhost
  gather_facts: false
  tasks:
    - name: Show the results
      ansible.builtin.debug:
        msg: "{{ tasks | to_json }} {{ groups.outdated | to_json }}"
      vars: {tasks: "{{ dict(groups.all | zip(groups.all | map('extract', hostvars, ['compared', 'task']))) }}"}
"""

#: Variables of the hosts, and the task that needs each host.
HOSTS: dict[str, tuple[dict[str, object], str]] = {
    "uptodate": ({}, ""),
    "looped": ({"further": ["tar", "vim"], "installed": ["git", "libc6", "tar", "vim"]}, ""),
    "bare": ({"installed": []}, "Install git"),
    "partial": ({"installed": ["git"]}, "Install what git requires"),
    "lacking": ({"further": ["libc6", "vim"]}, "Install the packages"),
    "commanded": ({"command": "true"}, "Run a command"),
    "undefined": ({"faulty": True}, "Use a variable that may be undefined"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[str]]:
    """Return the task that needs each host, and the outdated hosts."""
    directory = tmp_path_factory.mktemp("compare")
    (directory / "play.yml").write_text(PLAYBOOK)
    variables = {"ansible_host": "192.0.2.1", "further": [], "installed": ["git", "libc6"]}  # an address of documentation
    inventory = {"all": {"hosts": {name: variables | own for name, (own, _task) in HOSTS.items()}}}
    (directory / "hosts.json").write_text(json.dumps(inventory))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "play.yml", "-i", "hosts.json"],
        cwd=directory,
        env=os.environ | {"ANSIBLE_COLLECTIONS_PATH": ":".join(map(str, COLLECTIONS)), "ANSIBLE_HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [shown] = [line for line in done.stdout.splitlines() if "msg" in line]
    tasks, outdated = json.loads("{" + shown + "}")["msg"].split("} ")
    return json.loads(tasks + "}"), json.loads(outdated)


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_that_a_later_task_would_contact_are_outdated(results: tuple[dict[str, str], list[str]], host: str) -> None:
    tasks, outdated = results
    _variables, task = HOSTS[host]
    assert (tasks[host], host in outdated) == (task, task != "")
