"""The quick start of the README, executed step by step."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.support.remote import ROOT, Site

HOST = "web1.example.com"


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language in order, without list indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def connection_variables(name: str) -> dict[str, str]:
    """Return the connection variables of a booted host."""
    command = ["ansible-inventory", "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--host", name]
    variables = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {key: value for key, value in variables.items() if key.startswith("ansible_")}


def test_readme_steps_serve_an_app(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", ".*_cache"))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/web.py").write_text(blocks("python")[0])
    (tmp_path / "shop/requirements.txt").write_text("tornado==6.6.1\n")
    hosts, apps = blocks("yaml")[:2]
    (clone / "prod/hosts.yml").write_text(hosts)
    (clone / "prod/group_vars/all.yml").write_text(apps + "limits_open_files: 16384\n")
    variables = connection_variables("newcomer")
    (clone / "prod/host_vars").mkdir()
    (clone / f"prod/host_vars/{HOST}.yml").write_text(yaml.safe_dump(variables))

    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "MOLECULE_"))}
    commands = [shlex.split(line) for line in blocks("console")[1].splitlines()]
    assert [command[0] for command in commands] == ["ansible-playbook", "ansible-playbook"]
    for command in [*commands, commands[-1]]:
        completed = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "changed=0" in completed.stdout
    assert Site(variables["ansible_host"], "shop.example.com").get("/").body == b"Hello"
