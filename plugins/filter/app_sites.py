# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.app_sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, site_owner, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import Mount, SiteOptions
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET, CHALLENGES, chain_path, key_path

DOCUMENTATION = r"""
name: app_sites
short_description: Sites of apps, as the nginx role takes them
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Derives the C(nginx_sites) of the nginx role from C(tornado_apps).
positional: _input
options:
  _input:
    description: The value of C(tornado_apps).
    type: dict
    required: true
  tls:
    description: Whether TLS of the apps ends here; if not, a balancer in front ends it, and the sites are plain HTTP.
    type: bool
    default: true
"""

EXAMPLES = r"""
nginx_sites: "{{ tornado_apps | funnel.tornado.app_sites }}"
"""

RETURN = r"""
_value:
  description: The value for C(nginx_sites).
  type: dict
"""


def app_sites(apps: object, *, tls: bool = True) -> dict[str, dict[str, Any]]:
    """Return the sites of ``apps``, or fail with every mistake in them."""
    try:
        loaded = load(apps)
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error
    mounted = [app for app in loaded.values() if app.prefix is not None]
    return {
        name: site(app, [other for other in mounted if site_owner(other, loaded.values()) == app], tls=tls)
        for name, app in loaded.items()
        if app.prefix is None
    }


def site(app: App, mounted: Iterable[App], *, tls: bool) -> dict[str, Any]:
    """Return the site of an app, with the apps ``mounted`` in it, and whether it has ``tls`` of its own."""
    maintenance = {**to_entry(app)["maintenance"], "file": str(Layout(app.name).maintenance)}
    mounts = {
        str(other.prefix): part(other, Mount) | {"maintenance_file": str(Layout(other.name).maintenance)} for other in mounted
    }
    own = {"tls": site_tls(app) if tls else None, "health": app.health.path, "maintenance": maintenance, "mounts": mounts}
    return part(app, SiteOptions) | own


def part(app: App, options: type) -> dict[str, Any]:
    """Return the ``options`` that an app's entry has, and its place on the host.

    All that this names of a release leads through the link that a switch renames.
    """
    layout, entry = Layout(app.name), to_entry(app)
    # What is run where it lies has no files for nginx: the app sends its own.
    served = app.static if app.source.directory is None else None
    return {
        **{option.name: entry[option.name] for option in dataclasses.fields(options) if option.name in entry},
        "upstream": {"include": str(layout.live_upstream)},
        "static": [{"url": served.url, "live": str(layout.live)}] if served else [],
        "origin": f"{VARIABLE}.{app.name}",
    }


def site_tls(app: App) -> dict[str, Any] | None:
    """Return what HTTPS takes, if the app has it; the role certificates has put the files there."""
    if app.tls.provider == "off":
        return None
    return {
        "certificate": str(chain_path(APP_SET, app.name)),
        "key": str(key_path(APP_SET, app.name)),
        "redirect": app.tls.redirect,
        "hsts": app.tls.hsts,
        "challenges": str(CHALLENGES) if app.tls.provider == "acme" else None,
    }


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"app_sites": app_sites}
