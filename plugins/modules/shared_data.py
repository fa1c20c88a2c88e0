#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Back up or restore the shared data of an app."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shared_data
short_description: Back up or restore the shared data of an app
version_added: 0.1.0
description:
  - A backup is the file C(/var/backups/apps/<app>/<time>.tar) on the host with the paths of C(shared), except those with
    C(backup) set to false. It is created while the app runs. The copies of SQLite databases are consistent.
  - A restore unpacks a backup beside the data, stops the processes of the app, exchanges the data and starts the processes.
    Meanwhile the app is in maintenance mode. Paths that the backup lacks stay.
  - Files are read and written with the permissions of the app's user.
options:
  name:
    description: The app, which must be live on the host.
    type: str
    required: true
  state:
    description: Whether a backup is created or restored.
    type: str
    choices: [backed_up, restored]
    required: true
  backup:
    description: Name of the backup to restore, or V(latest). C(.given.tar) is a file that was copied to the directory.
    type: str
    default: latest
  force:
    description: Whether a restore replaces existing data.
    type: bool
    default: false
  keep:
    description: Number of backups that stay on the host.
    type: int
    default: 7
  wait:
    description: Seconds to wait for a deploy of the app on this host.
    type: int
    default: 60
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode:
    support: full
    description: Changes nothing, and reports that a backup or restore would.
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.release
"""

EXAMPLES = r"""
- name: Back up the uploads and the database of the shop
  funnel.tornado.shared_data:
    name: shop
    state: backed_up
"""

RETURN = r"""
path:
  description: The file of the new backup.
  returned: with O(state=backed_up), except in check mode
  type: str
  sample: /var/backups/apps/shop/2026-11-28T03-00-00Z.tar
restored:
  description: The restored paths.
  returned: with O(state=restored), except in check mode
  type: list
  elements: str
  sample: [media]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import name_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroupError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.shared_backup import Backups
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError
from ansible_collections.funnel.tornado.plugins.module_utils.system.shared_data import SharedDataError

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["backed_up", "restored"], "required": True},
    "backup": {"type": "str", "default": "latest"},
    "force": {"type": "bool", "default": False},
    "keep": {"type": "int", "default": 7},
    "wait": {"type": "int", "default": 60},
}


def main() -> None:
    """Create or restore a backup, unless in check mode."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)
    given = module.params
    if problem := name_problem(given["name"]):
        module.fail_json(msg=problem)
    if given["keep"] < 1:
        module.fail_json(msg=f"keep: must be at least 1; found {given['keep']}")
    layout = Layout(given["name"])
    try:
        backups = Backups(layout)
        if module.check_mode:
            module.exit_json(changed=True)
        with backups.locked():
            if given["state"] == "backed_up":
                module.exit_json(changed=True, path=str(backups.create(given["keep"])))
            with deploy_lock(layout, "", wait=given["wait"]) as note:
                note("the restore of shared data")
                module.exit_json(changed=True, restored=backups.restore(given["backup"], force=given["force"]))
    except (LockedError, OSError, ProcessGroupError, SharedDataError, SupervisorError) as error:
        module.fail_json(msg=printable_message(f"{layout.app}: {error_text(error)}"))


if __name__ == "__main__":
    main()
