# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.switch_failures."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import switch_failures

DOCUMENTATION = r"""
name: switch_failures
short_description: Apps that failed to switch
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the apps that failed to switch on some hosts, from the results of the role C(app).
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
failed: "{{ groups.app_hosts | funnel.tornado.switch_failures(hostvars) }}"
"""

RETURN = r"""
_value:
  description: The first message of each app, with the host.
  type: dict
"""


FilterModule = filter_module(switch_failures)
