#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: packages
short_description: Install Debian packages by dpkg-query and apt-get
description:
  - Sees that packages are installed, without their recommendations. It first sees that the host is a supported Debian.
  - Unlike M(ansible.builtin.apt) it needs no C(python3-apt) on the host, so check mode works on a bare host too, and
    when nothing is to do it costs one C(dpkg-query) (measured beside a 0.3 s ping, 0.75-1.0 s for M(ansible.builtin.apt)).
  - Another apt or dpkg that is at work is waited for, at most two minutes. Changed configuration files are kept.
version_added: 0.1.0
author: The funnel.tornado developers
options:
  name:
    description: Names of the packages.
    type: list
    elements: str
    required: true
  state:
    description: Only V(present) so far.
    type: str
    choices: [present]
    default: present
  lists_max_age:
    description:
      - Seconds after which the package lists count as old and are updated before something is installed.
      - They are also updated if they do not have one of the packages.
    type: int
    default: 3600
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Install nginx
  funnel.tornado.packages:
    name: [nginx]
"""

RETURN = r"""
installed:
  description: Packages that were installed, or would be.
  returned: success
  type: list
  elements: str
  sample: [nginx]
versions:
  description: What each package's authors call the version that is installed, or that would be as far as is known.
  returned: success
  type: dict
  sample: {nginx: 1.26.3}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.packages import (
    PackagesError,
    candidates,
    install,
    installed,
    require_supported_distribution,
    upstream_version,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present"], "default": "present"},
            "lists_max_age": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    try:
        require_supported_distribution()
        names = module.params["name"]
        versions = installed(names)
        wanted = [name for name in names if name not in versions]
        if wanted and module.check_mode:
            versions |= candidates(wanted)
        elif wanted:
            install(wanted, lists_max_age=module.params["lists_max_age"])
            versions = installed(names)
    except (PackagesError, CommandError) as error:
        module.fail_json(msg=str(error))
    diff = {"before": "", "after": "".join(f"{name}\n" for name in wanted), "after_header": "installed packages"}
    module.exit_json(
        changed=bool(wanted),
        installed=wanted,
        versions={name: upstream_version(version) for name, version in versions.items()},
        diff=diff if wanted and module._diff else {},
    )


if __name__ == "__main__":
    main()
