"""Several apps in one run: a failing one does not hold up the others, and a restart switches them concurrently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import APP_GROUP, ROOT, Site, address, apps, expect_success, extra_vars, processes, run_playbook

THIRD: dict[str, Any] = {
    "source": {"path": str(ROOT / "files/sample_app")},
    "run": {"app": "sample_app.web:make_app"},
    "domains": ["third.test"],
    "health": {"path": "/healthz"},
    "processes": 1,
    "drain": 1,
}

FAILING: dict[str, Any] = {"hooks": {"before_switch": {"command": "false", "once": True}}}


@pytest.fixture(autouse=True)
def restore_entries(tmp_path: Path) -> Iterator[None]:
    """Remove the additional app and restore the others."""
    yield
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=third", *extra_vars(tmp_path, {})))
    expect_success(run_playbook("playbooks/deploy.yml", APP_GROUP, *extra_vars(tmp_path, {})))


def test_failing_app_leaves_the_others_complete_and_restart_is_concurrent(hosts: dict[str, Host], tmp_path: Path) -> None:
    plain = {name: processes(host, "plain") for name, host in hosts.items()}
    variables = apps(sample={"headers": {"X-Changed": "yes"}, "env": {"NEW": "release"}}, plain=FAILING, third=THIRD)
    status, output = run_playbook("playbooks/deploy.yml", APP_GROUP, *extra_vars(tmp_path, variables))
    assert status != 0, output
    assert "plain failed; the other apps are complete" in output
    assert "debian12: tornado_apps.plain: release" in output
    report = output.partition("the hosts now serve:")[2]
    for name, host in hosts.items():
        assert re.search(rf"plain: {name} \w{{12}} \(unchanged\)", report), report
        assert re.search(rf"sample: {name} \w{{12}} \(before: \w{{12}}\)", report), report
        assert re.search(rf"third: {name} \w{{12}} \(before: nothing\)", report), report
        assert Site(address(host), "third.test").get("/healthz").status == 200
        assert Site(address(host)).get("/healthz").headers["x-changed"] == "yes"
        assert processes(host, "plain") == plain[name]

    output = expect_success(run_playbook("playbooks/restart.yml", "debian13", *extra_vars(tmp_path, variables)))
    assert set(re.findall(r"^debian13: (\w+) is release", output, re.MULTILINE)) == {"sample", "plain", "third"}
    host = hosts["debian13"]
    began = [int(line) for line in host.check_output("stat --format=%Y /srv/*/live/run").splitlines()]
    assert max(began) - min(began) <= 2, "each takes longer than that to become stable"
