# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.app_certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import app_certificates as certificates
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

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

    :raises AnsibleFilterError: with every mistake in all entries.
    """
    try:
        return certificates(load(apps))
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"app_certificates": app_certificates}
