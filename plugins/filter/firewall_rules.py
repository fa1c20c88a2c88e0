# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.firewall."""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.yaml import yaml_load

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network import firewall
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import GROUPS, fleet_sources

DOCUMENTATION = r"""
name: firewall_rules
short_description: What a host of a fleet has to let in, as the firewall role takes it
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - It follows from the groups that the host is in.
  - App hosts let in HTTP and HTTPS, from the balancers alone if there are any. Balancers do so from everybody,
    and let in VRRP of each other.
    Hosts of C(mongodb) and C(etcd) let in app hosts and each other, those of C(logs) their C(logs_senders).
  - Ports are those of the roles' variables. What listens at the loopback address alone is not let in.
positional: _input, hostvars, host
options:
  _input:
    description: The hosts of all groups, C(groups).
    type: dict
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
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

#: The roles whose variables say what is listened at.
ROLES = ("nginx", "haproxy", "mongodb", "etcd", "logs")


def firewall_rules(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]], host: str
) -> list[dict[str, Any]]:
    """Return what the host lets in, or fail with the names of those that no address was found of."""
    members = {group: groups.get(group, []) for group in GROUPS}
    try:
        addresses = fleet_sources({name for hosts in members.values() for name in hosts}, hostvars)
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error
    variables = ChainMap(hostvars[host], defaults())  # type: ignore[arg-type]  # it could write, and nobody does
    return firewall.to_data(firewall.fleet_rules(host, members, variables, addresses))


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the defaults of the roles' variables."""
    roles = Path(__file__).parents[2] / "roles"
    return {name: value for role in ROLES for name, value in yaml_load((roles / role / "defaults/main.yml").read_text()).items()}


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"firewall_rules": firewall_rules}
