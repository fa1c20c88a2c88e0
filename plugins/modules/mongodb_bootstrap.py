#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mongodb_bootstrap
short_description: See that mongod can be started, and that its data have an administrator first
description:
  - Comes before mongod's configuration is applied. Without data it makes new ones that have an administrator, so that mongod
    never listens anywhere while nobody, and so everybody, is one. Meanwhile a unix socket that only root can get at leads to it.
  - It fails if mongod could not listen on its addresses or hold as many files open, or, where it runs already, if the
    administrator's password is wrong.
version_added: 0.1.0
author: The funnel.tornado developers
options:
  program:
    description: Path of mongod.
    type: str
    required: true
  configuration:
    description: The contents of its configuration file.
    type: dict
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
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: full
"""

EXAMPLES = r"""
- name: See that there is an administrator
  funnel.tornado.mongodb_bootstrap:
    program: /usr/bin/mongod
    configuration: {net: {port: 27017}, storage: {dbPath: /var/lib/mongodb/data}}
    addresses: [127.0.0.1]
    admin_password: "{{ vault_mongodb_admin_password }}"
"""

RETURN = r""" # """

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils import service
from ansible_collections.funnel.tornado.plugins.module_utils.mongodb_client import (
    MongodbError,
    hello,
    local_address,
    working_password,
)
from ansible_collections.funnel.tornado.plugins.module_utils.mongodb_server import (
    SERVICE,
    Bootstrap,
    address_problems,
    limit_problems,
    remember_password,
    remembered_password,
)
from ansible_collections.funnel.tornado.plugins.module_utils.service import ServiceError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "str", "required": True},
            "configuration": {"type": "dict", "required": True},
            "addresses": {"type": "list", "elements": "str", "required": True},
            "open_files": {"type": "int", "default": 64000},
            "admin_password": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    bootstrap = Bootstrap(given["program"], given["configuration"], given["admin_password"])
    try:
        port = given["configuration"]["net"]["port"]
        if problems := [*address_problems(given["addresses"], port), *limit_problems(given["open_files"])]:
            module.fail_json(msg="\n".join(problems))
        needed = bootstrap.needed()
        if needed and not module.check_mode:
            bootstrap.run()
            remember_password(given["admin_password"])
        elif not needed and service.look(SERVICE).active and serves(port):
            working_password(local_address(port), [given["admin_password"], remembered_password()])
    except (MongodbError, ServiceError) as error:
        module.fail_json(msg=str(error))
    after = {"before": "", "after": "the administrator\n", "after_header": str(bootstrap.data)}
    module.exit_json(changed=needed, diff=after if needed and module._diff else {})


def serves(port: int) -> bool:
    """Say whether mongod can be asked: not at a port that it is to get only now, and not while it gets its data from a set."""
    try:
        said = hello(local_address(port))
    except MongodbError:
        return False
    return bool(said.get("isWritablePrimary") or said.get("secondary"))


if __name__ == "__main__":
    main()
