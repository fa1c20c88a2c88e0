"""The callback of the playbooks that change apps, in runs that end before they connect to a host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.webhook import Hooks

ROOT = Path(__file__).parents[2]

INVALID: dict[str, Any] = {"shop": {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}, "proccesses": 1}}


def deploy(directory: Path, *arguments: str, **variables: Any) -> tuple[int, str]:
    inventory = directory / "hosts.yml"
    hosts = {"web1": {"ansible_connection": "local"}, "web2": {"ansible_connection": "local"}}
    inventory.write_text(yaml.safe_dump({"app_hosts": {"hosts": hosts, "vars": variables}}))
    command = ["ansible-playbook", "playbooks/deploy.yml", "-i", str(inventory), *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=120)
    return ran.returncode, ran.stdout + ran.stderr


def test_a_run_that_fails_at_the_first_task_notifies(tmp_path: Path) -> None:
    with Hooks() as hooks:
        notifications = [{"webhook": hooks.url("/200?t0ken")}, {"webhook": hooks.url("/500?t0ken")}]
        status, output = deploy(tmp_path, tornado_apps=INVALID, fleet_notifications=notifications)
    assert status != 0, output
    start, failure = (body for path, _headers, body in hooks.received if path.startswith("/200"))
    assert start["event"] == "start"
    assert start["text"].startswith("deploy of shop on web1, web2 by ")
    assert (failure["event"], failure["apps"], failure["hosts"]) == ("failure", ["shop"], ["web1", "web2"])
    assert "the inventory has mistakes; nothing was changed" in failure["errors"]["web1"]
    assert failure["seconds"] > 0
    assert "deploy of shop on web1, web2 by " in output
    assert "fleet_notifications[1]: cannot send the notification failure: the server answered 500" in output
    assert "t0ken" not in output


def test_check_mode_does_not_notify(tmp_path: Path) -> None:
    with Hooks() as hooks:
        status, output = deploy(tmp_path, "--check", tornado_apps=INVALID, fleet_notifications=[{"webhook": hooks.url()}])
    assert status != 0, output
    assert hooks.received == []
