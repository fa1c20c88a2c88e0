#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mongodb_bootstrap
short_description: Check that mongod can start, and bootstrap new data with an administrator
description:
  - Run before the configuration of mongod is applied. If there is no data, creates it with an administrator, so that mongod
    is never reachable without authentication; until then it listens only on a Unix socket that only root can access.
  - Fails if mongod could not listen on its addresses or open as many files, or, if it is running already, if the
    administrator password is wrong, if the key differs from that of the other members of its replica set, or if it would
    lose its own data by joining a replica set.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  program:
    description: Path of mongod.
    type: str
    required: true
  configuration:
    description: Contents of its configuration file as JSON. It is a string so that Ansible does not log the secrets in it.
    type: str
    required: true
  addresses:
    description: Addresses to listen on.
    type: list
    elements: str
    required: true
  open_files:
    description: Limit of open files, which systemd would silently reduce to the maximum of the host.
    type: int
    default: 64000
  admin_password:
    description: Password of the administrator, the user C(admin).
    type: str
    required: true
  members:
    description: All members of the replica set, C(host:port).
    type: list
    elements: str
    default: []
  member:
    description: This host as in O(members).
    type: str
    default: ""
  key:
    description: The shared key that authenticates the members.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Bootstrap mongod with an administrator
  funnel.tornado.mongodb_bootstrap:
    program: /usr/bin/mongod
    configuration: "{{ {'net': {'port': 27017}, 'storage': {'dbPath': '/var/lib/mongodb/data'}} | to_json }}"
    addresses: [127.0.0.1]
    admin_password: "{{ vault_mongodb_admin_password }}"
"""

RETURN = r""" # """

import contextlib
import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_client import (
    MongodbError,
    hello,
    local_address,
    require_no_data_loss,
    working_password,
)
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
            "program": {"type": "str", "required": True},
            "configuration": {"type": "str", "required": True, "no_log": True},
            "addresses": {"type": "list", "elements": "str", "required": True},
            "open_files": {"type": "int", "default": 64000},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "members": {"type": "list", "elements": "str", "default": []},
            "member": {"type": "str", "default": ""},
            "key": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # mongod needs access to created directories, whatever the umask of root
    params = module.params
    configuration = json.loads(params["configuration"])
    bootstrap = Bootstrap(params["program"], configuration, params["admin_password"])
    try:
        port = configuration["net"]["port"]
        if problems := [*address_problems(params["addresses"], port), *limit_problems(params["open_files"])]:
            module.fail_json(msg="\n".join(problems))
        needed = bootstrap.needed()
        if needed and not module.check_mode:
            bootstrap.run()
            store_password(params["admin_password"])
        elif not needed:
            require_continuity(params, local_address(port))
    except (MongodbError, ServiceError) as error:
        module.fail_json(msg=str(error))
    diff = {"before": "", "after": "the administrator\n", "after_header": str(bootstrap.data)}
    module.exit_json(changed=needed, diff=diff if needed and module._diff else {})


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


if __name__ == "__main__":
    main()
