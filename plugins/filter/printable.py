# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.printable."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

DOCUMENTATION = r"""
name: printable
short_description: A text without what would control the terminal that shows it
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Shows control characters, but for tabs and the ends of lines, and what would change the direction of a text, as in C(\\x1b).
    For texts that apps, clients or pushers have chosen.
positional: _input
options:
  _input:
    description: The text.
    type: str
    required: true
  line:
    description: Whether it is to be one line, so that the end of a line is shown as well.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the end of a log
  ansible.builtin.debug:
    msg: "{{ found.stdout | funnel.tornado.printable }}"
"""

RETURN = r"""
_value:
  description: The text.
  type: str
"""


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return the filters of this file by name."""
        return {"printable": printable}
