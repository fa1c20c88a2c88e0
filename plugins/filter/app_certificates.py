# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.app_certificates."""

from __future__ import annotations

from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import app_certificates as certificates
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: app_certificates
short_description: Certificates of apps for the certificates role
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Derives the C(certificates_wanted) of the certificates role from C(tornado_apps).
positional: _input
options:
  _input:
    description: The value of C(tornado_apps).
    type: dict
    required: true
"""

EXAMPLES = r"""
certificates_wanted: "{{ tornado_apps | funnel.tornado.app_certificates }}"
"""

RETURN = r"""
_value:
  description: The value for C(certificates_wanted), with the apps whose C(tls.provider) is not C(off).
  type: dict
"""


def app_certificates(apps: object) -> dict[str, dict[str, Any]]:
    """Return the certificates of ``apps``.

    :raises InvalidDataError: with every mistake in all entries.
    """
    return certificates(load(apps))


FilterModule = filter_module(app_certificates)
