"""A site that a rollback cannot restore: the tasks and conditions of the playbook, with a task that fails instead of nginx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]

#: The directories of collections in a clone, and around an unpacked collection.
COLLECTIONS = (ROOT / ".collections", Path(*ROOT.parts[:-3]))

OPTIONS = json.dumps(
    {"limits": {}, "paths": {}, "prefix": None, "read_timeout": 9, "static": None, "upload_size": "1m"}, sort_keys=True
)


def load(file: str) -> list[Any]:
    return list(yaml.safe_load((ROOT / file).read_text()))


def find(items: list[Any], name: str) -> dict[str, Any]:
    [found] = [item for item in items if item["name"].startswith(name)]
    return dict(found)


def playbook() -> list[dict[str, Any]]:
    """Return the plays that restore the sites and report failures; the other tasks of the plays need hosts."""
    plays = load("playbooks/rollback.yml")
    roll_back = find(plays, "Roll back")
    restore = find(roll_back["tasks"], "Restore the sites")
    report = find(load("playbooks/report.yml"), "Report the apps that failed")
    group = {"name": "Group", "ansible.builtin.group_by": {"key": "__funnel_reachable"}}
    return [
        {"name": "Group", "hosts": "app_hosts", "gather_facts": False, "tasks": [group]},
        roll_back | {"tasks": [restore]},
        {
            "name": "Drain",
            "hosts": "app_hosts",
            "gather_facts": False,
            "tasks": [{"name": "Drain", "ansible.builtin.debug": None}],
        },
        report,
    ]


def history(*releases: str) -> dict[str, Any]:
    entries = [
        {
            "release": each,
            "content": each,
            "revision": each,
            "at": each,
            "by": "",
            "undone": "",
            "built": True,
            "site_options": OPTIONS,
        }
        for each in releases
    ]
    return {"apps": {"shop": {"live": "r2", "starting": "", "site_options": "other", "releases": entries}}}


@pytest.mark.parametrize(("live", "proxy", "restored"), [("r1", "nginx", True), ("r2", "nginx", False), ("r1", "haproxy", False)])
def test_failed_restore_fails_the_run_at_its_end_if_the_switch_succeeded(
    tmp_path: Path, live: str, proxy: str, *, restored: bool
) -> None:
    (tmp_path / "play.yml").write_text(yaml.safe_dump(playbook(), sort_keys=False))
    (tmp_path / "vars").symlink_to(ROOT / "playbooks/vars")
    (tmp_path / "tasks").mkdir()
    fail = {"name": "Restore", "ansible.builtin.fail": {"msg": "nginx rejects {{ __funnel_site_options | list | join }}"}}
    (tmp_path / "tasks/restore_sites.yml").write_text(yaml.safe_dump([fail | {"when": "inventory_hostname == 'web1'"}]))
    variables = {
        "tornado_apps": {"shop": {}},
        "app_proxy": proxy,
        "__funnel_history": history("r2", "r1"),
        "__funnel_built": {"results": []},
        "__app_switched": {"apps": {"shop": {"before": "r2", "release": live}}},
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"app_hosts": {"hosts": {"web1": {}, "web2": {}}, "vars": variables}}))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "play.yml", "-i", "hosts.json", "-e", "batch=1"],
        cwd=tmp_path,
        env=os.environ | {"ANSIBLE_COLLECTIONS_PATH": ":".join(map(str, COLLECTIONS)), "ANSIBLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    message = "web1: shop: release r1 is live, but its site was not restored: nginx rejects shop;"
    assert (done.returncode, message in done.stdout) == ((2, True) if restored else (0, False)), done.stdout + done.stderr
    assert "ok: [web1]" in done.stdout.partition("PLAY [Drain]")[2]
    assert "ok: [web2]" in done.stdout.partition("PLAY [Drain]")[2]
