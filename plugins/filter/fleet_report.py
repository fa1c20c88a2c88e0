# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_report import make_report

DOCUMENTATION = r"""
name: fleet_report
short_description: Report the status of a fleet
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Combines the results of M(funnel.tornado.status), and compares them with the inventory and between hosts.
positional: _input, hostvars
options:
  _input:
    description: Names of the hosts. The variable C(__funnel_status) of each holds the result of the module.
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
    - C(problems), a list; C(data), the report for programs; C(text), the report for a terminal, without the problems; and
      C(page), the report as HTML.
  type: dict
"""


def fleet_report(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report in several formats."""
    results = {host: hostvars[host].get("__funnel_status", {}) for host in hosts}
    # The apps of a host with a status are valid, because its status check has validated them.
    apps = {host: load(hostvars[host].get("tornado_apps", {})) for host, result in results.items() if "status" in result}
    report = make_report(results, apps, time.time())
    return {"problems": report.problems, "data": report.data(), "text": report.text(), "page": report.page()}


FilterModule = filter_module(fleet_report)
