#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: floating_address
short_description: Locate a floating IP on a host, or hand it over to another host
description:
  - With O(state=known), finds the interface in the network of the address, and returns whether this host holds the address.
  - The other states hand the address over to another host without interrupting clients. The successor accepts packets for
    the address (V(expected)); the holder forwards new connections to it, stops the service, which drains its connections,
    and then keepalived (V(handed_over)); the successor verifies that it holds the address (V(settled)).
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  address:
    description: The floating IP, an IPv4 or IPv6 address with prefix length.
    type: str
    required: true
  interface:
    description: Name of the interface; if empty, the one in the network of O(address).
    type: str
    default: ""
  priority:
    description: VRRP priority of this host, from 1 to 254. It is only validated and returned.
    type: int
    default: 100
  state:
    description: Step of the handover; V(known) changes nothing.
    type: str
    choices: [known, expected, handed_over, settled]
    default: known
  successor:
    description: Address of the other host in the same network, for O(state=handed_over).
    type: str
  service:
    description:
      - systemd service that serves at the address, for O(state=handed_over).
      - It must shut down gracefully, draining its connections.
    type: str
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Query which host holds the floating IP
  funnel.tornado.floating_address:
    address: 192.0.2.100/24
  register: placement
"""

RETURN = r"""
interface:
  description: Name of the interface in the network of the address.
  returned: success
  type: str
  sample: eth0
own_address:
  description: Own address of the host in that network.
  returned: success
  type: str
  sample: 192.0.2.11
held:
  description: Whether the host held the address when the module started.
  returned: success
  type: bool
healthy:
  description: Whether the host could take over the address. Requires an active keepalived and a successful health check.
  returned: success
  type: bool
priority:
  description: The O(priority).
  returned: success
  type: int
"""

import dataclasses
import os
import platform
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.network import keepalived
from ansible_collections.funnel.tornado.plugins.module_utils.network.keepalived import KeepalivedError


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "interface": {"type": "str", "default": ""},
            "priority": {"type": "int", "default": 100},
            "state": {"type": "str", "choices": ["known", "expected", "handed_over", "settled"], "default": "known"},
            "successor": {"type": "str"},
            "service": {"type": "str"},
        },
        required_if=[("state", "handed_over", ["successor", "service"])],
        supports_check_mode=True,
    )
    try:
        result = apply(module.params, check_mode=module.check_mode)
    except (KeepalivedError, CommandError, OSError) as error:
        module.fail_json(msg=error_text(error))
    module.exit_json(**result)


def apply(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    host = platform.node()
    address = keepalived.parse_address(params["address"])
    shown = keepalived.interfaces()
    placement = keepalived.locate_address(address, shown, host, params["interface"])
    keepalived.require_priority(params["priority"])
    accepting = keepalived.is_accepting(address, shown)
    changed = {"known": False, "expected": not accepting, "handed_over": placement.held, "settled": accepting}[params["state"]]
    result = {**dataclasses.asdict(placement), "healthy": keepalived.is_healthy(), "priority": params["priority"]}
    if changed and not check_mode:
        if params["state"] == "expected":
            keepalived.accept_traffic(address, placement)
        elif params["state"] == "handed_over":
            keepalived.hand_over(address, placement, params["successor"], params["service"])
        else:
            keepalived.complete_takeover(address, host, params["interface"])
    return {"changed": changed, **result}


if __name__ == "__main__":
    main()
