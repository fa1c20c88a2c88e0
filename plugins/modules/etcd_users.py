#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_users
short_description: Say who may read and write what in etcd
description:
  - Makes root and O(users) all the users there are, each with a role of its own name alone, and has etcd ask for passwords.
  - A password is only sent to O(url) while etcd runs on this host, as anybody here could listen there otherwise.
  - Without O(root_password) and O(users) nothing is done, and whoever reaches etcd may do everything.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  root_password:
    description: Password of root, which O(users) go with.
    type: str
    default: ""
  users:
    description: The other users.
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
  url:
    description: Where etcd is reached.
    type: str
    default: http://127.0.0.1:2379
  ca:
    description: Certificate, in PEM, that has signed etcd's.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Let the shop have its own keys
  funnel.tornado.etcd_users:
    root_password: "{{ vault_etcd_root_password }}"
    users:
      - {name: shop, password: "{{ vault_etcd_shop_password }}", prefixes: [/shop/]}
"""

RETURN = r"""
done:
  description: What was done, or would be.
  returned: success
  type: list
  elements: str
  sample: [add user shop, give shop its role]
revoked:
  description:
    - Another value each time that a user has lost a permission, or that etcd was told to ask for passwords while others
      reached it; empty before the first time.
    - etcd asks for permissions when a watch is opened, and never again; a restart of each member ends it.
  returned: success
  type: str
  sample: 5f0c1d2e3a4b5c6d
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    Applied,
    Client,
    EtcdError,
    UnreachableError,
    User,
    apply_users,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

USER = {
    "name": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "prefixes": {"type": "list", "elements": "str", "required": True},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root_password": {"type": "str", "default": "", "no_log": True},
            "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
            "url": {"type": "str", "default": "http://127.0.0.1:2379"},
            "ca": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    users = {user["name"]: User(user["password"], user["prefixes"]) for user in given["users"]}
    try:
        require_etcd()
        applied = apply_users(Client(given["url"], given["ca"]), given["root_password"], users, check_mode=module.check_mode)
    except UnreachableError as error:
        if not module.check_mode:  # what an earlier task would have started has no users yet
            module.fail_json(msg=str(error))
        applied = Applied([f"add user {name}" for name in ("root", *users)] if given["root_password"] else [])
    except (EtcdError, ServiceError) as error:
        module.fail_json(msg=str(error))
    done = list(applied.done)
    diff = {"before": "", "after": "".join(f"{change}\n" for change in done)}
    module.exit_json(changed=bool(done), done=done, revoked=applied.revoked, diff=diff if module._diff else {})


def require_etcd() -> None:
    """See that etcd runs: while it does not, anybody on this host could listen at its port, and be told the password.

    :raises UnreachableError: when it does not.
    """
    if not systemd.query("etcd").active:
        raise UnreachableError("etcd does not run on this host; see systemctl status etcd")


if __name__ == "__main__":
    main()
