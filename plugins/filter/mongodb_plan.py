# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.mongodb_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import plan
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

DOCUMENTATION = r"""
name: mongodb_plan
short_description: What the variables of the mongodb role make
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Checks the variables of the mongodb role, and turns them into mongod's configuration, users and replica set.
  - All mistakes are reported at once.
positional: _input
options:
  _input:
    description: The variables, a dictionary by their names without the prefix.
    type: dict
    required: true
"""

EXAMPLES = r"""
__mongodb: "{{ {'port': mongodb_port, 'users': mongodb_users} | funnel.tornado.mongodb_plan }}"
"""

RETURN = r"""
_value:
  description: What the tasks of the role use.
  type: dict
"""


def mongodb_plan(variables: Mapping[str, object]) -> dict[str, Any]:
    """Return what the role's tasks use, or fail with every mistake in its variables."""
    try:
        return plan(variables)
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"mongodb_plan": mongodb_plan}
