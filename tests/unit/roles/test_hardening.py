"""Every unit that the collection lays down takes from its service what that does not need, and the exceptions are named here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables

ROLES = Path(__file__).parents[3] / "roles"

#: What no service of this collection needs.
ALL = {
    "CapabilityBoundingSet",
    "LockPersonality",
    "NoNewPrivileges",
    "PrivateDevices",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectSystem",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SystemCallArchitectures",
    "SystemCallFilter",
}

#: What would have the exporter of the host tell of other file systems than the host's.
MOUNTS = {
    "PrivateDevices",
    "ProtectControlGroups",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectSystem",
}

#: What a service does need of it, by the template of its unit.
NEEDED = {
    "keepalived/unit.conf": {"ProtectKernelTunables", "RestrictRealtime"},  # settings of interfaces, and the CPU in time
    "logs/unit.conf": {"ProtectKernelLogs"},  # rsyslog reads the kernel's lines
    "metrics/exporter.service": {"ProtectSystem"},  # DynamicUser has it
}

#: What upgrades the host has to be able to change all of it.
UNBOUND = {"unattended_upgrades/unit.conf"}

UNITS = sorted(
    f"{path.parents[1].name}/{path.stem}"
    for pattern in ("*/templates/*.service.j2", "*/templates/*unit.conf.j2")
    for path in ROLES.glob(pattern)
)

#: The variables of templates that decide what is in a unit.
VARIABLES: dict[str, Any] = {"exporter": "nginx", "binds": [], "supervisor_hardening_except": [], "nginx_hardening_except": []}


def render(unit: str, **variables: Any) -> dict[str, str]:
    """Return the directives of a unit that a template makes; of one that is there several times, the last value."""
    role, name = unit.split("/")
    known = {"ansible_managed": "", "metrics_listen": "127.0.0.1", "__metrics_ports": {"nginx": 1, "node": 2}}
    for option in yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]:
        known.setdefault(option, "")
    for file in (ROLES / role / "vars").glob("**/*.yml"):
        known |= {key: value for key, value in yaml.safe_load(file.read_text()).items() if key.endswith("_hardening")}
    templar = Templar(loader=DataLoader(), variables=known | {"__mongodb_program": "mongod"} | VARIABLES | variables)
    text = templar.template(
        trust_as_template((ROLES / role / f"templates/{name}.j2").read_text()),
        overrides={"trim_blocks": True, "lstrip_blocks": True},
    )
    return directives(text)


def directives(text: str) -> dict[str, str]:
    return {line.split("=", 1)[0]: line.split("=", 1)[1] for line in text.splitlines() if "=" in line and line[0] != "#"}


def hardening(role: str) -> dict[str, str]:
    """Return what can be taken out of a role's unit."""
    found: dict[str, str] = {}
    for file in (ROLES / role / "vars").glob("**/*.yml"):
        found |= yaml.safe_load(file.read_text()).get(f"__{role}_hardening", {})
    return found


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit not in UNBOUND])
def test_every_unit_is_hardened(unit: str) -> None:
    missing = ALL - render(unit).keys()
    assert missing == NEEDED.get(unit, set())


def test_the_exporter_of_the_host_sees_its_file_systems_as_they_are() -> None:
    assert ALL - render("metrics/unit.conf", exporter="node").keys() == MOUNTS


def test_the_exporter_of_processes_has_its_own_unit() -> None:
    assert not ALL & render("metrics/unit.conf", exporter="tornado", __metrics_ports={"tornado": 3}).keys()


def test_the_unit_of_the_firewall_is_hardened() -> None:
    assert ALL - directives(nftables.UNIT_TEXT).keys() == set()


@pytest.mark.parametrize("role", ["nginx", "supervisor"])
def test_each_directive_can_be_taken_out_and_only_that_one_is(role: str) -> None:
    options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert options[f"{role}_hardening_except"]["choices"] == sorted(hardening(role))
    whole = render(f"{role}/unit.conf")
    for name in hardening(role):
        assert whole.keys() - render(f"{role}/unit.conf", **{f"{role}_hardening_except": [name]}).keys() == {name}


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit not in UNBOUND])
def test_a_refused_system_call_is_an_error_and_no_death(unit: str) -> None:
    assert render(unit)["SystemCallErrorNumber"] == "EPERM"
