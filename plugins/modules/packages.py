#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: packages
short_description: Install and upgrade Debian packages by dpkg-query and apt-get
description:
  - Sees that packages are installed, without their recommendations. It first sees that the host's distribution is supported.
  - Unlike M(ansible.builtin.apt) it needs no C(python3-apt) on the host, so check mode works on a bare host too, and
    when nothing is to do it costs one C(dpkg-query) (measured beside a 0.3 s ping, 0.75-1.0 s for M(ansible.builtin.apt)).
  - A host is not asked for packages that are among the C(versions) of the variable C(__funnel_packages), which is what an
    earlier task of this module, or the RV(funnel.tornado.preflight#module:packages) of a check, has returned. So a play can
    install what several roles need at once.
  - Another apt or dpkg that is at work is waited for, at most two minutes. Changed configuration files are kept.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description:
      - Names of the packages.
      - With O(state=latest) those that are not installed are left out, and an empty list means all that are.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) sees that they are installed, in whatever version.
      - V(latest) upgrades those that are installed. None is removed for it, and held ones stay.
      - For V(latest) the package lists are updated in check mode, too, as what there is to upgrade is known only then.
    type: str
    choices: [present, latest]
    default: present
  lists_max_age:
    description:
      - Seconds after which the package lists count as old and are updated before something is installed.
      - They are also updated if they do not have one of the packages that is to be installed.
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

- name: Upgrade all packages that are installed
  funnel.tornado.packages:
    name: []
    state: latest
    lists_max_age: 0
"""

RETURN = r"""
installed:
  description: Packages that were installed, or would be.
  returned: with O(state=present)
  type: list
  elements: str
  sample: [nginx]
versions:
  description: What each package's authors call the version that is installed, or that would be as far as is known.
  returned: with O(state=present)
  type: dict
  sample: {nginx: 1.26.3}
codename:
  description: Code name of the release that the host runs; empty if it has none.
  returned: success
  type: str
  sample: bookworm
upgraded:
  description: Packages that were upgraded, or would be, with both versions; those that are new come with a kernel or a library.
  returned: with O(state=latest)
  type: list
  elements: str
  sample: ["nginx 1.22.1-9 -> 1.22.1-9+deb12u1"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import (
    PackagesError,
    candidates,
    install,
    installed_versions,
    require_supported_host,
    upgradable,
    upgrade,
    upstream_versions,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "latest"], "default": "present"},
            "lists_max_age": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    apply = present if module.params["state"] == "present" else latest
    try:
        distribution = require_supported_host()
        result = apply(module.params["name"], module.params["lists_max_age"], check_mode=module.check_mode)
    except (PackagesError, CommandError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result if module._diff else result | {"diff": {}}, codename=distribution.codename)


def present(names: list[str], lists_max_age: float, *, check_mode: bool) -> dict[str, Any]:
    versions = installed_versions(names)
    wanted = [name for name in names if name not in versions]
    if wanted and check_mode:
        versions |= candidates(wanted)
    elif wanted:
        install(wanted, lists_max_age=lists_max_age)
        versions = installed_versions(names)
    diff = {"before": "", "after": "".join(f"{name}\n" for name in wanted), "after_header": "installed packages"}
    return {
        "changed": bool(wanted),
        "installed": wanted,
        "versions": upstream_versions(versions),
        "diff": diff if wanted else {},
    }


def latest(names: list[str], lists_max_age: float, *, check_mode: bool) -> dict[str, Any]:
    found = upgradable(names, lists_max_age=lists_max_age)
    if found and not check_mode:
        upgrade(names)
    diff = {
        "before": "".join(f"{name} {before}\n" for name, (before, _after) in found.items() if before),
        "after": "".join(f"{name} {after}\n" for name, (_before, after) in found.items()),
        "before_header": "installed packages",
        "after_header": "installed packages",
    }
    return {
        "changed": bool(found),
        "upgraded": [f"{name} {before or '(new)'} -> {after}" for name, (before, after) in found.items()],
        "diff": diff if found else {},
    }


if __name__ == "__main__":
    main()
