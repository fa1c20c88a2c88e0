# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.mongodb_plan."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import mongodb_plan
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: mongodb_plan
short_description: Validate the variables of the mongodb role and derive its configuration
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Validates the variables of the mongodb role, and derives mongod's configuration, users and replica set from them.
  - Reports all problems at once.
positional: _input
options:
  _input:
    description: The variables by name, without the prefix C(mongodb_).
    type: dict
    required: true
"""

EXAMPLES = r"""
__mongodb: "{{ {'port': mongodb_port, 'users': mongodb_users} | funnel.tornado.mongodb_plan }}"
"""

RETURN = r"""
_value:
  description: The values for the tasks of the role.
  type: dict
"""


FilterModule = filter_module(mongodb_plan)
