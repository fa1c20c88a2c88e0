# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.printable."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: printable
short_description: Escape control characters for display on a terminal
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Escapes control characters other than tabs and line breaks, and characters that change the text direction, as in C(\\x1b).
    For untrusted text, such as that of apps, clients or pushers.
positional: _input
options:
  _input:
    description: The text.
    type: str
    required: true
  line:
    description: Whether to escape line breaks as well.
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


FilterModule = filter_module(printable)
