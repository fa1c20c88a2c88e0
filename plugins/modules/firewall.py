#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: firewall
short_description: Allow listed inbound traffic with nftables, and drop everything else
description:
  - Manages its own nftables table, C(inet funnel), and does not change other tables. Outbound and forwarded traffic
    is not filtered.
  - Refuses rules that would block the SSH connection that applies them.
  - Applies new rules on trial. The host rolls them back by itself unless a new connection confirms them
    within O(confirm) seconds.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  allow:
    description:
      - Traffic to allow in addition to SSH, ICMP and replies to connections of the host itself.
      - Each entry has C(port), C(protocol) (V(tcp), V(udp), or V(vrrp), which has no port), C(sources), a list of addresses
        and networks (any if unset), and C(comment).
    type: list
    elements: dict
    default: []
  ssh_port:
    description: Port of sshd.
    type: int
    default: 22
  ssh_sources:
    description: Addresses and networks from which SSH is allowed.
    type: list
    elements: str
    default: [0.0.0.0/0, "::/0"]
  state:
    description:
      - V(present) allows this traffic only.
      - V(widened) also allows what the current rules allow, for the time of a change to a fleet. A host without a firewall
        stays without one.
      - V(absent) removes the table.
    type: str
    choices: [present, widened, absent]
    default: present
  confirm:
    description: Seconds in which a new connection must confirm the rules.
    type: int
    default: 30
  connection:
    description: The current SSH connection, which must be allowed. Internal; set by the action plugin.
    type: str
    default: ""
  keep:
    description: Whether this is the new connection, which confirms the rules. Internal; set by the action plugin.
    type: bool
    default: false
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Allow SSH, HTTP, and requests of the monitoring
  funnel.tornado.firewall:
    allow:
      - {port: 80}
      - {port: 443}
      - {port: 9100, sources: [192.0.2.5], comment: Prometheus}
"""

RETURN = r"""
differs:
  description: Whether anything was changed, or would be in check mode.
  returned: success
  type: bool
rules:
  description: The rules in nft syntax.
  returned: success
  type: list
  elements: str
  sample: ['tcp dport 22 accept comment "SSH"', "ip saddr { 192.0.2.5 } tcp dport 9100 accept"]
tried:
  description: Whether the rules must be confirmed by another connection, which the action plugin does.
  returned: success
  type: bool
"""

import os
import platform
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables
from ansible_collections.funnel.tornado.plugins.module_utils.network.firewall import ANY_SOURCE, parse_rules
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSetError
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "allow": {"type": "list", "elements": "dict", "default": []},
            "ssh_port": {"type": "int", "default": 22},
            "ssh_sources": {"type": "list", "elements": "str", "default": list(ANY_SOURCE)},
            "state": {"type": "str", "choices": ["present", "widened", "absent"], "default": "present"},
            "confirm": {"type": "int", "default": 30},
            "connection": {"type": "str", "default": ""},
            "keep": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(module.params, check_mode=module.check_mode)
    except (CommandError, FileSetError, InvalidDataError, OSError, ServiceError, nftables.FirewallError) as error:
        module.fail_json(msg=error_text(error))
    if not module._diff:
        result["diff"] = []
    module.exit_json(changed=result["differs"], **result)


def apply(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Apply the rules, or confirm them; return the result of the module."""
    rules = parse_rules(params["allow"], params["ssh_port"], params["ssh_sources"])
    table = nftables.desired_table(rules, params["state"])
    if params["state"] != "absent":
        nftables.require_connection(rules, params["connection"], platform.node())
    if params["keep"]:
        nftables.confirm(table)
        return {"differs": True}
    changes = table.files.changes()
    result = {
        "differs": bool(changes) or not nftables.is_active(table),
        "rules": list(table.lines or ()),
        "tried": False,
        "diff": [change.diff() for change in changes],
    }
    if result["differs"] and table.lines is not None:
        nftables.require_valid(table)
    if result["differs"] and not check_mode:
        result["tried"] = nftables.converge(table, params["confirm"])
    return result


if __name__ == "__main__":
    main()
