# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ansible import context

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import GROUPS, require_hosts

DOCUMENTATION = r"""
name: fleet_hosts
short_description: Hosts of a fleet or of some of its groups
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the C(hosts) of a play. Unlike a pattern, a missing group causes no warning.
  - Ansible loads all filters of a collection when it first uses one. In the C(hosts) of a play that happens once, before Ansible
    forks a process for each host.
positional: _input, names, variable, hostvars
options:
  _input:
    description: The variable C(groups).
    type: dict
    required: true
  names:
    description: The groups; by default all groups of a fleet, with the load balancers last.
    type: list
    elements: str
  variable:
    description:
      - Return only hosts with this variable. In the first play of a playbook, Ansible has no variables of hosts yet and the
        filter returns all hosts, so the tasks must check the variable as well.
    type: str
  hostvars:
    description: The variables of all hosts, C(hostvars), if defined. Used with O(variable).
    type: dict
  required:
    description:
      - Whether it is an error if none of the groups has a host, or if a group without hosts has a likely misspelling in the
        inventory. Otherwise, a run with a misspelled group or an unreadable inventory does nothing and succeeds.
    type: bool
    default: false
  app:
    description: Value of C(-e app=) for a playbook that does not act on single apps. It is an error unless it is empty.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Search the logs
  hosts: "{{ groups | funnel.tornado.fleet_hosts(['app_hosts', 'logs']) }}"
"""

RETURN = r"""
_value:
  description: The names of the hosts in the order of the groups, without duplicates.
  type: list
  elements: str
"""


def fleet_hosts(
    groups: Mapping[str, Sequence[str]],
    names: Iterable[str] = GROUPS,
    variable: str = "",
    hostvars: Mapping[str, Mapping[str, object]] | None = None,
    *,
    required: bool = False,
    app: object = "",
) -> list[str]:
    """Return the hosts of the groups that have the variable, without duplicates.

    :raises InvalidDataError: with ``required``, when no group has a host, or one is misspelled; with ``app``.
    """
    if app:
        problem = f"app: this playbook acts on whole hosts, with all their apps; run it without -e app={app}"
        raise InvalidDataError([f"{problem}, or use deploy.yml, which deploys single apps; nothing was changed"])
    if required and not context.CLIARGS.get("syntax"):  # a syntax check, such as that of ansible-lint, has no inventory
        require_hosts(groups, names := list(names))
    hosts = dict.fromkeys(host for name in names for host in groups.get(name, ()))
    return [host for host in hosts if not variable or hostvars is None or variable in hostvars[host]]


FilterModule = filter_module(fleet_hosts)
