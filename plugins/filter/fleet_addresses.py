# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_addresses."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import fleet_addresses

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

FilterModule = filter_module(fleet_addresses)
