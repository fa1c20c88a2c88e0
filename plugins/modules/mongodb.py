#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mongodb
short_description: Manage the replica set, the administrator password and the users of a running mongod
description:
  - Initiates the replica set on its first member, and adds each further member; waits until this member is in sync.
  - Sets the administrator password. If it has changed, the host logs in with the stored one in
    C(/etc/mongodb/admin.password), which only root can read.
  - Creates users, and changes their roles and passwords, while mongod is running. Removes only undesired users that
    it has created itself, and warns of all others.
  - Requires C(python3-pymongo) on the host.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  port:
    description: Port of mongod.
    type: int
    default: 27017
  admin_password:
    description: Password of the administrator, the user C(admin).
    type: str
    required: true
  users:
    description: The users by name, each with C(database) and C(roles), a list of C(role) and C(db).
    type: dict
    default: {}
  passwords:
    description: Passwords of the users, by name.
    type: dict
    default: {}
  replica_set:
    description: Name of the replica set; none if empty.
    type: str
    default: ""
  members:
    description: All members of the replica set, C(host:port). The first one initiates it.
    type: list
    elements: str
    default: []
  member:
    description: This host as in O(members).
    type: str
    default: ""
  wait:
    description: Timeout in seconds until the replica set has a primary and this member is in sync.
    type: int
    default: 120
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    description: Shows users with their roles, and members; never a password.
    support: full
"""

EXAMPLES = r"""
- name: Manage the users
  funnel.tornado.mongodb:
    admin_password: "{{ vault_mongodb_admin_password }}"
    users:
      notes: {database: notes, roles: [{role: readWrite, db: notes}]}
    passwords:
      notes: "{{ vault_notes_password }}"
"""

RETURN = r""" # """

import contextlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_client import (
    Changes,
    MongodbError,
    ReplicaSet,
    connect,
    converge_users,
    describe,
    local_address,
    working_password,
    wrap_errors,
)
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import ADMIN
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_server import (
    SERVICE,
    store_password,
    stored_password,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "default": 27017},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "users": {"type": "dict", "default": {}},
            "passwords": {"type": "dict", "default": {}, "no_log": True},
            "replica_set": {"type": "str", "default": ""},
            "members": {"type": "list", "elements": "str", "default": []},
            "member": {"type": "str", "default": ""},
            "wait": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        if systemd.query(SERVICE).active:
            changes, unmanaged = converge(module.params, check_mode=module.check_mode)
            for user in unmanaged:
                module.warn(f"mongodb_users: does not list the {user}; if it is not needed, remove it with dropUser")
        elif module.check_mode:
            changes = initial_changes(module.params)
        else:
            module.fail_json(msg=f"mongod is not running on this host; see systemctl status {SERVICE}")
    except (MongodbError, ServiceError) as error:
        module.fail_json(msg=str(error))
    diff = {"before": "".join(changes.before), "after": "".join(changes.after)}
    module.exit_json(changed=changes.changed, diff=diff if changes.changed and module._diff else {})


def initial_changes(params: dict[str, Any]) -> Changes:
    """Return the changes in check mode on a host where an earlier task would have started mongod."""
    members = [f"member {params['member']}\n"] if params["replica_set"] else []
    return Changes([], [*members, *(f"{describe(name, user)}\n" for name, user in params["users"].items())])


def converge(params: dict[str, Any], *, check_mode: bool) -> tuple[Changes, list[str]]:
    """Apply the desired state; return the changes and descriptions of unmanaged users."""
    changes = Changes([], [])
    primary = local = local_address(params["port"])
    passwords = [params["admin_password"], stored_password()]
    if params["replica_set"]:
        replica_set = ReplicaSet(
            params["replica_set"], params["members"], params["member"], local, passwords, wait=params["wait"]
        )
        replica_set.converge(changes, check_mode=check_mode)
        if check_mode and changes.changed:
            return changes, []
        primary = replica_set.primary()
    password = working_password(primary, passwords)
    with contextlib.closing(connect(primary, login=(ADMIN, password, "admin"))) as client:
        if password != params["admin_password"]:
            changes.before.append("user admin\n")
            changes.after.append("user admin, with a new password\n")
            if not check_mode:
                with wrap_errors("mongodb_admin_password cannot be changed"):
                    client.admin.command("updateUser", ADMIN, pwd=params["admin_password"])
                store_password(params["admin_password"])  # immediately: later steps may fail, and backups need it
        unmanaged = converge_users(client, primary, params["users"], params["passwords"], changes, check_mode=check_mode)
    if store_password(params["admin_password"], check_mode=check_mode) and not changes.changed:
        changes.after.append("the stored administrator password\n")
    return changes, unmanaged


if __name__ == "__main__":
    main()
