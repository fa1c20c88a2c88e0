#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mongodb
short_description: Bootstrap mongod, and manage its replica set, administrator password and users
description:
  - With O(state=bootstrapped), to be run before the configuration of mongod is applied, creates missing data with an
    administrator, so that mongod is never reachable without authentication. Until then it listens only on a Unix socket that
    only root can access. Fails if mongod could not listen on its addresses or open as many files, or, if it is running already,
    if the administrator password is wrong, if the key differs from that of the other members of its replica set, or if it would
    lose its own data by joining a replica set.
  - With O(state=present), manages a running mongod. Initiates the replica set on its first member, adds each further member,
    and waits until this member is in sync. Sets the administrator password; if it has changed, the host logs in with the stored
    one in C(/etc/mongodb/admin.password), which only root can read. Creates users, and changes their roles and passwords;
    removes only undesired users that it has created itself, and warns of all others. Requires C(python3-pymongo) on the host.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  state:
    description: V(bootstrapped) before the configuration of mongod is applied, V(present) after it was started.
    type: str
    choices: [bootstrapped, present]
    default: present
  admin_password:
    description: Password of the administrator, the user C(admin).
    type: str
    required: true
  members:
    description: All members of the replica set, C(host:port). The first one initiates it.
    type: list
    elements: str
    default: []
  member:
    description: This host as in O(members).
    type: str
    default: ""
  program:
    description: Path of mongod, for O(state=bootstrapped).
    type: str
  configuration:
    description:
      - Contents of its configuration file as JSON, for O(state=bootstrapped).
      - It is a string so that Ansible does not log the secrets in it.
    type: str
  addresses:
    description: Addresses to listen on, for O(state=bootstrapped).
    type: list
    elements: str
  open_files:
    description: Limit of open files, which systemd would silently reduce to the maximum of the host.
    type: int
    default: 64000
  key:
    description: The shared key that authenticates the members.
    type: str
    default: ""
  port:
    description: Port of mongod.
    type: int
    default: 27017
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
  wait:
    description: Timeout in seconds until the replica set has a primary and this member is in sync.
    type: int
    default: 120
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    description: Shows the administrator, users with their roles, and members; never a password.
    support: full
"""

EXAMPLES = r"""
- name: Bootstrap mongod with an administrator
  funnel.tornado.mongodb:
    state: bootstrapped
    program: /usr/bin/mongod
    configuration: "{{ {'net': {'port': 27017}, 'storage': {'dbPath': '/var/lib/mongodb/data'}} | to_json }}"
    addresses: [127.0.0.1]
    admin_password: "{{ vault_mongodb_admin_password }}"

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
import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_client import (
    Changes,
    MongodbError,
    ReplicaSet,
    connect,
    converge_users,
    describe,
    hello,
    local_address,
    require_no_data_loss,
    working_password,
    wrap_errors,
)
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import ADMIN
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_server import (
    SERVICE,
    Bootstrap,
    address_problems,
    differs_from_key,
    is_standalone,
    limit_problems,
    store_password,
    stored_password,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["bootstrapped", "present"], "default": "present"},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "members": {"type": "list", "elements": "str", "default": []},
            "member": {"type": "str", "default": ""},
            "program": {"type": "str"},
            "configuration": {"type": "str", "no_log": True},
            "addresses": {"type": "list", "elements": "str"},
            "open_files": {"type": "int", "default": 64000},
            "key": {"type": "str", "default": "", "no_log": True},
            "port": {"type": "int", "default": 27017},
            "users": {"type": "dict", "default": {}},
            "passwords": {"type": "dict", "default": {}, "no_log": True},
            "replica_set": {"type": "str", "default": ""},
            "wait": {"type": "int", "default": 120},
        },
        required_if=[("state", "bootstrapped", ["program", "configuration", "addresses"])],
        supports_check_mode=True,
    )
    unmanaged: list[str] = []
    try:
        if module.params["state"] == "bootstrapped":
            changes = bootstrap(module.params, check_mode=module.check_mode)
        elif systemd.query(SERVICE).active:
            changes, unmanaged = manage(module.params, check_mode=module.check_mode)
        elif module.check_mode:
            changes = initial_changes(module.params)
        else:
            module.fail_json(msg=f"mongod is not running on this host; see systemctl status {SERVICE}")
    except (MongodbError, ServiceError) as error:
        module.fail_json(msg=str(error))
    for user in unmanaged:
        module.warn(f"mongodb_users: does not list the {user}; if it is not needed, remove it with dropUser")
    diff = {"before": "".join(changes.before), "after": "".join(changes.after)}
    module.exit_json(changed=changes.changed, diff=diff if changes.changed and module._diff else {})


def bootstrap(params: dict[str, Any], *, check_mode: bool) -> Changes:
    """Create missing data with an administrator, or check that existing data can be kept.

    :raises MongodbError: if mongod could not start with the desired configuration, or would lose data.
    """
    os.umask(0o022)  # mongod needs access to created directories, whatever the umask of root
    configuration = json.loads(params["configuration"])
    port = configuration["net"]["port"]
    if problems := [*address_problems(params["addresses"], port), *limit_problems(params["open_files"])]:
        raise MongodbError("\n".join(problems))
    created = Bootstrap(params["program"], configuration, params["admin_password"])
    if not created.needed():
        require_continuity(params, local_address(port))
        return Changes([], [])
    if not check_mode:
        created.run()
        store_password(params["admin_password"])
    return Changes([], [f"the administrator in {created.data}\n"])


def require_continuity(params: dict[str, Any], address: str) -> None:
    """Require that password, key and replica set allow the existing mongod to keep its data.

    :raises MongodbError: if they do not.
    """
    state = query(address)
    others = set(state.get("hosts", ()) if state else params["members"]) - {params["member"]}
    if differs_from_key(params["key"]) and others:
        raise MongodbError(
            f"mongodb_replica_set.key: differs from the key that this host shares with {', '.join(sorted(others))}, and cannot "
            "be changed one member at a time; for the procedure, see the README of the role"
        )
    # mongod does not answer during its initial sync, or if the port is new.
    serving = state.get("isWritablePrimary") or state.get("secondary")
    joining = params["members"] and is_standalone()
    if serving:
        password = working_password(address, [params["admin_password"], stored_password()])
        if joining:
            require_no_data_loss(address, password, params["member"], params["members"])
    elif joining:
        raise MongodbError(
            f"mongodb_replica_set: mongod does not answer at {address}, so the data that it would lose by joining the replica "
            "set is unknown; start it there with its previous configuration first"
        )


def query(address: str) -> dict[str, Any]:
    """Return the result of ``hello``; empty if mongod is not running or does not answer."""
    with contextlib.suppress(MongodbError):
        if systemd.query(SERVICE).active:
            return hello(address)
    return {}


def initial_changes(params: dict[str, Any]) -> Changes:
    """Return the changes in check mode on a host where an earlier task would have started mongod."""
    members = [f"member {params['member']}\n"] if params["replica_set"] else []
    return Changes([], [*members, *(f"{describe(name, user)}\n" for name, user in params["users"].items())])


def manage(params: dict[str, Any], *, check_mode: bool) -> tuple[Changes, list[str]]:
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
