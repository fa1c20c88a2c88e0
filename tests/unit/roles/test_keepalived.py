"""The health check of keepalived, as bash runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

TEMPLATE = Path(__file__).parents[3] / "roles/keepalived/templates/check.j2"


def run_check(directory: Path, failures: int, state: str) -> int:
    """Run the health check of a service that fails some times, then succeeds; return its exit code."""
    attempts = directory / "attempts"
    variables = {
        "ansible_managed": "",
        "keepalived_service": "haproxy",
        "keepalived_check": f"echo >> {attempts}; (( $(wc -l < {attempts}) > {failures} ))",
    }
    script = Templar(loader=DataLoader(), variables=variables).template(trust_as_template(TEMPLATE.read_text()))
    systemctl = directory / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho {state}\n")
    systemctl.chmod(0o755)
    environment = os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", str(script)], env=environment, timeout=20, check=False).returncode


@pytest.mark.parametrize(
    ("failures", "state", "status"),
    [(0, "active", 0), (1, "active", 0), (2, "active", 1), (5, "activating", 0), (2, "failed", 1)],
)
def test_health_check_waits_only_while_systemd_restarts_the_service(
    tmp_path: Path, failures: int, state: str, status: int
) -> None:
    assert run_check(tmp_path, failures, state) == status
