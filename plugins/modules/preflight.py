#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Check the apps against the model and the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Refuse mistakes in tornado_apps before anything has changed
version_added: 0.1.0
description:
  - Checks every entry of C(tornado_apps) on the controller, then against what the host has, and fails with all mistakes in
    one message, each with its path and what would be right. Changes nothing.
options:
  apps:
    description: The value of C(tornado_apps).
    type: dict
    required: true
  names:
    description: Apps that have to be among them.
    type: list
    elements: str
    default: []
  versions:
    description: Versions that take the place of the entries' own, by app.
    type: dict
    default: {}
  roles:
    description: Roles of this collection whose variables, where they are set, are to be what the roles take.
    type: list
    elements: str
    default: []
  key:
    description: What RV(known) is to be told with. The action plugin fills it; do not use it.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
"""

EXAMPLES = r"""
- name: Check the apps before anything changes
  funnel.tornado.preflight:
    apps: "{{ tornado_apps }}"
"""

RETURN = r"""
cpus:
  description: CPUs that the host's processes may run on.
  returned: success
  type: int
open_files:
  description: The most open files that the host gives one process.
  returned: success
  type: int
nginx_workers:
  description:
    - Workers of nginx that leave the CPUs to the apps, one for two CPUs.
    - With one per CPU, as C(auto) has it, nginx and a Tornado per CPU kept waking each other up. On two CPUs half as many
      workers served about a fifth more requests.
  returned: success
  type: int
names:
  description: Names that an app may not have, as users or directories in C(/srv) and C(/var/log) that are no app's have them.
  returned: success
  type: list
  elements: str
certificates:
  description: Names of the apps' certificates that the host has.
  returned: success
  type: list
  elements: str
pushed:
  description: Names of the apps that are pushed to the host.
  returned: success
  type: list
  elements: str
host_state:
  description:
    - >-
      The state of everything that the roles of an app host manage: digests of configuration files, which only the controller can
      compare, states of services, kernel settings, and the version of uv.
    - In the variable C(__funnel_host_state), it lets M(funnel.tornado.file_set), M(funnel.tornado.limits) and
      M(funnel.tornado.uv) skip a host that is up to date.
  returned: success
  type: dict
packages:
  description:
    - The C(versions) of all packages that are installed, and the C(codename) of the release that the host runs, as
      M(funnel.tornado.packages) has them. As C(__funnel_packages) it saves that module the asking.
  returned: success
  type: dict
"""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import PUSH_ENTRIES, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import link_protection_problem
from ansible_collections.funnel.tornado.plugins.module_utils.status.host_state import collect_host_state
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import is_managed
from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import (
    PackagesError,
    installed_versions,
    require_supported_host,
    upstream_versions,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET, installed_names

#: All of it is judged on the controller, and nothing of it sent to the host.
ARGUMENTS = {
    "apps": {"type": "dict", "required": True},
    "names": {"type": "list", "elements": "str", "default": []},
    "versions": {"type": "dict", "default": {}},
    "roles": {"type": "list", "elements": "str", "default": []},
    "key": {"type": "str", "default": "", "no_log": True},
}


def main() -> None:
    """Look at the host."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        distribution = require_supported_host()
    except PackagesError as error:
        module.fail_json(msg=str(error))
    if problem := link_protection_problem():
        module.fail_json(msg=f"{problem}; nothing was changed")
    cpus = len(os.sched_getaffinity(0))
    module.exit_json(
        changed=False,
        cpus=cpus,
        nginx_workers=max(1, cpus // 2),
        open_files=Capacity.of_host().max_open_files,
        names=sorted(set(names())),
        certificates=installed_names(APP_SET),
        packages={"codename": distribution.codename, "versions": upstream_versions(installed_versions())},
        host_state=collect_host_state(module.params["key"].encode()).to_data(),
        pushed=sorted(path.stem for path in PUSH_ENTRIES.glob("*.json")),
    )


def names() -> Iterator[str]:
    """Yield the names that are taken by something that is no app."""
    yield from (user.pw_name for user in pwd.getpwall() if user.pw_dir != str(Layout(user.pw_name).home))
    for directory in filter(Path.is_dir, (Path("/var/log"), Path("/srv"))):
        yield from (path.name for path in directory.iterdir() if path.is_dir() and not is_managed(Layout(path.name)))


if __name__ == "__main__":
    main()
