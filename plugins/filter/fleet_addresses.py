# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import fleet_addresses as addresses

DOCUMENTATION = r"""
name: fleet_addresses
short_description: IP addresses at which hosts of a fleet reach each other
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Of each host that is its variable C(fleet_address), else its C(ansible_host), else its name.
  - Names are looked up on the controller.
positional: _input, hostvars
options:
  _input:
    description: Names of the hosts.
    type: list
    elements: str
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
"""

EXAMPLES = r"""
nginx_trusted_proxies: "{{ (groups.balancers | funnel.tornado.fleet_addresses(hostvars)).values() | list }}"
"""

RETURN = r"""
_value:
  description: The IP address of each host, by its name.
  type: dict
"""


def fleet_addresses(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the address of each host, or fail with the names of those that none was found of."""
    try:
        return addresses(hosts, hostvars)
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"fleet_addresses": fleet_addresses}
