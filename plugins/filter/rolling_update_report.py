# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.rolling_update_report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import (
    backend_problems,
    certificate_problems,
    interruption_report,
    is_complete,
)

DOCUMENTATION = r"""
name: rolling_update_report
short_description: Report of an interrupted rolling update
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Reports the apps that failed, what each host serves, and the commands to continue and to roll back, from the results of the
    role C(app).
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
    description: The locations of the inventory, C(ansible_inventory_sources), for the commands.
    type: list
    elements: str
    required: true
  finished:
    description:
      - Whether the rolling update has ended. The report is then empty if all apps were switched on all hosts, all backends are
        up, and all certificates were issued.
    type: bool
    default: false
  balancers:
    description: Names of the load balancers, whose backends and certificates are reported.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
msg: "{{ groups.app_hosts | funnel.tornado.rolling_update_report(hostvars, inventory=ansible_inventory_sources) }}"
"""

RETURN = r"""
_value:
  description: A line for each app and host, then the commands.
  type: str
"""


def rolling_update_report(
    hosts: Iterable[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    *,
    inventory: Iterable[str],
    finished: bool = False,
    balancers: Iterable[str] = (),
) -> str:
    """Return the report."""
    names, own = list(hosts), list(balancers)
    down = list(backend_problems(own, hostvars))
    lines = ["not all backends are up at the load balancers:", *(f"  {problem}" for problem in down)] if down else []
    if finished and (missing := list(certificate_problems([*names, *own], hostvars))):
        lines += [
            "not all certificates were issued:",
            *(f"  {problem}" for problem in missing),
            "to continue: fix the cause and run site.yml",
        ]
    if not finished or not is_complete(names, hostvars):
        lines.append(interruption_report(names, hostvars, " -i ".join(inventory)))
    return "\n".join(lines)


FilterModule = filter_module(rolling_update_report)
