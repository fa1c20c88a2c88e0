#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_users
short_description: Manage the users of etcd and their permissions
description:
  - Creates root and O(users), each with a single role of its own name, removes all other users, and enables authentication.
  - Sends a password to O(url) only while etcd is running on this host, because otherwise any local process could listen there.
  - Without O(root_password) and O(users) nothing is changed, and every client of etcd has full access.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  root_password:
    description: Password of root, required for O(users).
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
        description: Prefixes of keys that the user may read and write. V("") matches all keys.
        type: list
        elements: str
        required: true
  url:
    description: URL of etcd.
    type: str
    default: http://127.0.0.1:2379
  ca:
    description: PEM certificate of the authority that issued the certificate of etcd.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Grant the shop access to its own keys
  funnel.tornado.etcd_users:
    root_password: "{{ vault_etcd_root_password }}"
    users:
      - {name: shop, password: "{{ vault_etcd_shop_password }}", prefixes: [/shop/]}
"""

RETURN = r"""
done:
  description: Changes that were made, or would be.
  returned: success
  type: list
  elements: str
  sample: [add user shop, grant shop its role]
revoked:
  description:
    - A value that changes whenever a permission is revoked, or authentication is enabled while clients can connect;
      initially empty.
    - etcd checks permissions only when a watch is opened; restart each member to end the open watches.
  returned: success
  type: str
  sample: 5f0c1d2e3a4b5c6d
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    USER_OPTIONS,
    Client,
    EtcdError,
    UnreachableError,
    UserChanges,
    apply_users,
    users_by_name,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "root_password": {"type": "str", "default": "", "no_log": True},
            "users": {"type": "list", "elements": "dict", "default": [], "options": USER_OPTIONS},
            "url": {"type": "str", "default": "http://127.0.0.1:2379"},
            "ca": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    users = users_by_name(params["users"])
    try:
        require_running_etcd()
        changes = apply_users(Client(params["url"], params["ca"]), params["root_password"], users, check_mode=module.check_mode)
    except UnreachableError as error:
        if not module.check_mode:  # an earlier task would have started etcd, without users
            module.fail_json(msg=str(error))
        changes = UserChanges([f"add user {name}" for name in ("root", *users)] if params["root_password"] else [])
    except (EtcdError, ServiceError) as error:
        module.fail_json(msg=str(error))
    done = list(changes.done)
    diff = {"before": "", "after": "".join(f"{change}\n" for change in done)}
    module.exit_json(changed=bool(done), done=done, revoked=changes.revoked, diff=diff if module._diff else {})


def require_running_etcd() -> None:
    """Require that etcd is running; otherwise any process on this host could listen on its port and receive the password.

    :raises UnreachableError: if it is not.
    """
    if not systemd.query("etcd").active:
        raise UnreachableError("etcd is not running on this host; see systemctl status etcd")


if __name__ == "__main__":
    main()
