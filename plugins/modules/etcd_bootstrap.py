#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_bootstrap
short_description: Bootstrap an etcd cluster or snapshot with its users before it is reachable
description:
  - Runs etcd in a network namespace that only root can enter, creates its users, and enables authentication.
  - Without O(snapshot), founds a cluster if O(data) is missing. With O(snapshot), writes a copy of the snapshot in which
    O(users) replace its users to O(target).
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description: Name of this host among the members.
    type: str
    required: true
  address:
    description: Address of this host for other members.
    type: str
    required: true
  tls:
    description: Whether members use TLS.
    type: bool
    default: false
  data:
    description: Data directory of etcd.
    type: path
    required: true
  quota:
    description: Maximum size of the data in bytes.
    type: int
    default: 2147483648
  root_password:
    description: Password of root.
    type: str
    default: ""
  users:
    description: The other users, as for M(funnel.tornado.etcd_users).
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
        description: Prefixes of keys that the user may read and write. V("") matches all keys.
        type: list
        elements: str
        required: true
  snapshot:
    description: A snapshot file that etcd can read.
    type: path
  snapshot_root_password:
    description: Password of root in O(snapshot).
    type: str
    default: ""
  target:
    description: File for the snapshot with its new users, in a directory that is owned by root.
    type: path
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Found a cluster with its users
  funnel.tornado.etcd_bootstrap:
    name: "{{ inventory_hostname }}"
    address: 10.0.0.1
    data: /var/lib/etcd/funnel
    root_password: "{{ vault_etcd_root_password }}"
"""

RETURN = r""" # """

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    USER_OPTIONS,
    Cluster,
    EtcdError,
    users_by_name,
)
from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_server import Bootstrap
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "tls": {"type": "bool", "default": False},
            "data": {"type": "path", "required": True},
            "quota": {"type": "int", "default": 2 << 30},
            "root_password": {"type": "str", "default": "", "no_log": True},
            "users": {"type": "list", "elements": "dict", "default": [], "options": USER_OPTIONS},
            "snapshot": {"type": "path"},
            "snapshot_root_password": {"type": "str", "default": "", "no_log": True},
            "target": {"type": "path"},
        },
        required_together=[("snapshot", "target")],
        supports_check_mode=True,
    )
    params = module.params
    users = users_by_name(params["users"])
    bootstrap = Bootstrap(params["name"], Path(params["data"]), params["root_password"], users, params["quota"])
    changed = params["snapshot"] is not None or not (bootstrap.data / "member").exists()
    try:
        if changed and not module.check_mode:
            if params["snapshot"] is None:
                bootstrap.found(
                    Cluster(params["name"], {params["name"]: params["address"]}, params["tls"]).peer_url(params["name"])
                )
            else:
                bootstrap.replace_users(Path(params["snapshot"]), params["snapshot_root_password"], Path(params["target"]))
    except (EtcdError, CommandError, ServiceError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
