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
  - Reads of every certificate who issued it, and how long it is still good. It is a problem when that is less than 14 days,
    when it is a temporary one or not for all domains, when nginx has not read it yet, and when it or its key is missing.
  - Tells which apps are in maintenance, and to which nothing has been pushed yet, which is no problem.
  - Apps that the host has and that are not named are shown too, and are problems.
  - Changes nothing.
options:
  names:
    description: The apps, keys of C(tornado_apps).
    type: list
    elements: str
    required: true
  certificates:
    description: Their certificates, as P(funnel.tornado.app_certificates#filter) gives them.
    type: dict
    default: {}
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers
"""

EXAMPLES = r"""
- name: See what the apps are doing
  funnel.tornado.status:
    names: "{{ tornado_apps | list }}"
    certificates: "{{ tornado_apps | funnel.tornado.app_certificates }}"
  register: found
"""

RETURN = r"""
status:
  description: What was found.
  returned: success
  type: dict
  contains:
    processes:
      description: The processes, with C(uptime) in seconds and C(rss) in bytes.
      type: list
      elements: dict
    certificates:
      description: The certificates, with C(days) that are left, domains that are C(lacking), and whether it is C(served).
      type: list
      elements: dict
    maintenance:
      description: The apps that are in maintenance, and since when.
      type: dict
table:
  description: The same, as lines of two tables and a line for each app in maintenance, or without a push.
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

from ansible_collections.funnel.tornado.plugins.module_utils import push, service, status, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.certificates import parse_wanted
from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.schema import InvalidDataError


def main() -> None:
    """Look at each app."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "certificates": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    server = supervisord.connect()
    names = module.params["names"]
    abandoned = status.abandoned(names)
    layouts = [Layout(name) for name in [*names, *abandoned]]
    try:
        found = [process for layout in layouts for process in status.look(layout, server)]
        certificates = list(status.certificates(parse_wanted(module.params["certificates"]), service.look("nginx").settled_at))
    except (CommandError, InvalidDataError, service.ServiceError, supervisord.SupervisorError) as error:
        module.fail_json(msg=str(error))
    maintenance = status.in_maintenance(layouts)
    problems = [f"{one.app}: process {one.slot}/{one.name} is {one.state}, health {one.health}" for one in found if not one.well]
    idle = [layout.app for layout in layouts if layout.live_slot() is None]
    awaited = [app for app in idle if push.entry(app).exists()]
    problems += [f"{app}: is not served" for app in idle if app not in awaited]
    problems += [one.problem for one in certificates if one.problem]
    problems += [f"{app}: is on this host and not in tornado_apps; remove.yml ends it" for app in abandoned]
    module.exit_json(
        changed=False,
        status={
            "processes": list(map(dataclasses.asdict, found)),
            "certificates": list(map(dataclasses.asdict, certificates)),
            "maintenance": maintenance,
        },
        table=[
            *status.table(status.HEADINGS, [one.row() for one in found]),
            *status.table(status.CERTIFICATE_HEADINGS, [one.row() for one in certificates]),
            *(f"{app} is in maintenance since {since}" for app, since in maintenance.items()),
            *(f"{app}: nothing has been pushed yet" for app in awaited),
        ],
        problems=problems,
    )


if __name__ == "__main__":
    main()
