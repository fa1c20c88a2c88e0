#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Remove an app and everything it owns from a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remove
short_description: Remove an app and everything it owns from a host
version_added: 0.1.0
description:
  - Drains and stops the processes of the app and all other processes of its users. Removes its releases, logs and data,
    including files that it wrote to shared directories such as C(/tmp).
  - The user ids of the app are not reused. Locked accounts named C(retired-) and the id keep them.
  - The next run completes an interrupted removal.
  - The nginx role must have removed the site before.
options:
  name:
    description: The app.
    type: str
    required: true
  wait:
    description: Seconds to wait for another deploy of the app on this host.
    type: int
    default: 60
  certificates:
    description: Names of the certificates that other apps need. Those that no site of the host uses are removed, too.
    type: list
    elements: str
    default: []
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    support: full
    description: Lists what is removed.
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.switch
"""

EXAMPLES = r"""
- name: Remove the shop from the host
  funnel.tornado.remove:
    name: shop
"""

RETURN = r"""
removed:
  description: Files, directories and users that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [/srv/shop, /var/log/shop, user shop]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import name_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.removal import PushFiles, find_resources, remove
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.module_utils.system.accounts import AccountError


def main() -> None:
    """Remove the parts of the app that exist."""
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "wait": {"type": "int", "default": 60},
            "certificates": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    if problem := name_problem(name):
        module.fail_json(msg=problem)
    layout, push_files = Layout(name), PushFiles(policy.entry_file(name), policy.repository(name))
    certificates = module.params["certificates"]
    found = find_resources(layout, push_files, certificates)
    try:
        if found and not module.check_mode:
            layout.home.mkdir(mode=0o711, exist_ok=True)  # an interrupted removal may have deleted it
            with deploy_lock(layout, "", wait=module.params["wait"]) as note:
                note("removal")
                remove(layout, push_files, certificates)
    except (AccountError, CommandError, LockedError, OSError, SupervisorError, TreeError) as error:
        module.fail_json(msg=printable_message(f"{name} was not removed completely: {error_text(error)}; run the removal again"))
    before = "".join(f"{line}\n" for line in found)
    module.exit_json(changed=bool(found), removed=found, diff={"before": before, "after": ""} if found else {})


if __name__ == "__main__":
    main()
