# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.switch_plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.switch_plan import plan

DOCUMENTATION = r"""
name: switch_plan
short_description: Apps that a host switches after the builds
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the apps that a host switches, and in which order, from the results of the role C(app) so far.
positional: _input, hostvars, entries
options:
  _input:
    description: Name of the host.
    type: str
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
  entries:
    description: The C(tornado_apps) of the host.
    type: dict
    required: true
  hosts:
    description: The hosts of the play.
    type: list
    elements: str
    required: true
  reached:
    description:
      - The reachable app hosts in the order of the rolling update.
      - The first of them that has an app runs its hooks with C(once).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
plan: >-
  {{ inventory_hostname | funnel.tornado.switch_plan(hostvars, tornado_apps, hosts=ansible_play_hosts_all,
                                                     reached=ansible_play_hosts_all) }}
"""

RETURN = r"""
_value:
  description: The switches of the host.
  type: dict
  contains:
    first:
      description: Ids of the releases, by app, that this host switches before the others, because it runs hooks with C(once).
      type: dict
    rest:
      description: Ids of the releases, by app, that it switches together with the other hosts.
      type: dict
    deferred:
      description: Apps whose first release is live, and not verified yet.
      type: list
    replaced:
      description: Ids of the live releases before the switch, by app.
      type: dict
    depends_on:
      description: Apps that are switched before an app, by app.
      type: dict
    failed:
      description: Apps that failed to switch on a host before.
      type: list
"""


def switch_plan(
    host: str,
    hostvars: Mapping[str, Mapping[str, Any]],
    entries: Mapping[str, Any],
    hosts: Sequence[str],
    reached: Sequence[str],
) -> dict[str, Any]:
    """Return the plan as a dictionary."""
    return dataclasses.asdict(plan(host, hostvars, entries, hosts, reached))


FilterModule = filter_module(switch_plan)
