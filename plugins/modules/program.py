#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: program
short_description: Install a program from an archive
description:
  - Extracts an executable from a tar or zip file, such as a Python wheel, to a directory below C(/opt) that is named by the hash
    of the archive, and links it in C(/usr/local/bin).
  - It must run with C(--version) before it replaces the previous version. The previous and the running version are kept, others
    are removed.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description: Name of the program in the archive.
    type: str
    required: true
  archive:
    description:
      - URL that the host downloads, or a file on the controller, which is sent only if the host lacks the program.
        A relative path is searched in the working directory, then beside the playbook.
      - Any file other than tar and zip is the program itself.
    type: str
    required: true
  checksum:
    description: Checksum of O(archive), V(sha256:...). Required for a URL.
    type: str
    default: ""
  home:
    description: Directory below C(/opt).
    type: str
    required: true
  key:
    description: Variable that contains O(archive) and O(checksum), for messages.
    type: str
    default: program
  file:
    description: The archive on the host. Reserved for the action plugin.
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
  description: Path of the executable.
  returned: success
  type: str
  sample: /opt/mongodb/8adc92a9aa4f/mongod
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
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
    os.umask(0o022)  # the user of the service must be able to run it
    params = module.params
    program = Program(params["name"], params["checksum"], Path("/opt") / params["home"], Path("/usr/local/bin") / params["name"])
    result = {"changed": not program.is_up_to_date(), "path": str(program.path), "diff": {}}
    if result["changed"] and not module.check_mode:
        from_url = "://" in params["archive"]
        if not from_url and not params["file"] and not program.path.is_file():
            module.exit_json(needs_file=True)
        try:
            program.install(params["file"] and Path(params["file"]), params["archive"], params["key"])
        except ProgramError as error:
            module.fail_json(msg=error_text(error))
    if result["changed"] and module._diff:
        result["diff"] = {"before": "", "after": f"{program.path}\n", "after_header": str(program.link)}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
