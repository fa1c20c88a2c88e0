# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.firewall_rules."""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

from ansible_collections.funnel.tornado.plugins.module_utils.network import firewall
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import (
    GROUPS,
    acme_group,
    fleet_sources,
)

DOCUMENTATION = r"""
name: firewall_rules
short_description: Derive the firewall rules of a host from the groups of the inventory
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - The rules, in the format of the firewall role, depend on the groups of the host.
  - App hosts allow HTTP and HTTPS, only from load balancers if there are any. Load balancers allow them from any source,
    and VRRP from each other.
    Hosts in C(mongodb) and C(etcd) allow app hosts and each other, those in C(logs) their C(logs_senders).
  - Hosts that terminate TLS for an app with C(tls.provider=acme) allow each other to forward the challenges of the ACME server.
  - Ports come from the variables of the roles. Services that listen on loopback addresses only get no rule.
positional: _input, hostvars, host
options:
  _input:
    description: Hosts by group, C(groups).
    type: dict
    required: true
  hostvars:
    description: Variables by host, C(hostvars).
    type: dict
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
"""

EXAMPLES = r"""
firewall_fleet: "{{ groups | funnel.tornado.firewall_rules(hostvars, inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The value for C(firewall_fleet).
  type: list
  elements: dict
"""

#: The roles whose variables define the listening ports.
ROLES = ("nginx", "haproxy", "mongodb", "etcd", "logs")


def firewall_rules(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]], host: str
) -> list[dict[str, Any]]:
    """Return the rules of the host, or fail naming the hosts whose address cannot be resolved."""
    members = {group: groups.get(group, []) for group in GROUPS}
    addresses = fleet_sources({name for hosts in members.values() for name in hosts}, hostvars)
    variables = ChainMap(hostvars[host], defaults())  # type: ignore[arg-type]  # ChainMap requires mutable mappings; it is only read
    return firewall.to_data(firewall.fleet_rules(host, members, variables, addresses, acme_group(members, hostvars)))


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the default values of the role variables."""
    roles = Path(__file__).parents[2] / "roles"
    return {
        name: value
        for role in ROLES
        for name, value in yaml_load((roles / role / "defaults/main.yml").read_text(encoding="utf-8")).items()
    }


FilterModule = filter_module(firewall_rules)
