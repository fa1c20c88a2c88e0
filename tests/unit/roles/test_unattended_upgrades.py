from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.status.machine import PACKAGES

ROLE = Path(__file__).parents[3] / "roles/unattended_upgrades"


@pytest.fixture(scope="module")
def held() -> list[str]:
    """Return the regular expressions by which packages are held, unless a user says otherwise."""
    templar = Templar(loader=DataLoader(), variables=yaml.safe_load((ROLE / "defaults/main.yml").read_text()))
    text = str(templar.template(trust_as_template((ROLE / "templates/apt.conf.j2").read_text())))
    return re.findall(r'^ *"(.+)";$', text.partition("Package-Blacklist {")[2], re.MULTILINE)


@pytest.mark.parametrize("package", [package for service, package in PACKAGES.items() if service != "rsyslog"])
def test_every_service_that_serves_is_held(held: list[str], package: str) -> None:
    assert any(re.match(pattern, package) for pattern in held)


@pytest.mark.parametrize("package", ["nginx-common", "libnginx-mod-stream", "python3.11-minimal", "libpython3.13-stdlib"])
def test_what_they_are_made_of_is_held(held: list[str], package: str) -> None:
    assert any(re.match(pattern, package) for pattern in held)


@pytest.mark.parametrize("package", ["libssl3", "libc6", "openssh-server", "python3-urllib3", "linux-image-amd64", "rsyslog"])
def test_the_rest_is_not(held: list[str], package: str) -> None:
    assert not any(re.match(pattern, package) for pattern in held)
