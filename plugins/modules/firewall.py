#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: firewall
short_description: Let in what a host has to, and drop everything else
description:
  - Keeps a table of nftables of its own, C(inet funnel), and leaves those of others alone. What goes out and what is forwarded
    is not its business.
  - Rules that would not let in the SSH connection by which they are set are refused.
  - New rules are tried before they are kept. The host takes them back by itself, unless it has been reached by a new connection
    within O(confirm) seconds.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  allow:
    description:
      - What is let in, beside SSH, ICMP and what belongs to connections of the host itself.
      - C(port), C(protocol) (V(tcp), V(udp), or V(vrrp), which has no port), C(sources), a list of addresses and networks, or
        everybody if unset, and C(comment).
    type: list
    elements: dict
    default: []
  ssh_port:
    description: Port of sshd.
    type: int
    default: 22
  ssh_sources:
    description: Addresses and networks that SSH is let in from.
    type: list
    elements: str
    default: [0.0.0.0/0, "::/0"]
  state:
    description:
      - V(present) lets in this, and nothing else.
      - V(widened) lets in what was let in before, too, for as long as a fleet is being changed. Where there is no firewall, there
        goes on to be none.
      - V(absent) takes the table away.
    type: str
    choices: [present, widened, absent]
    default: present
  confirm:
    description: Seconds within which a new connection has to come.
    type: int
    default: 30
  connection:
    description: The connection that has to be let in. The action plugin fills it; do not use it.
    type: str
    default: ""
  keep:
    description: Whether this is the new connection. The action plugin fills it; do not use it.
    type: bool
    default: false
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Let in SSH, HTTP, and what the monitoring asks
  funnel.tornado.firewall:
    allow:
      - {port: 80}
      - {port: 443}
      - {port: 9100, sources: [192.0.2.5], comment: Prometheus}
"""

RETURN = r"""
differs:
  description: Whether anything was different, or is, in check mode.
  returned: success
  type: bool
rules:
  description: What is let in, as nft has it.
  returned: success
  type: list
  elements: str
  sample: ['tcp dport 22 accept comment "SSH"', "ip saddr { 192.0.2.5 } tcp dport 9100 accept"]
tried:
  description: Whether the rules have to be confirmed by another connection; the action plugin does so.
  returned: success
  type: bool
"""

import platform
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables
from ansible_collections.funnel.tornado.plugins.module_utils.network.firewall import ANY_SOURCE, parse_rules
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSetError
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
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
        module.fail_json(msg=str(error))
    if not module._diff:
        result["diff"] = []
    module.exit_json(changed=result["differs"], **result)


def apply(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Return the module's result."""
    rules = parse_rules(params["allow"], params["ssh_port"], params["ssh_sources"])
    table = nftables.desired_table(rules, params["state"])
    if params["state"] != "absent":
        nftables.require_connection(rules, params["connection"], platform.node())
    if params["keep"]:
        nftables.keep(table)
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
