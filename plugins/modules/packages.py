#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: packages
short_description: Install and upgrade Debian packages with apt-get
description:
  - Installs packages without their recommendations, if the distribution of the host is supported.
  - Unlike M(ansible.builtin.apt) it does not require C(python3-apt), so check mode works on a bare host, and a task without
    changes runs a single C(dpkg-query) (0.3 s like a ping, instead of the 0.75-1.0 s of M(ansible.builtin.apt)).
  - The host is not contacted if all packages are in C(versions) of the variable C(__funnel_packages), which is the result of an
    earlier task of this module or the RV(funnel.tornado.preflight#module:packages) of a check. A play can thus install the
    packages of several roles at once.
  - Locks of other apt or dpkg processes are waited for, up to two minutes. Modified configuration files are kept.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description:
      - Names of the packages.
      - With O(state=latest) packages that are not installed are skipped, and an empty list means all installed packages.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) installs missing packages, in any version.
      - V(latest) upgrades installed packages. No package is removed, and held packages are kept.
      - V(latest) updates the package lists in check mode, too, because upgrades are predicted from them.
      - V(available) changes no package, and returns those that could not be installed. It updates package lists that lack one.
    type: str
    choices: [present, latest, available]
    default: present
  lists_max_age:
    description:
      - Maximum age of the package lists in seconds, after which an installation updates them.
      - They are also updated if they lack a package that must be installed.
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

- name: Upgrade all installed packages
  funnel.tornado.packages:
    name: []
    state: latest
    lists_max_age: 0
"""

RETURN = r"""
installed:
  description: Packages that were or would be installed.
  returned: with O(state=present)
  type: list
  elements: str
  sample: [nginx]
versions:
  description: Upstream version of each package; in check mode, of the candidate if it is not installed.
  returned: with O(state=present)
  type: dict
  sample: {nginx: 1.26.3}
unavailable:
  description: Packages that are neither installed nor in a package source of the host.
  returned: with O(state=available)
  type: list
  elements: str
  sample: []
codename:
  description: Code name of the distribution release; empty if it has none.
  returned: success
  type: str
  sample: bookworm
upgraded:
  description: Packages that were or would be upgraded, with both versions; new ones are dependencies, such as kernels.
  returned: with O(state=latest)
  type: list
  elements: str
  sample: ["nginx 1.22.1-9 -> 1.22.1-9+deb12u1"]
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import (
    PackagesError,
    candidates,
    find_unavailable,
    install,
    installed_versions,
    require_names,
    require_supported_host,
    upgradable,
    upgrade,
    upstream_versions,
)


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "default": "present"},
            "lists_max_age": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    try:
        distribution = require_supported_host()
        require_names(module.params["name"])
        result = STATES[module.params["state"]](
            module.params["name"], module.params["lists_max_age"], check_mode=module.check_mode
        )
    except (PackagesError, CommandError) as error:
        module.fail_json(msg=error_text(error))
    if warning := result.pop("warning", ""):
        module.warn(warning)
    module.exit_json(**result if module._diff else result | {"diff": {}}, codename=distribution.codename)


def present(names: list[str], lists_max_age: float, *, check_mode: bool) -> dict[str, Any]:
    versions, warning = installed_versions(names), ""
    missing = [name for name in names if name not in versions]
    if missing and check_mode:
        versions |= candidates(missing)
    elif missing:
        warning = install(missing, lists_max_age=lists_max_age)
        versions = installed_versions(names)
    diff = {"before": "", "after": "".join(f"{name}\n" for name in missing), "after_header": "installed packages"}
    return {
        "changed": bool(missing),
        "installed": missing,
        "warning": warning,
        "versions": upstream_versions(versions),
        "diff": diff if missing else {},
    }


def latest(names: list[str], lists_max_age: float, *, check_mode: bool) -> dict[str, Any]:
    upgrades = upgradable(names, lists_max_age=lists_max_age)
    if upgrades and not check_mode:
        upgrade(names)
    diff = {
        "before": "".join(f"{name} {before}\n" for name, (before, _after) in upgrades.items() if before),
        "after": "".join(f"{name} {after}\n" for name, (_before, after) in upgrades.items()),
        "before_header": "installed packages",
        "after_header": "installed packages",
    }
    return {
        "changed": bool(upgrades),
        "upgraded": [f"{name} {before or '(new)'} -> {after}" for name, (before, after) in upgrades.items()],
        "diff": diff if upgrades else {},
    }


def available(names: list[str], lists_max_age: float, *, check_mode: bool) -> dict[str, Any]:
    del lists_max_age, check_mode  # nothing changes, and the lists are updated only if they lack a package
    installed = installed_versions(names)
    return {"changed": False, "unavailable": find_unavailable([name for name in names if name not in installed])}


STATES = {"present": present, "latest": latest, "available": available}


if __name__ == "__main__":
    main()
