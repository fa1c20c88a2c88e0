# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_report import report

DOCUMENTATION = r"""
name: fleet_report
short_description: What the hosts of a fleet are doing, and what differs from the inventory
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Puts together what M(funnel.tornado.status) has found on each host, and compares it with the inventory and between hosts.
positional: _input, hostvars
options:
  _input:
    description: Names of the hosts. Each has what was found in its variable C(__funnel_status).
    type: list
    elements: str
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
"""

EXAMPLES = r"""
report: "{{ ansible_play_hosts_all | funnel.tornado.fleet_report(hostvars) }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), a list of what is not as it has to be; C(data) for programs; C(text) for a terminal, without the problems; and
      C(page), of HTML.
  type: dict
"""


def fleet_report(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the hosts are doing."""
    found = {host: hostvars[host].get("__funnel_status", {}) for host in hosts}
    # An entry with a mistake was refused when its host was looked at, and nothing is known of that host.
    apps = {host: load(hostvars[host].get("tornado_apps", {})) for host, said in found.items() if "status" in said}
    made = report(found, apps, time.time())
    return {"problems": made.problems, "data": made.data(), "text": made.text(), "page": made.page()}


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"fleet_report": fleet_report}
