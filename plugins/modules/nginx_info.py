#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: nginx_info
short_description: Read what the nginx of a host serves besides the sites of the collection
description:
  - Returns the lines of the host's own C(nginx.conf) that the nginx role keeps, and the servers that are not its own.
  - Changes nothing.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Read the existing configuration
  funnel.tornado.nginx_info:
  register: existing
"""

RETURN = r"""
nginx:
  description:
    - C(kept), the files with the lines of C(nginx.conf) to keep, and C(names) of the directives in them that replace those of the
      collection.
    - C(replaced), directives that are not kept.
    - C(servers) of the host with C(file), C(line), C(names) and C(listen).
    - C(own), the names of the collection's sites by file.
    - C(obsolete), files of earlier versions of the collection and the unmodified welcome page of the package.
    - C(ipv6), whether the kernel supports it.
    - C(refused), why the configuration cannot be kept, and C(error), why C(nginx -t) refuses it; both are usually empty.
  returned: success
  type: dict
site_options:
  description: Texts by app, the options with which nginx serves it, for P(funnel.tornado.app_sites#filter).
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import all_applied
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import existing_nginx


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        found = existing_nginx()
    except (CommandError, OSError) as error:
        module.fail_json(msg=str(error))
    if found.refused:
        module.fail_json(msg=f"{found.refused}; nothing was changed")
    module.exit_json(changed=False, nginx=found.to_data(), site_options=all_applied())


if __name__ == "__main__":
    main()
