# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_problems."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network import firewall
from ansible_collections.funnel.tornado.plugins.module_utils.tls import dns
from ansible_collections.funnel.tornado.plugins.module_utils.tls.dns import parse_dns
from ansible_collections.funnel.tornado.plugins.plugin_utils import fleet_inventory, notifications
from ansible_collections.funnel.tornado.plugins.plugin_utils.certificate_validation import account_problems
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.notifications import notification_problems
from ansible_collections.funnel.tornado.plugins.plugin_utils.role_variables import (
    role_variable_problems,
    yaml_type_problems,
)
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import rolling_update_problems

DOCUMENTATION = r"""
name: fleet_problems
short_description: Validate the inventory of a fleet and the options of a rolling update
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Finds mistakes that involve several hosts, such as an app host that is in no backend of the load balancers.
  - Also finds misspelled names of role variables, which Ansible would ignore, and strings that YAML reads as another type.
positional: _input, hostvars, rolling_update
options:
  _input:
    description: The hosts of all groups, C(groups); those of C(app_hosts), C(balancers), C(mongodb), C(etcd) and C(logs) matter.
    type: dict
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
  rolling_update:
    description: The options of the rolling update, as for P(funnel.tornado.rolling_update_batches#filter).
    type: dict
    default: {}
"""

EXAMPLES = r"""
problems: "{{ groups | funnel.tornado.fleet_problems(hostvars, {'batch': '25%'}) }}"
"""

RETURN = r"""
_value:
  description: The mistakes.
  type: list
  elements: str
"""


def fleet_problems(
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    rolling_update: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the mistakes in the inventory and in the options of the rolling update."""
    hosts = {host: _DefinedVariables(hostvars[host]) for group in fleet_inventory.GROUPS for host in groups.get(group, [])}
    return [
        *rolling_update_problems(**rolling_update or {}),
        *role_variable_problems(hosts, role_options()),
        *yaml_type_problems(hosts, role_options()),
        *_firewall_problems(hosts.values()),
        *_acme_problems(groups, hosts),
        *_notification_problems(hosts, groups.get("app_hosts", [])),
        *_tier_problems(groups.get("balancers", []), groups.get("app_hosts", []), hostvars),
    ]


@functools.cache
def role_options() -> dict[str, dict[str, str]]:
    """Return the type of each variable by role and name, of all entry points."""
    options: dict[str, dict[str, str]] = {}
    for file in (Path(__file__).parents[2] / "roles").glob("*/meta/argument_specs.yml"):
        specs = yaml_load(file.read_text(encoding="utf-8"))["argument_specs"].values()
        options[file.parents[1].name] = {name: _type(option) for spec in specs for name, option in spec["options"].items()}
    options["fleet"] |= fleet_inventory.VARIABLES
    return options


def _type(option: Mapping[str, Any]) -> str:
    """Return the type of an option with that of its elements, such as ``list of str``."""
    return " of ".join(filter(None, [option["type"], option.get("elements", "")]))


class _DefinedVariables(Mapping[str, Any]):
    """The variables of a host; a value that depends on an undefined variable raises KeyError."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> Any:
        try:
            return self._variables[name]
        except AnsibleError as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def _firewall_problems(hosts: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Return the mistakes in the variables of the firewalls, without duplicates."""
    problems: list[str] = []
    for variables in hosts:
        try:
            if boolean(variables.get("firewall_enabled", False), strict=False):
                firewall.parse_rules(
                    variables.get(firewall.ALLOW, []),
                    variables.get(firewall.SSH_PORT, variables.get("ansible_port", 22)),
                    variables.get(firewall.SSH_SOURCES, list(firewall.ANY_SOURCE)),
                )
        except InvalidDataError as error:
            problems += error.problems
    return dict.fromkeys(problems)


def _acme_problems(groups: Mapping[str, Sequence[str]], hosts: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Return the mistakes in the variables about ACME of the hosts that terminate TLS, without duplicates."""
    app_hosts, group = groups.get("app_hosts", ()), fleet_inventory.tls_group(groups, hosts)
    problems: list[str] = []
    for host in groups.get(group, ()):
        variables = hosts[host]
        account = {name: variables.get(f"certificates_{name}") for name in ("acme_eab_key_id", "acme_eab_hmac_key")}
        problems += account_problems(account)
        try:
            has_dns = parse_dns(variables.get(dns.VARIABLE)) is not None
        except InvalidDataError as error:
            problems += error.problems
            continue
        apps = hosts[host if host in app_hosts else app_hosts[0]].get(VARIABLE) if app_hosts else {}
        needing = fleet_inventory.acme_apps(apps, "dns") if not has_dns else []
        problems += (f"{VARIABLE}.{app}.tls.challenge: dns requires {dns.VARIABLE}, which is missing" for app in needing)
    return dict.fromkeys(problems)


def _notification_problems(hosts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Iterable[str]:
    """Return the mistakes in the notifications, which a run takes from its first app host."""
    return [problem for name in names[:1] for problem in notification_problems(hosts[name].get(notifications.VARIABLE) or [])]


def _tier_problems(balancers: Sequence[str], hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    if not balancers:
        return []
    try:
        addresses = fleet_inventory.fleet_addresses(hosts, hostvars)
        own = fleet_inventory.fleet_addresses(balancers, hostvars)
    except InvalidDataError as error:
        return error.problems
    floating = {host: str(hostvars[host].get("keepalived_address") or "") for host in balancers}
    apps = hostvars[hosts[0]].get("tornado_apps", {}) if hosts else {}
    backends = {host: hostvars[host].get("haproxy_backends") for host in balancers}
    tls_at = hostvars[balancers[0]].get("fleet_tls_at", fleet_inventory.TLS_AT[0])
    return [
        *fleet_inventory.floating_ip_problems(own, floating),
        *fleet_inventory.tier_problems(apps, addresses, backends, tls_at),
    ]


FilterModule = filter_module(fleet_problems)
