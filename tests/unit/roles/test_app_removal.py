"""The sites of the other apps when one is removed: the tasks of the role, with the options of a host in place of nginx's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("proxy", "kept"), [("nginx", True), ("haproxy", False)])
def test_removal_keeps_the_options_of_the_remaining_sites(tmp_path: Path, proxy: str, *, kept: bool) -> None:
    tasks = {task["name"]: task for task in yaml.safe_load((ROOT / "roles/app/tasks/remove.yml").read_text())}
    read = tasks["remove | Read the options with which nginx serves the apps"]
    del read["funnel.tornado.nginx_info"]
    read |= {"ansible.builtin.debug": {"msg": "read"}, "failed_when": False}
    sites = tasks["remove | Remove the sites"]
    show = [{"name": "Show", "ansible.builtin.debug": {"msg": "{{ __app_site_options }}"}}]
    (tmp_path / "sites.yml").write_text(yaml.safe_dump(show))
    found = {"name": "Read", "ansible.builtin.set_fact": {"__app_nginx_info": {"site_options": {"shop": "earlier"}}}}
    play = {
        "name": "Remove",
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(ROOT / "roles/app/vars/main.yml")],
        "vars": {"app_names": ["blog"], "app_proxy": proxy},
        "tasks": [read | {"register": "__read"}, found | {"when": "__read is not skipped"}, sites],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "play.yml", "-i", "localhost,"],
        cwd=tmp_path,
        env=os.environ | {"ANSIBLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (json.dumps({"shop": "earlier"})[1:-1] in done.stdout) == kept, done.stdout
