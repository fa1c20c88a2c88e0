"""What the first run on a bare host has left; this module comes before all others, as they change it."""

from __future__ import annotations

from pathlib import Path

from tests.support.remote import ALL, Site, address, expect_success, hosts, run_playbook


def test_the_first_run_on_a_bare_host_has_a_certificate_issued(ca: Path) -> None:
    for name, host in hosts().items():
        assert Site(address(host), f"first-{name}.edge.test", https=True, ca=ca).get("/healthz").status == 200
    expect_success(run_playbook("playbooks/remove.yml", ALL, "-e", "app=first"))
