#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Authorize SSH keys to push to apps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: push
short_description: Authorize SSH keys to deploy apps by git push
version_added: 0.1.0
description:
  - Creates the user C(git), and authorizes the keys in C(source.keys) to push to their apps, and nothing else.
  - A push is built and goes live as with C(deploy.yml), with the current settings of the app, or is rejected.
  - Keys and apps that are no longer in O(apps) are removed. Repositories stay until M(funnel.tornado.remove).
options:
  apps:
    description: The value of C(tornado_apps). Apps with another source than C(push) are ignored.
    type: dict
    required: true
  entries:
    description: Set by the action plugin to the entries of O(apps) that can be pushed to, as JSON.
    type: str
    default: ""
  authorized_keys:
    description: Set by the action plugin to the authorized_keys file.
    type: str
    default: ""
  program:
    description: Set by the action plugin to the program that receives pushes, in Base64.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    support: full
    description: For the entries, which contain secrets, only the fact that they change.
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.release
  - module: funnel.tornado.switch
"""

EXAMPLES = r"""
- name: Authorize the keys of the apps
  funnel.tornado.push:
    apps: "{{ tornado_apps }}"
"""

RETURN = r"""
files:
  description: Files that were created or changed.
  returned: success
  type: list
  elements: str
removed:
  description: Files that were removed, such as the entry of an app that no longer accepts pushes.
  returned: success
  type: list
  elements: str
"""

import base64
import json
import os
import sys

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import PUSH_ENTRIES
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSet, FileSetError, converge

ARGUMENTS = {
    "apps": {"type": "dict", "required": True},
    # Secrets, and texts that are too long for the journal of the host, where Ansible logs the options.
    "entries": {"type": "str", "default": "", "no_log": True},
    "authorized_keys": {"type": "str", "default": "", "no_log": True},
    "program": {"type": "str", "default": "", "no_log": True},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)  # sshd reads the keys with the permissions of the user
    entries = json.loads(module.params["entries"] or "{}")
    # The Python of the modules, because python3 of Ubuntu 22.04 is too old.
    program = f"#!{sys.executable} -IXutf8\n".encode() + base64.b64decode(module.params["program"])
    files = policy.configuration_files(entries, module.params["authorized_keys"], program) if entries else []
    owns = [f"{PUSH_ENTRIES}/*.json", str(policy.AUTHORIZED_KEYS), str(policy.PROGRAM), f"{policy.HOOKS}/*", policy.SUDOERS_FILE]
    check = ["visudo", "-cf", f"{{root}}/{policy.SUDOERS_FILE}"] if entries else []
    try:
        created = bool(entries) and policy.ensure_user(check_mode=module.check_mode)
        result = converge(FileSet(policy.SUDOERS, files, owns), check=check, check_mode=module.check_mode)
    except (policy.PushError, FileSetError) as error:
        module.fail_json(msg=error_text(error))
    module.exit_json(
        changed=created or result.changed,
        files=result.files,
        removed=result.removed,
        diff=result.diff if module._diff else [],
    )


if __name__ == "__main__":
    main()
