#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Let keys push to apps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: push
short_description: Let SSH keys push to apps, and so deploy them
version_added: 0.1.0
description:
  - Makes the user C(git), which sshd lets in by the keys of C(source.keys), to push to the apps that these are for, and for
    nothing else.
  - What is pushed is built and goes live as by C(deploy.yml), with the present settings of the app; if it does not, the push
    is rejected.
  - Keys and apps that O(apps) does not have any more are taken away. Repositories stay until M(funnel.tornado.remove).
options:
  apps:
    description: The value of C(tornado_apps). Those with another source than C(push) are left aside.
    type: dict
    required: true
  entries:
    description: "Only for the controller's half of this module: the entries of O(apps) that the host has to know, as JSON."
    type: str
    default: ""
  authorized_keys:
    description: "Only for the controller's half of this module: the file that sshd reads."
    type: str
    default: ""
  program:
    description: "Only for the controller's half of this module: the program that takes a push, in Base64."
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    support: full
    description: Of the entries, which hold secrets, only that they change.
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.release
  - module: funnel.tornado.switch
"""

EXAMPLES = r"""
- name: Let the keys of the apps push to them
  funnel.tornado.push:
    apps: "{{ tornado_apps }}"
"""

RETURN = r"""
files:
  description: Files that were made or changed.
  returned: success
  type: list
  elements: str
removed:
  description: Files that were removed, such as the entry of an app that is not pushed any more.
  returned: success
  type: list
  elements: str
"""

import base64
import json
import os
import sys

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import PUSH_ENTRIES
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSet, FileSetError, converge

ARGUMENTS = {
    "apps": {"type": "dict", "required": True},
    # Texts that are secret, or would fill the host's journal, which Ansible writes a module's options to.
    "entries": {"type": "str", "default": "", "no_log": True},
    "authorized_keys": {"type": "str", "default": "", "no_log": True},
    "program": {"type": "str", "default": "", "no_log": True},
}


def main() -> None:
    """Make the user and the files, or remove the files when nothing is pushed any more."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)  # whatever root's is: sshd reads a user's keys with that user's rights
    entries = json.loads(module.params["entries"] or "{}")
    # The Python that the modules run with: on Ubuntu 22.04 python3 is too old.
    program = f"#!{sys.executable} -I\n".encode() + base64.b64decode(module.params["program"])
    files = policy.files(entries, module.params["authorized_keys"], program) if entries else []
    owns = [f"{PUSH_ENTRIES}/*.json", str(policy.AUTHORIZED_KEYS), str(policy.PROGRAM), f"{policy.HOOKS}/*", policy.SUDOERS_FILE]
    check = ["visudo", "-cf", f"{{root}}/{policy.SUDOERS_FILE}"] if entries else []
    try:
        made = bool(entries) and policy.ensure_user(check_mode=module.check_mode)
        outcome = converge(FileSet(policy.SUDOERS, files, owns), check=check, check_mode=module.check_mode)
    except (policy.PushError, FileSetError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=made or outcome.changed,
        files=outcome.files,
        removed=outcome.removed,
        diff=outcome.diff if module._diff else [],
    )


if __name__ == "__main__":
    main()
