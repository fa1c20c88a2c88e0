#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: healthy
short_description: Wait until a host is fit to serve
description:
  - Waits until services run, members of a database or of a cluster of etcd are back in it, keepalived's check is content, and
    every process of what is served of an app answers its health path. Fails with all that is not so in the end.
  - Changes nothing.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  apps:
    description: Names of apps. One of which nothing is served yet is left out.
    type: list
    elements: str
    default: []
  services:
    description: Names of services.
    type: list
    elements: str
    choices: [etcd, haproxy, keepalived, mongod, nginx, rsyslog, supervisor]
    default: []
  mongodb_port:
    description: Port of mongod.
    type: int
    default: 27017
  timeout:
    description: Seconds in which all has to be well.
    type: int
    default: 300
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Wait until the host can serve again
  funnel.tornado.healthy:
    apps: [shop]
    services: [nginx, supervisor, etcd]
"""

RETURN = r"""
problems:
  description: What is not well.
  returned: failure
  type: list
  elements: str
  sample: ["mongod: is neither primary nor secondary of rs0"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.status.host_health import wait_until_well

SERVICES = ["etcd", "haproxy", "keepalived", "mongod", "nginx", "rsyslog", "supervisor"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "apps": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "list", "elements": "str", "choices": SERVICES, "default": []},
            "mongodb_port": {"type": "int", "default": 27017},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    found = wait_until_well(wanted["apps"], wanted["services"], mongodb_port=wanted["mongodb_port"], timeout=wanted["timeout"])
    problems = list(map(printable_message, found))
    if problems:
        module.fail_json(msg=f"not well after {wanted['timeout']} s: {'; '.join(problems)}", problems=problems)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
