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
short_description: IP addresses of hosts within a fleet
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - The address of a host is its variable C(fleet_address), C(ansible_host) or its name, in this order.
  - The controller resolves names.
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
  description: The IP address of each host by name.
  type: dict
"""


def fleet_addresses(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the address of each host.

    :raises AnsibleFilterError: with all hosts whose address does not resolve.
    """
    try:
        return addresses(hosts, hostvars)
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"fleet_addresses": fleet_addresses}
