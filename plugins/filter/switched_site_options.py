# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.switched_site_options."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rollback import switched_site_options

DOCUMENTATION = r"""
name: switched_site_options
short_description: Site options that a rollback restores on a host
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the site options of the apps that a host has switched to the target of a rollback.
  - An app whose switch failed keeps the site of the release that it serves.
positional: _input, releases, outcomes
options:
  _input:
    description: The site options of the targets by app, from the value C(site_options) of P(funnel.tornado.rollback_plan#filter).
    type: dict
    required: true
  releases:
    description: The ids of the targets by app.
    type: dict
    required: true
  outcomes:
    description: The value C(apps) of M(funnel.tornado.switch).
    type: dict
    required: true
"""

EXAMPLES = r"""
options: "{{ plan.site_options.web1 | funnel.tornado.switched_site_options(plan.releases.web1, switched.apps) }}"
"""

RETURN = r"""
_value:
  description: Site options by app.
  type: dict
"""


FilterModule = filter_module(switched_site_options)
