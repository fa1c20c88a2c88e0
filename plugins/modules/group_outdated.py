#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: group_outdated
short_description: Group the hosts that the later tasks of a play would contact
description:
  - Compares the host state that M(funnel.tornado.preflight) has returned with the later tasks of the same play, and adds the host
    to a group unless all of them are up to date. The host is not contacted.
  - "Together with C(meta: end_play), a play compares its hosts with tasks that the next play runs on the outdated ones only."
  - A host also counts as outdated if a task fails, or uses an action of another collection and is not skipped.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  key:
    description: Name of the group.
    type: str
    required: true
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Find the hosts that differ
  hosts: app_hosts
  tasks:
    - name: Group the hosts that the tasks below would change
      funnel.tornado.group_outdated:
        key: outdated
      changed_when: false
    - name: End the comparison
      ansible.builtin.meta: end_play
    - name: Configure Python
      ansible.builtin.import_role:
        name: funnel.tornado.python
"""

RETURN = r"""
task:
  description: Name of the first task that is not up to date; empty if all are.
  returned: success
  type: str
  sample: "funnel.tornado.nginx : configure | Apply the nginx configuration"
"""
