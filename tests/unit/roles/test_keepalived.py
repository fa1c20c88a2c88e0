"""The health check of keepalived, as bash runs it, and its configuration by the family of the floating IP."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

TEMPLATES = Path(__file__).parents[3] / "roles/keepalived/templates"


def render(name: str, variables: dict[str, object]) -> str:
    """Return the text of a template of the role."""
    templar = Templar(loader=DataLoader(), variables={"ansible_managed": "", **variables})
    return str(templar.template(trust_as_template((TEMPLATES / name).read_text())))


def run_check(directory: Path, failures: int, state: str) -> int:
    """Run the health check of a service that fails some times, then succeeds; return its exit code."""
    attempts = directory / "attempts"
    variables: dict[str, object] = {
        "keepalived_service": "haproxy",
        "keepalived_check": f"echo >> {attempts}; (( $(wc -l < {attempts}) > {failures} ))",
    }
    script = render("check.j2", variables)
    systemctl = directory / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho {state}\n")
    systemctl.chmod(0o755)
    environment = os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], env=environment, timeout=20, check=False).returncode


@pytest.mark.parametrize(
    ("failures", "state", "status"),
    [(0, "active", 0), (1, "active", 0), (2, "active", 1), (5, "activating", 0), (2, "failed", 1)],
)
def test_health_check_waits_only_while_systemd_restarts_the_service(
    tmp_path: Path, failures: int, state: str, status: int
) -> None:
    assert run_check(tmp_path, failures, state) == status


@pytest.mark.parametrize(
    ("address", "peer", "lines", "rules"),
    [
        (
            "192.0.2.100/24",
            "192.0.2.12",
            ["192.0.2.100/24 dev eth0"],
            ["meta l4proto 112 ip saddr != { 192.0.2.12 } counter drop", "meta l4proto 112 meta nfproto ipv6 drop"],
        ),
        (
            "2001:db8::100/64",
            "2001:db8::12",
            ["unicast_ttl 255", "2001:db8::100/128 dev eth0 preferred_lft 0"],
            ["meta l4proto 112 ip6 saddr != { 2001:db8::12 } counter drop", "meta l4proto 112 meta nfproto ipv4 drop"],
        ),
    ],
)
def test_configuration_has_the_family_of_the_floating_ip(address: str, peer: str, lines: list[str], rules: list[str]) -> None:
    variables = {
        "__keepalived_placement": {"interface": "eth0", "own_address": peer[:-1]},
        "keepalived_address": address,
        "keepalived_own_address": "",
        "keepalived_peers": [peer],
        "keepalived_priority": 100,
        "keepalived_router": 51,
    }
    configured = [line.strip() for line in render("keepalived.conf.j2", variables).splitlines()]
    assert [line for line in configured if line.startswith(("unicast_ttl", address.partition("/")[0]))] == lines
    accepted = [line.strip() for line in render("vrrp.nft.j2", variables).splitlines()]
    assert [line for line in accepted if "255" not in line and "l4proto" in line] == rules
