# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.kept_site_options."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.switch_plan import kept_site_options

DOCUMENTATION = r"""
name: kept_site_options
short_description: Site options of apps that do not serve the release of the inventory
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the options of sites that stay as they are on a host, because the app is not part of the run, failed in it, or was
    rolled back from the release of the inventory, to which the options of the inventory belong.
positional: _input, builds, switches, failed
options:
  _input:
    description: The site options of the host by app, as M(funnel.tornado.preflight) returns them.
    type: dict
    required: true
  builds:
    description: The results of M(funnel.tornado.release).
    type: list
    elements: dict
    required: true
  switches:
    description: The results of M(funnel.tornado.switch) so far.
    type: list
    elements: dict
    required: true
  failed:
    description: The apps that failed to switch on some host.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
options: "{{ app_host.site_options | funnel.tornado.kept_site_options(built.results, [switched], []) }}"
"""

RETURN = r"""
_value:
  description: Value for the option C(options) of the filter P(funnel.tornado.app_sites#filter).
  type: dict
"""


FilterModule = filter_module(kept_site_options)
