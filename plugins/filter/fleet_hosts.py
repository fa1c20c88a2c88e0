# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.fleet_hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ansible import context
from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.fleet_inventory import GROUPS, require_hosts

DOCUMENTATION = r"""
name: fleet_hosts
short_description: Hosts of a fleet, or of some of its groups
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - For a play's C(hosts). Groups that a fleet lacks have no hosts, and Ansible does not warn of them.
  - Ansible reads all filters of a collection when it first uses one. A play's C(hosts) are the first that it looks at, in the
    process that all others are copies of; what only these use, each of them reads anew.
positional: _input, names, variable, hostvars
options:
  _input:
    description: The variable C(groups).
    type: dict
    required: true
  names:
    description: The groups; all that a fleet has if unset, the balancers last, as they are at a reboot.
    type: list
    elements: str
  variable:
    description:
      - A variable that a host has to have. Ansible has no variables of hosts before the first play of a playbook. So all of them
        are meant there, and the tasks have to look at it, too.
    type: str
  hostvars:
    description: The variables of all hosts, C(hostvars), if there are any yet. Goes with O(variable).
    type: dict
  required:
    description:
      - Whether one of these groups has to have a host. Then it is also an error when a group has nearly the name of one that the
        collection knows and that has no host. Otherwise a misspelt group, or an inventory that cannot be read, is a run that does
        nothing and succeeds.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Look at what they have logged
  hosts: "{{ groups | funnel.tornado.fleet_hosts(['app_hosts', 'logs']) }}"
"""

RETURN = r"""
_value:
  description: The names of the hosts, group after group, each of them once.
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
) -> list[str]:
    """Return the hosts of these groups that have the variable, each once.

    :raises AnsibleFilterError: with ``required``, when none of the groups has a host or one is misspelt.
    """
    if required and not context.CLIARGS.get("syntax"):  # a syntax check, such as that of ansible-lint, has no inventory
        try:
            require_hosts(groups, names := list(names))
        except InvalidDataError as error:
            raise AnsibleFilterError(str(error)) from error
    hosts = dict.fromkeys(host for name in names for host in groups.get(name, ()))
    return [host for host in hosts if not variable or hostvars is None or variable in hostvars[host]]


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters of this file by name."""
        return {"fleet_hosts": fleet_hosts}
