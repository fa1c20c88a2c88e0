#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: reboot_reasons
short_description: Tell why a host should be rebooted
description:
  - A host should be rebooted when C(/run/reboot-required) is there, when another kernel is installed than runs, when
    processes run programs or libraries whose files have been replaced, and when services run without what the roles have
    changed in their units since.
  - Changes nothing.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: See whether the host should be rebooted
  funnel.tornado.reboot_reasons:
  register: reboot
"""

RETURN = r"""
reasons:
  description: The reasons, in words; empty when there are none.
  returned: success
  type: list
  elements: str
  sample: ["files were replaced that still run: nginx, sshd"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.system.reboot import reboot_reasons


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, reasons=list(reboot_reasons()))


if __name__ == "__main__":
    main()
