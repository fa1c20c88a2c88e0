#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: haproxy_health
short_description: Ask HAProxy whether its backends are up to date and their servers are up
description:
  - Compares the backends of a load balancer with those of the role haproxy, and reads the states of their servers.
  - Reports problems without failing, so that a play can report those of all load balancers.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  backends:
    description:
      - The backends by name, each with its C(digest) and the C(servers) that must be up, as the filter
        P(funnel.tornado.expected_backends#filter) returns them.
    type: dict
    required: true
  timeout:
    description: Maximum seconds to wait until the servers are up.
    type: int
    default: 15
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode:
    support: full
    description: Compares the backends only, because releases that a run would make live are not.
  diff_mode: {support: none}
seealso:
  - module: funnel.tornado.haproxy_server
"""

EXAMPLES = r"""
- name: Ask the load balancers
  funnel.tornado.haproxy_health:
    backends: "{{ haproxy_backends | funnel.tornado.expected_backends(groups.app_hosts, hostvars) }}"
  register: found
"""

RETURN = r"""
outdated:
  description: The backends that the load balancer lacks, or has with other options.
  returned: success
  type: list
  elements: str
problems:
  description: What is wrong with the servers, or with HAProxy.
  returned: success
  type: list
  elements: str
  sample: ["server web2 of backend shop is DOWN (Layer4 connection problem)"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.sites.backend_health import (
    Expected,
    outdated_backends,
    wait_until_up,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import HaproxyError


def main() -> None:
    module = AnsibleModule(
        argument_spec={"backends": {"type": "dict", "required": True}, "timeout": {"type": "int", "default": 15}},
        supports_check_mode=True,
    )
    expected = {name: Expected(**entry) for name, entry in module.params["backends"].items()}
    outdated = outdated_backends(expected)
    try:
        problems = [] if module.check_mode else wait_until_up(expected, outdated, timeout=module.params["timeout"])
    except HaproxyError as error:
        problems = [str(error)]
    module.exit_json(changed=False, outdated=outdated, problems=problems)


if __name__ == "__main__":
    main()
