# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.app_dependencies."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.switch_plan import app_dependencies

DOCUMENTATION = r"""
name: app_dependencies
short_description: Apps that are switched before other apps
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the C(depends_on) of the entries that have one.
options:
  _input:
    description: The C(tornado_apps) of a host.
    type: dict
    required: true
"""

EXAMPLES = r"""
depends_on: "{{ tornado_apps | funnel.tornado.app_dependencies }}"
"""

RETURN = r"""
_value:
  description: Names of the apps that are switched before an app, by app.
  type: dict
"""


FilterModule = filter_module(app_dependencies)
