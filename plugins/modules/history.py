#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Read the deploy history of all apps of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: history
short_description: Read the deploy history of all apps of a host
version_added: 0.1.0
description:
  - Returns the live release of each app, the releases that were live before, and why one is no rollback target.
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.switch
"""

EXAMPLES = r"""
- name: Read the deploy history
  funnel.tornado.history:
  register: found
"""

RETURN = r"""
apps:
  description:
    - The apps of the host by name. C(live) is the id of the live release, empty without one; C(starting) is the release of a
      deploy that is running and has not switched yet. C(site_options) is the text of those with which nginx serves the app; that
      of a release has the options with which it last served, from when it was replaced.
    - C(releases) has the releases that were live, newest first, each with its C(release) id, C(revision), the time C(at) and the
      operator C(by), and whether it is C(built), that is, still on the host. C(content) is a hash that is the same on all hosts
      with the same desired state. C(undone) is the reason why it is no rollback target; after a rollback from it, C(undone_by) is
      the operator and C(undone_at) the time.
  returned: success
  type: dict
  sample:
    shop:
      live: 3f1c0a9be2d4
      starting: ""
      site_options: ""
      releases:
        - release: 3f1c0a9be2d4
          revision: 8f2b1c0d9e3a
          at: "2026-01-02T03:04:05+00:00"
          by: alice@desk
          undone: ""
          undone_by: ""
          undone_at: ""
          site_options: ""
          built: true
          content: 1b2c3d4e5f60
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.deploy.targets import deployed_apps, rollback_state


def main() -> None:
    """Return the history."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        module.exit_json(changed=False, apps={layout.app: rollback_state(layout) for layout in deployed_apps()})
    except (OSError, TypeError, ValueError) as error:
        module.fail_json(msg=f"the deploy history cannot be read: {error}")


if __name__ == "__main__":
    main()
