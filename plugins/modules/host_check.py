#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Check that a service can run on a host, before anything changes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Check that a service can run on a host, before anything changes
version_added: 0.1.0
description:
  - Fails with one message if another program listens on the ports of the service, if the service is masked, if the tasks do not
    run as root, or if C(/etc), C(/var/lib) or C(/var/log) cannot be written. Changes nothing.
author: The funnel.tornado developers (@funnel)
options:
  listen:
    description: The addresses of the service, such as V(80) or V([::]:443), by the variable that sets them.
    type: dict
    required: true
  service:
    description: Name of the service, which may listen on them already.
    type: str
    required: true
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
seealso:
  - module: funnel.tornado.preflight
"""

EXAMPLES = r"""
- name: Check the host of a load balancer
  funnel.tornado.host_check:
    listen:
      haproxy_listen: ["80", "[::]:80"]
    service: haproxy
"""

RETURN = r"""
open_files:
  description: The highest limit of open files that the host allows for a service.
  returned: success
  type: int
  sample: 1048576
ipv6:
  description: Whether the kernel supports IPv6.
  returned: success
  type: bool
"""

import contextlib
import socket

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.listeners import port_conflicts, tcp_listeners
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import root_problem
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.filesystems import (
    SERVICE_DIRECTORIES,
    filesystem_problem,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={"listen": {"type": "dict", "required": True}, "service": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    name = module.params["service"]
    problems = [root_problem(), filesystem_problem(SERVICE_DIRECTORIES)]
    if not any(problems):
        problems += port_conflicts(tcp_listeners(), module.params["listen"], name)
        with contextlib.suppress(systemd.ServiceError):  # without systemd, such as in a check of the inventory alone
            problems += [systemd.masked_problem(name)] if systemd.query(name).masked else []
    if any(problems):
        module.fail_json(msg="\n".join([*filter(None, problems), "nothing was changed"]))
    module.exit_json(changed=False, open_files=Capacity.of_host().max_open_files, ipv6=socket.has_dualstack_ipv6())


if __name__ == "__main__":
    main()
