# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.rollback_plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rollback import make_plan

DOCUMENTATION = r"""
name: rollback_plan
short_description: Choose the target of a rollback for all hosts
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Chooses the newest release of each app that served well, from the histories of all hosts.
positional: _input, hostvars, apps
options:
  _input:
    description: Names of the hosts. The variable C(__funnel_history) of each holds the result of M(funnel.tornado.history).
    type: list
    elements: str
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
  apps:
    description: The apps.
    type: list
    elements: str
    required: true
  release:
    description: The id that the target has on one of the hosts.
    type: str
    default: ""
"""

EXAMPLES = r"""
plan: "{{ groups.app_hosts | funnel.tornado.rollback_plan(hostvars, ['shop']) }}"
"""

RETURN = r"""
_value:
  description:
    - C(releases), the ids by host and app; C(missing), the targets by host and app on hosts that lack them;
      C(site_options), those of the targets by host and app, where others are applied; C(lines), the plan as text; and
      C(problems).
  type: dict
"""


def rollback_plan(
    hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], apps: Iterable[str], *, release: str = ""
) -> dict[str, Any]:
    """Return the plan."""
    names = list(hosts)
    histories = {host: hostvars[host]["__funnel_history"]["apps"] for host in names}
    desired = {host: list(hostvars[host].get("tornado_apps", {})) for host in names}
    return asdict(make_plan(histories, apps, desired, release))


FilterModule = filter_module(rollback_plan)
