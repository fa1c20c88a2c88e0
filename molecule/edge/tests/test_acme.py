"""The result of the first run on a bare host. This module must run first, as the others change the hosts."""

from __future__ import annotations

from pathlib import Path

from tests.support.remote import APP_GROUP, Site, address, expect_success, hosts, run_playbook


def test_first_run_on_bare_host_issues_certificate(ca: Path) -> None:
    for name, host in hosts().items():
        assert Site(address(host), f"first-{name}.edge.test", https=True, ca=ca).get("/healthz").status == 200
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=first"))
