#!/usr/bin/python
# Copyright: (c) 2026, The funnel.tornado developers
# MIT License (see LICENSE)
"""Tell what the apps of a host are doing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Tell what the apps of a host are doing
version_added: 0.1.0
description:
  - Reads, for every process of every app, its release, state, uptime, restarts, connections, open files, memory and health.
  - Apps that the host has and that are not named are shown too, and are problems.
  - Changes nothing.
options:
  names:
    description: The apps, keys of C(tornado_apps).
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - The funnel.tornado developers
"""

EXAMPLES = r"""
- name: See what the apps are doing
  funnel.tornado.status:
    names: "{{ tornado_apps | list }}"
  register: found
"""

RETURN = r"""
processes:
  description: The processes, with RV(processes[].uptime) in seconds and RV(processes[].rss) in bytes.
  returned: success
  type: list
  elements: dict
table:
  description: The same, as lines of a table.
  returned: success
  type: list
  elements: str
problems:
  description: What is not as it has to be; empty when all is well.
  returned: success
  type: list
  elements: str
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils import status, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout


def main() -> None:
    """Look at each app."""
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    server = supervisord.connect()
    names = module.params["names"]
    abandoned = status.abandoned(names)
    layouts = [Layout(name) for name in [*names, *abandoned]]
    try:
        found = [process for layout in layouts for process in status.look(layout, server)]
    except supervisord.SupervisorError as error:
        module.fail_json(msg=str(error))
    problems = [f"{one.app}: process {one.slot}/{one.name} is {one.state}, health {one.health}" for one in found if not one.well]
    problems += [f"{layout.app}: is not served" for layout in layouts if layout.live_slot() is None]
    problems += [f"{app}: is on this host and not in tornado_apps; remove.yml ends it" for app in abandoned]
    module.exit_json(
        changed=False,
        processes=[dataclasses.asdict(process) for process in found],
        table=status.table(found),
        problems=problems,
    )


if __name__ == "__main__":
    main()
