#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Read the log lines of the processes of an app."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_logs
short_description: Read the logs of an app
version_added: 0.1.0
description:
  - Returns the last lines of all processes of an app on a host, sorted by time, or the lines since an earlier call.
  - A line without a time, such as a line of a traceback, has the time of the preceding line. A time without a zone is local time
    of the host.
  - Log rotation loses no lines, unless an app logs more than 8 MiB or 20,000 lines between two calls.
  - Control characters other than tabs, and characters that change the text direction, are escaped, as in C(\\x1b).
  - Changes nothing.
options:
  name:
    description: Name of the app.
    type: str
    required: true
  lines:
    description: Maximum number of lines of all processes together.
    type: int
    default: 100
  since:
    description: The RV(position) of an earlier call, to return all lines since then.
    type: dict
  follow:
    description: Seconds for which new lines are displayed as they are logged. They are not returned.
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
  register: logs

- name: Follow the logs for a minute
  funnel.tornado.app_logs:
    name: shop
    since: "{{ logs.position }}"
    follow: 60
"""

RETURN = r"""
lines:
  description: The lines, each with its unix C(time) and its C(text), which starts with the host and the process.
  returned: success
  type: list
  elements: dict
  sample: [{time: 1795230855.926, text: "web1 a/0: 2026-11-21T03:14:15.926Z INFO  shop [shop a/0 1f2e3d4c pid 812] started"}]
position:
  description: The position in each log after the last line.
  returned: success
  type: dict
  sample: {a-0.log: [262152, 84120]}
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.module_utils.status.logs import read_since, tail

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "lines": {"type": "int", "default": 100},
    "since": {"type": "dict"},
    "follow": {"type": "int", "default": 0},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    layout = Layout(params["name"])
    if params["lines"] < 0:
        module.fail_json(msg=f"lines: must be 0 or more; found {params['lines']}")
    try:
        if params["since"] is None:
            lines, position = tail(layout, params["lines"])
        else:
            since = {log: (int(inode), int(end)) for log, (inode, end) in params["since"].items()}
            lines, position = read_since(layout, since, wait=params["follow"])
    except (OSError, TypeError, ValueError) as error:
        module.fail_json(msg=printable(f"{layout.app}: {error}"))
    module.exit_json(changed=False, lines=[dataclasses.asdict(line) for line in lines], position=position)


if __name__ == "__main__":
    main()
