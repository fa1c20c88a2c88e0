"""Hardening of every systemd unit of the collection, with its exceptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables

ROLES = Path(__file__).parents[3] / "roles"

#: Directives that restrict every service.
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

#: Groups of system calls that no service of the collection needs.
DENIED_CALLS = {"@clock", "@cpu-emulation", "@debug", "@module", "@mount", "@obsolete", "@raw-io", "@reboot", "@swap"}

#: Capabilities that nginx or supervisord uses.
USED_CAPABILITIES = {
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_RESOURCE",
}

#: Directives of nginx and supervisord whose values are no lists.
VALUES = {"ProtectSystem": "full", "SystemCallArchitectures": "native"} | dict.fromkeys(
    ALL - {"CapabilityBoundingSet", "ProtectSystem", "RestrictAddressFamilies", "SystemCallArchitectures", "SystemCallFilter"},
    "true",
)

#: Directives that would hide file systems of the host from its exporter.
MOUNTS = {
    "PrivateDevices",
    "ProtectControlGroups",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectSystem",
}

#: Omitted directives by the template of the unit.
OMITTED = {
    "keepalived/unit.conf": {"ProtectKernelTunables", "RestrictRealtime"},  # settings of interfaces, and the CPU in time
    "logs/unit.conf": {"ProtectKernelLogs"},  # rsyslog reads the kernel's lines
    "metrics/exporter.service": {"ProtectSystem"},  # DynamicUser has it
}

#: Units without hardening: upgrades must be able to change the whole host.
UNHARDENED = {"unattended_upgrades/unit.conf"}

UNITS = sorted(
    f"{path.parents[1].name}/{path.stem}"
    for pattern in ("*/templates/*.service.j2", "*/templates/*unit.conf.j2")
    for path in ROLES.glob(pattern)
)

#: Template variables that select directives of a unit.
VARIABLES: dict[str, Any] = {"exporter": "nginx", "binds": [], "supervisor_hardening_except": [], "nginx_hardening_except": []}


def render(unit: str, **variables: Any) -> dict[str, str]:
    """Return the directives of a rendered unit; the last value of a repeated one."""
    role, name = unit.split("/")
    values = {"ansible_managed": "", "metrics_listen": "127.0.0.1", "__metrics_ports": {"nginx": 1, "node": 2}}
    for option in yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]:
        values.setdefault(option, "")
    for file in (ROLES / role / "vars").glob("**/*.yml"):
        values |= {key: value for key, value in yaml.safe_load(file.read_text()).items() if key.endswith("_hardening")}
    templar = Templar(loader=DataLoader(), variables=values | {"__mongodb_program": "mongod"} | VARIABLES | variables)
    text = templar.template(
        trust_as_template((ROLES / role / f"templates/{name}.j2").read_text()),
        overrides={"trim_blocks": True, "lstrip_blocks": True},
    )
    return directives(text)


def directives(text: str) -> dict[str, str]:
    return {line.split("=", 1)[0]: line.split("=", 1)[1] for line in text.splitlines() if "=" in line and line[0] != "#"}


def hardening(role: str) -> dict[str, str]:
    """Return the optional directives of a role's unit."""
    found: dict[str, str] = {}
    for file in (ROLES / role / "vars").glob("**/*.yml"):
        found |= yaml.safe_load(file.read_text()).get(f"__{role}_hardening", {})
    return found


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit not in UNHARDENED])
def test_every_unit_is_hardened(unit: str) -> None:
    missing = ALL - render(unit).keys()
    assert missing == OMITTED.get(unit, set())


def test_the_exporter_of_the_host_sees_all_file_systems() -> None:
    assert ALL - render("metrics/unit.conf", exporter="node").keys() == MOUNTS


def test_the_exporter_of_processes_has_its_own_unit() -> None:
    assert not ALL & render("metrics/unit.conf", exporter="tornado", __metrics_ports={"tornado": 3}).keys()


def test_the_unit_of_the_firewall_is_hardened() -> None:
    assert ALL - directives(nftables.UNIT_TEXT).keys() == set()


@pytest.mark.parametrize("role", ["nginx", "supervisor"])
def test_each_directive_can_be_disabled_separately(role: str) -> None:
    options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert options[f"{role}_hardening_except"]["choices"] == sorted(hardening(role))
    whole = render(f"{role}/unit.conf")
    for name in hardening(role):
        assert whole.keys() - render(f"{role}/unit.conf", **{f"{role}_hardening_except": [name]}).keys() == {name}


@pytest.mark.parametrize("role", ["nginx", "supervisor"])
def test_drop_ins_deny_system_calls_and_capabilities_that_affect_the_host(role: str) -> None:
    found = render(f"{role}/unit.conf")
    assert found["SystemCallFilter"].startswith("~")
    assert set(found["SystemCallFilter"].removeprefix("~").split()) == DENIED_CALLS
    capabilities = set(found["CapabilityBoundingSet"].split())
    assert capabilities < USED_CAPABILITIES
    assert {name: value for name, value in found.items() if name in VALUES} == VALUES


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit not in UNHARDENED])
def test_a_denied_system_call_fails_instead_of_killing(unit: str) -> None:
    assert render(unit)["SystemCallErrorNumber"] == "EPERM"
