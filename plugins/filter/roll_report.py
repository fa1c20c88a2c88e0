# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.roll_report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import report

DOCUMENTATION = r"""
name: roll_report
short_description: What the hosts serve after a roll has stopped, and how to go on or back
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Puts together what the builds and switches of the app role have returned on each host.
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
  inventory:
    description: Where the inventory is, C(ansible_inventory_sources), for the commands.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
msg: "{{ groups.app_hosts | funnel.tornado.roll_report(hostvars, inventory=ansible_inventory_sources) }}"
"""

RETURN = r"""
_value:
  description: A line for each app and host, then the commands.
  type: str
"""


def roll_report(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], *, inventory: Iterable[str]) -> str:
    """Return the report."""
    return report(list(hosts), hostvars, " -i ".join(inventory))


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"roll_report": roll_report}
