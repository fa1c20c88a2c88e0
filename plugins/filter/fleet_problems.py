# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.fleet import TLS_AT, fleet_addresses, tier_problems
from ansible_collections.funnel.tornado.plugins.module_utils.roll import roll_problems
from ansible_collections.funnel.tornado.plugins.module_utils.schema import InvalidDataError

DOCUMENTATION = r"""
name: fleet_problems
short_description: What is wrong with a fleet, and with how a change is to go over it
version_added: 0.1.0
author: The funnel.tornado developers
description:
  - Looks for mistakes that no host can see by itself, such as an app host that no balancer leads to.
positional: _input, hostvars, roll
options:
  _input:
    description: The hosts of all groups, C(groups); those of C(app_hosts) and C(balancers) matter.
    type: dict
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
  roll:
    description: What the playbook was told of its batches, as P(funnel.tornado.roll_batches#filter) takes it.
    type: dict
    default: {}
"""

EXAMPLES = r"""
problems: "{{ groups | funnel.tornado.fleet_problems(hostvars, roll) }}"
"""

RETURN = r"""
_value:
  description: The mistakes.
  type: list
  elements: str
"""


def fleet_problems(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]], roll: Mapping[str, Any] | None = None
) -> list[str]:
    """Return what is wrong with the roll and, if there is one, with the tier of balancers."""
    return [*roll_problems(**roll or {}), *_tier_problems(groups.get("balancers", []), groups.get("app_hosts", []), hostvars)]


def _tier_problems(balancers: Sequence[str], hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    if not balancers:
        return []
    try:
        addresses = fleet_addresses(hosts, hostvars)
        fleet_addresses(balancers, hostvars)
    except InvalidDataError as error:
        return error.problems
    apps = hostvars[hosts[0]].get("tornado_apps", {}) if hosts else {}
    backends = {host: hostvars[host].get("haproxy_backends") for host in balancers}
    return tier_problems(apps, addresses, backends, hostvars[balancers[0]].get("fleet_tls_at", TLS_AT[0]))


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"fleet_problems": fleet_problems}
