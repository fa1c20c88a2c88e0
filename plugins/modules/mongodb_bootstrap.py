#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mongodb_bootstrap
short_description: See that mongod can be started, and that its data have an administrator first
description:
  - Comes before mongod's configuration is applied. Without data it makes new ones that have an administrator, so that mongod
    never listens anywhere while nobody, and so everybody, is one. Meanwhile a unix socket that only root can get at leads to it.
  - It fails if mongod could not listen on its addresses or hold as many files open, or, where it runs already, if the
    administrator's password is wrong, if the other members of its replica set would no longer know it by its key, or if it would
    lose data of its own to those of a set.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  program:
    description: Path of mongod.
    type: str
    required: true
  configuration:
    description: The contents of its configuration file, as JSON. One text, because Ansible would log the secrets in it otherwise.
    type: str
    required: true
  addresses:
    description: Addresses that it is to listen on.
    type: list
    elements: str
    required: true
  open_files:
    description: Files that it is to hold open, which systemd would silently lower to what the host gives.
    type: int
    default: 64000
  admin_password:
    description: Password of the administrator, who is called C(admin).
    type: str
    required: true
  members:
    description: All members of its replica set, C(host:port).
    type: list
    elements: str
    default: []
  member:
    description: Which of them this host is.
    type: str
    default: ""
  key:
    description: The secret by which they know each other.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: See that there is an administrator
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
    refuse_loss,
    working_password,
)
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_server import (
    SERVICE,
    Bootstrap,
    address_problems,
    has_other_key,
    limit_problems,
    remember_password,
    remembered_password,
    was_alone,
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
    os.umask(0o022)  # whatever root's is: mongod has to pass through what is made
    given = module.params
    configuration = json.loads(given["configuration"])
    bootstrap = Bootstrap(given["program"], configuration, given["admin_password"])
    try:
        port = configuration["net"]["port"]
        if problems := [*address_problems(given["addresses"], port), *limit_problems(given["open_files"])]:
            module.fail_json(msg="\n".join(problems))
        needed = bootstrap.needed()
        if needed and not module.check_mode:
            bootstrap.run()
            remember_password(given["admin_password"])
        elif not needed:
            see_that_it_can_go_on(given, local_address(port))
    except (MongodbError, ServiceError) as error:
        module.fail_json(msg=str(error))
    after = {"before": "", "after": "the administrator\n", "after_header": str(bootstrap.data)}
    module.exit_json(changed=needed, diff=after if needed and module._diff else {})


def see_that_it_can_go_on(given: dict[str, Any], address: str) -> None:
    """See that the password, the key and the set are such that mongod keeps what it has.

    :raises MongodbError: when they are not.
    """
    said = ask(address)
    others = set(said.get("hosts", ()) if said else given["members"]) - {given["member"]}
    if has_other_key(given["key"]) and others:
        raise MongodbError(
            f"mongodb_replica_set.key: is another one than that by which {', '.join(sorted(others))} and this host know each "
            "other, and cannot be changed on one after the other; the role's README says how to change it"
        )
    # It cannot be asked while it gets its data from a set, or at a port that it is to get only now.
    serves = said.get("isWritablePrimary") or said.get("secondary")
    joins = given["members"] and was_alone()
    if serves:
        password = working_password(address, [given["admin_password"], remembered_password()])
        if joins:
            refuse_loss(address, password, given["member"], given["members"])
    elif joins:
        raise MongodbError(
            f"mongodb_replica_set: mongod does not answer at {address}, so it cannot be seen what data it would lose to those "
            "of a set; start it there, as it was, before it becomes a member"
        )


def ask(address: str) -> dict[str, Any]:
    """Return what mongod says of itself; nothing, if it does not run or answer."""
    with contextlib.suppress(MongodbError):
        if systemd.query(SERVICE).active:
            return hello(address)
    return {}


if __name__ == "__main__":
    main()
