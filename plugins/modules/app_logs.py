#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Read what the processes of an app have logged."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_logs
short_description: Read what the processes of an app have logged
version_added: 0.1.0
description:
  - Returns the last lines of all processes of an app on a host, in the order of their times, or those that came since an
    earlier look.
  - A line without a time of its own, such as one of a traceback, has that of the line before it. A time without a zone is the
    host's.
  - No line is missed when logs are rotated meanwhile, unless an app logs more than 8 MiB or 20,000 lines between two looks.
  - Control characters, but for tabs, and what would change the direction of a text are shown as in C(\\x1b).
  - Changes nothing.
options:
  name:
    description: The app.
    type: str
    required: true
  lines:
    description: How many lines, of all processes together.
    type: int
    default: 100
  since:
    description: RV(position) of an earlier look; all that has come since is returned then.
    type: dict
  follow:
    description: Seconds for which lines are shown as they come, on the terminal; they are not returned then.
    type: int
    default: 0
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
"""

EXAMPLES = r"""
- name: Read the last lines
  funnel.tornado.app_logs:
    name: shop
    lines: 20
  register: found

- name: Show for a minute what comes
  funnel.tornado.app_logs:
    name: shop
    since: "{{ found.position }}"
    follow: 60
"""

RETURN = r"""
lines:
  description: Each with its C(time) in seconds since 1970, and its C(text), which begins with the host and the process.
  returned: success
  type: list
  elements: dict
  sample: [{time: 1795230855.926, text: "web1 a/0: 2026-11-21T03:14:15.926Z INFO  shop [shop a/0 1f2e3d4c pid 812] started"}]
position:
  description: How far each log was read.
  returned: success
  type: dict
  sample: {a-0.log: [262152, 84120]}
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.module_utils.status.logs import news, tail

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "lines": {"type": "int", "default": 100},
    "since": {"type": "dict"},
    "follow": {"type": "int", "default": 0},
}


def main() -> None:
    """Read the last lines, or those since a position."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    wanted = module.params
    layout = Layout(wanted["name"])
    if wanted["lines"] < 0:
        module.fail_json(msg=f"lines: must be 0 or more; found {wanted['lines']}")
    try:
        if wanted["since"] is None:
            lines, position = tail(layout, wanted["lines"])
        else:
            since = {log: (int(inode), int(end)) for log, (inode, end) in wanted["since"].items()}
            lines, position = news(layout, since, wait=wanted["follow"])
    except (OSError, TypeError, ValueError) as error:
        module.fail_json(msg=printable(f"{layout.app}: {error}"))
    # One look: the action plugin takes as many as fit into the time.
    module.exit_json(changed=False, lines=[dataclasses.asdict(line) for line in lines], position=position)


if __name__ == "__main__":
    main()
