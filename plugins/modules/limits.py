#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: limits
short_description: Raise the limits of open files and of pending connections
description:
  - Sets the limit of open files for logins (limits.d) and for services (a drop-in with C(LimitNOFILE)), the listen backlog
    C(net.core.somaxconn), and C(fs.file-max) if it is too low.
  - Values that the host does not allow are reported before anything is written, with its maximum.
  - Limits of running services are raised with C(prlimit), without a restart, which also corrects drift.
  - The host is not contacted if the variable C(__funnel_host_state), the RV(funnel.tornado.preflight#module:host_state) of a
    check in the same run, shows that everything is up to date.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  open_files:
    description: Maximum of open files, including sockets, of a process.
    type: int
    required: true
  backlog:
    description: Maximum of pending connections of a listening socket. A higher setting of the host is kept.
    type: int
    default: 4096
  services:
    description: Names of systemd services. They need not be installed yet.
    type: list
    elements: str
    default: []
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Allow nginx 50,000 open files
  funnel.tornado.limits:
    open_files: 50000
    services: [nginx]
"""

RETURN = r"""
files:
  description: Paths that were or would be written; below C(/proc) for the kernel and for running processes.
  returned: success
  type: list
  elements: str
  sample: [/etc/sysctl.d/50-funnel.conf, /proc/812/limits]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSetError
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import ARGUMENTS, Limits, LimitsError, apply
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = apply(Limits(**module.params), check_mode=module.check_mode)
    except (LimitsError, FileSetError, ServiceError, OSError) as error:
        module.fail_json(msg=error_text(error))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(changed=result.changed, files=result.files, diff=result.diff if module._diff else [])


if __name__ == "__main__":
    main()
