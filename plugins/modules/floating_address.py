#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: floating_address
short_description: Find the place of a floating address on a host, or let another host have it
description:
  - With O(state=known), finds the interface in whose network the address is, and whether this host has it.
  - With the other states, a host lets another one have the address, and no client notices. The other one takes what comes for
    the address (V(expected)); the one that has it sends new connections there, stops what serves the old ones, which
    finishes them, and then keepalived (V(handed_over)); the other one sees that the address is its own (V(settled)).
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  address:
    description: IPv4 address, with the length of its network's prefix.
    type: str
    required: true
  interface:
    description: Name of the interface; if empty, it is the one in whose network the address is.
    type: str
    default: ""
  priority:
    description: What VRRP elects this host by, from 1 to 254. It is only checked and returned.
    type: int
    default: 100
  state:
    description: What has to be.
    type: str
    choices: [known, expected, handed_over, settled]
    default: known
  successor:
    description: Address of the other host in the same network, for O(state=handed_over).
    type: str
  service:
    description:
      - systemd service that serves at the address, for O(state=handed_over).
      - When it is stopped it has to finish what it has.
    type: str
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Look who has the address
  funnel.tornado.floating_address:
    address: 192.0.2.100/24
  register: place
"""

RETURN = r"""
interface:
  description: Name of the interface that the address is in a network of.
  returned: success
  type: str
  sample: eth0
own_address:
  description: The host's own address in that network.
  returned: success
  type: str
  sample: 192.0.2.11
held:
  description: Whether the host had the address when the module began.
  returned: success
  type: bool
healthy:
  description: Whether the host could take the address; keepalived runs there, and its check is content.
  returned: success
  type: bool
priority:
  description: The O(priority).
  returned: success
  type: int
"""

import dataclasses
import platform
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.network import keepalived
from ansible_collections.funnel.tornado.plugins.module_utils.network.keepalived import KeepalivedError


def main() -> None:
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
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def apply(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    host = platform.node()
    address = keepalived.parse_address(params["address"])
    shown = keepalived.interfaces()
    place = keepalived.locate_address(address, shown, host, params["interface"])
    keepalived.require_priority(params["priority"])
    expected = keepalived.is_expected(address, shown)
    changed = {"known": False, "expected": not expected, "handed_over": place.held, "settled": expected}[params["state"]]
    result = {**dataclasses.asdict(place), "healthy": keepalived.is_healthy(), "priority": params["priority"]}
    if changed and not check_mode:
        if params["state"] == "expected":
            keepalived.expect(address, place)
        elif params["state"] == "handed_over":
            keepalived.hand_over(address, place, params["successor"], params["service"])
        else:
            keepalived.settle(address, host, params["interface"])
    return {"changed": changed, **result}


if __name__ == "__main__":
    main()
