#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_bootstrap
short_description: Give data of etcd their users before anybody is served by them
description:
  - Runs etcd in a network of its own, which only root can enter, gives it its users, and has it ask for passwords.
  - Without O(snapshot) it founds a cluster, unless there are data. With O(snapshot) it writes what that holds, with O(users)
    instead of the users of the snapshot, to O(target).
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description: Name of this host among the members.
    type: str
    required: true
  address:
    description: Address at which other members reach this one.
    type: str
    required: true
  tls:
    description: Whether members speak TLS.
    type: bool
    default: false
  data:
    description: Directory of etcd's data.
    type: path
    required: true
  quota:
    description: Bytes that the data may grow to.
    type: int
    default: 2147483648
  root_password:
    description: Password of root.
    type: str
    default: ""
  users:
    description: The other users, as of M(funnel.tornado.etcd_users).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user, and of its role.
        type: str
        required: true
      password:
        description: Password of the user.
        type: str
        required: true
      prefixes:
        description: What the keys begin with that the user may read and write. Everything begins with V("").
        type: list
        elements: str
        required: true
  snapshot:
    description: A snapshot, a file that etcd may read.
    type: path
  snapshot_root_password:
    description: Password of root in O(snapshot).
    type: str
    default: ""
  target:
    description: Where what O(snapshot) holds is written with its new users; a directory that is root's.
    type: path
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Found a cluster that has its users
  funnel.tornado.etcd_bootstrap:
    name: "{{ inventory_hostname }}"
    address: 10.0.0.1
    data: /var/lib/etcd/funnel
    root_password: "{{ vault_etcd_root_password }}"
"""

RETURN = r""" # """

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import Cluster, EtcdError, User
from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_server import Bootstrap
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

USER = {
    "name": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "prefixes": {"type": "list", "elements": "str", "required": True},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "tls": {"type": "bool", "default": False},
            "data": {"type": "path", "required": True},
            "quota": {"type": "int", "default": 2 << 30},
            "root_password": {"type": "str", "default": "", "no_log": True},
            "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
            "snapshot": {"type": "path"},
            "snapshot_root_password": {"type": "str", "default": "", "no_log": True},
            "target": {"type": "path"},
        },
        required_together=[("snapshot", "target")],
        supports_check_mode=True,
    )
    given = module.params
    users = {user["name"]: User(user["password"], user["prefixes"]) for user in given["users"]}
    bootstrap = Bootstrap(given["name"], Path(given["data"]), given["root_password"], users, given["quota"])
    needed = given["snapshot"] is not None or not (bootstrap.data / "member").exists()
    try:
        if needed and not module.check_mode:
            if given["snapshot"] is None:
                bootstrap.found(Cluster(given["name"], {given["name"]: given["address"]}, given["tls"]).peer_url(given["name"]))
            else:
                bootstrap.give_users(Path(given["snapshot"]), given["snapshot_root_password"], Path(given["target"]))
    except (EtcdError, CommandError, ServiceError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=needed)


if __name__ == "__main__":
    main()
