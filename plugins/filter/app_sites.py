# Copyright: (c) 2026, The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.app_sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import VARIABLE, App, load
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.schema import InvalidDataError

DOCUMENTATION = r"""
name: app_sites
short_description: Sites of apps, as the nginx role takes them
version_added: 0.1.0
author: The funnel.tornado developers
description:
  - Derives the C(nginx_sites) of the nginx role from C(tornado_apps).
positional: _input
options:
  _input:
    description: The value of C(tornado_apps).
    type: dict
    required: true
"""

EXAMPLES = r"""
nginx_sites: "{{ tornado_apps | funnel.tornado.app_sites }}"
"""

RETURN = r"""
_value:
  description: The value for C(nginx_sites).
  type: dict
"""


def app_sites(apps: object) -> dict[str, dict[str, Any]]:
    """Return the sites of ``apps``, or fail with every mistake in them."""
    try:
        return {name: site(app) for name, app in load(apps).items()}
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


def site(app: App) -> dict[str, Any]:
    """Return the site of one app: all it names of the host leads through the link that a switch renames."""
    layout = Layout(app.name)
    static = [{"url": app.static.url, "path": str(layout.live_static)}] if app.static else []
    return {
        "upstream": {"include": str(layout.live_upstream)},
        "domains": app.domains,
        "upload_size": app.upload_size,
        "static": static,
        "extra": app.extra,
        "origin": f"{VARIABLE}.{app.name}",
    }


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"app_sites": app_sites}
