#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mongodb
short_description: Keep the replica set, the administrator's password and the users of a running mongod
description:
  - Begins the replica set on its first member, and lets each further one join; waits until the member has all data.
  - Gives the administrator its password. If that is another one than before, the host logs in with the one it remembers, in
    C(/etc/mongodb/admin.password), which only root can read.
  - Makes users, and changes their roles and passwords, while mongod runs. Of those that are not wanted it removes only the ones
    that it has made, and warns of all others.
  - Needs C(python3-pymongo) on the host.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  port:
    description: Port of mongod.
    type: int
    default: 27017
  admin_password:
    description: Password of the administrator, who is called C(admin).
    type: str
    required: true
  users:
    description: The users by name, each with C(database) and C(roles), a list of C(role) and C(db).
    type: dict
    default: {}
  passwords:
    description: Their passwords, by name.
    type: dict
    default: {}
  replica_set:
    description: Name of the replica set; none if empty.
    type: str
    default: ""
  members:
    description: All members of the set, C(host:port). The first one begins it.
    type: list
    elements: str
    default: []
  member:
    description: Which of them this host is.
    type: str
    default: ""
  wait:
    description: Seconds in which the set has to have a primary, and this member all data.
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
- name: Keep the users
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
    explained,
    local_address,
    working_password,
)
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import ADMIN
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_server import (
    SERVICE,
    remember_password,
    remembered_password,
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
            changes, others = converge(module.params, check_mode=module.check_mode)
            for user in others:
                module.warn(f"mongodb_users: does not have the {user}; if nobody needs it, remove it with dropUser")
        elif module.check_mode:
            changes = all_new(module.params)
        else:
            module.fail_json(msg=f"mongod does not run on this host; see systemctl status {SERVICE}")
    except (MongodbError, ServiceError) as error:
        module.fail_json(msg=str(error))
    diff = {"before": "".join(changes.before), "after": "".join(changes.after)}
    module.exit_json(changed=changes.changed, diff=diff if changes.changed and module._diff else {})


def all_new(given: dict[str, Any]) -> Changes:
    """Return what there will be on a host whose mongod an earlier task would have started."""
    members = [f"member {given['member']}\n"] if given["replica_set"] else []
    return Changes([], [*members, *(f"{describe(name, user)}\n" for name, user in given["users"].items())])


def converge(given: dict[str, Any], *, check_mode: bool) -> tuple[Changes, list[str]]:
    """Return the changes, and the users that somebody else has made."""
    changes = Changes([], [])
    primary = local = local_address(given["port"])
    passwords = [given["admin_password"], remembered_password()]
    if given["replica_set"]:
        members = ReplicaSet(given["replica_set"], given["members"], given["member"], local, passwords, wait=given["wait"])
        members.converge(changes, check_mode=check_mode)
        if check_mode and changes.changed:
            return changes, []
        primary = members.primary()
    password = working_password(primary, passwords)
    with contextlib.closing(connect(primary, login=(ADMIN, password, "admin"))) as client:
        if password != given["admin_password"]:
            changes.before.append("user admin\n")
            changes.after.append("user admin, with another password\n")
            if not check_mode:
                with explained("mongodb_admin_password cannot be changed"):
                    client.admin.command("updateUser", ADMIN, pwd=given["admin_password"])
                remember_password(given["admin_password"])  # at once, as what follows may fail, and backups log in with it
        others = converge_users(client, primary, given["users"], given["passwords"], changes, check_mode=check_mode)
    if remember_password(given["admin_password"], check_mode=check_mode) and not changes.changed:
        changes.after.append("the administrator's password on this host\n")
    return changes, others


if __name__ == "__main__":
    main()
