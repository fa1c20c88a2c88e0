"""Failed orders of certificates: the plays and conditions of the playbooks, with a task that fails instead of the order."""

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

REFUSED, REPORTED = "the ACME server refused the order", "the report of the run"


def load(file: str) -> list[Any]:
    return list(yaml.safe_load((ROOT / file).read_text()))


def find(items: list[Any], name: str) -> dict[str, Any]:
    [found] = [item for item in items if item["name"] == name]
    return dict(found)


def playbook() -> list[dict[str, Any]]:
    """Return the plays that find the reachable hosts, order certificates, and report the failures."""
    reachable = find(load("playbooks/check.yml"), "Check the apps and their hosts")
    issue = [
        find(load("playbooks/certificates.yml"), "Issue the pending certificates of the app hosts"),
        find(load("playbooks/balancers.yml"), "Issue the pending certificates of the load balancers"),
    ]
    report = find(load("playbooks/report.yml"), "Report the apps that failed")
    [order] = load("roles/certificates/tasks/manage.yml")
    del order["funnel.tornado.certificates"]
    variables = {"__certificates_issue": True}
    imported = {"__funnel_alone": False}  # as by site.yml
    return [
        reachable | {"tasks": [find(reachable["tasks"], "Group the reachable hosts")]},
        *(
            play
            | {"vars": play.get("vars", {}) | imported}
            | {"tasks": [order | {"ansible.builtin.fail": {"msg": REFUSED}, "vars": variables}]}
            for play in issue
        ),
        report | {"tasks": [{"name": "Report", "ansible.builtin.fail": {"msg": REPORTED}}]},
    ]


@pytest.mark.parametrize(("limit", "reported"), [("all", True), ("lb1:web1", True), ("balancers", False)])
def test_run_with_a_failed_order_fails_at_its_end_or_at_once(tmp_path: Path, limit: str, *, reported: bool) -> None:
    (tmp_path / "play.yml").write_text(yaml.safe_dump(playbook(), sort_keys=False))
    (tmp_path / "vars").symlink_to(ROOT / "playbooks/vars")
    groups = {"app_hosts": ("web1", "web2"), "balancers": ("lb1", "lb2")}
    host = {"certificates_placed": {"pending": ["shop"]}}
    inventory = {name: {"hosts": dict.fromkeys(hosts, host)} for name, hosts in groups.items()}
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "play.yml", "-i", "hosts.json", "--limit", limit],
        cwd=tmp_path,
        env=os.environ | {"ANSIBLE_COLLECTIONS_PATH": ":".join(map(str, COLLECTIONS)), "ANSIBLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Manage the certificates" in done.stdout, done.stdout + done.stderr
    assert (done.returncode, REFUSED in done.stdout, REPORTED in done.stdout) == (2, not reported, reported), done.stdout
