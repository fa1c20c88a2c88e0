# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.restore_failures."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rollback import restore_failures

DOCUMENTATION = r"""
name: restore_failures
short_description: Failures of apps whose sites were not restored
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the results of apps that were switched to the target of a rollback, but whose sites were not restored.
positional: _input, apps, message
options:
  _input:
    description: The ids of the targets by app.
    type: dict
    required: true
  apps:
    description: The apps whose sites were not restored.
    type: list
    elements: str
    required: true
  message:
    description: Why they were not.
    type: str
    required: true
"""

EXAMPLES = r"""
failures: "{{ plan.releases.web1 | funnel.tornado.restore_failures(['shop'], ansible_failed_result.msg) }}"
"""

RETURN = r"""
_value:
  description: For each app, C(failed), the live C(release) and the message C(msg), like the results of M(funnel.tornado.switch).
  type: dict
"""


FilterModule = filter_module(restore_failures)
