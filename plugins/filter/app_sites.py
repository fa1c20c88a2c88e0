# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""Filter funnel.tornado.app_sites: nginx sites of apps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app import site_options
from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, site_owner, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import Mount, SiteOptions
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET, acme_clients, chain_path, key_path
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: app_sites
short_description: Derive nginx sites from apps
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Derives C(nginx_sites) of the nginx role from C(tornado_apps). Apps with a C(prefix) become mounts of the site they belong to.
positional: _input
options:
  _input:
    description: Value of C(tornado_apps).
    type: dict
    required: true
  tls:
    description: Whether nginx terminates TLS; if not, a load balancer does, and the sites are plain HTTP.
    type: bool
    default: true
  acme_peers:
    description: IP addresses of the other hosts that obtain certificates for the same names.
    type: list
    elements: str
    default: []
  names:
    description: The apps whose sites are returned; all if empty.
    type: list
    elements: str
    default: []
  options:
    description:
      - Texts by app, each in place of the options of the entry that belong to a release, as a host that serves another release
        has them beside its sites.
    type: dict
    default: {}
"""

EXAMPLES = r"""
nginx_sites: "{{ tornado_apps | funnel.tornado.app_sites }}"
"""

RETURN = r"""
_value:
  description: Value for C(nginx_sites).
  type: dict
"""


def app_sites(
    apps: object,
    *,
    tls: bool = True,
    acme_peers: Sequence[str] = (),
    names: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the sites of ``apps``, or fail with every problem in them."""
    loaded = load_with_options(apps, options or {})
    mounted: dict[str, list[App]] = {name: [] for name, app in loaded.items() if app.prefix is None}
    for app in loaded.values():
        if app.prefix is not None and (owner := site_owner(app, loaded.values())):
            mounted[owner.name].append(app)
    return {
        name: site(loaded[name], others, site_tls(loaded[name], acme_peers) if tls else None)
        for name, others in mounted.items()
        if not names or {name, *(other.name for other in others)} & {*names}
    }


def load_with_options(apps: object, options: Mapping[str, str]) -> dict[str, App]:
    """Return the apps with the encoded options of some; leave malformed entries to the validation.

    :raises InvalidDataError: listing the mistakes of the inventory or, if it has none, those that the options cause.
    """
    entries = apps
    if isinstance(apps, Mapping):
        well_formed = {name: entry for name, entry in apps.items() if isinstance(entry, Mapping)}
        changed = {
            name: site_options.restored(entry, options[name], [other for each, other in well_formed.items() if each != name])
            for name, entry in well_formed.items()
            if options.get(name)
        }
        entries = {**apps, **changed}
    try:
        return load(entries)
    except InvalidDataError as error:
        load(apps)
        raise InvalidDataError(
            [
                f"with the site options of the release that is live, not those of the inventory: {problem}"
                for problem in error.problems
            ]
        ) from error


def site(app: App, mounted: Iterable[App], tls: dict[str, Any] | None) -> dict[str, Any]:
    """Return the site of an app with the apps ``mounted`` in it and its TLS options."""
    maintenance = {**to_entry(app)["maintenance"], "file": str(Layout(app.name).maintenance)}
    mounts = {
        str(other.prefix): options_of(other, Mount) | {"maintenance_file": str(Layout(other.name).maintenance)}
        for other in mounted
    }
    own = {"tls": tls, "maintenance": maintenance, "mounts": mounts}
    return options_of(app, SiteOptions) | own


def options_of(app: App, options: type) -> dict[str, Any]:
    """Return the ``options`` that an app sets, with its upstream and static files.

    Their paths go through the link that a switch renames.
    """
    layout, entry = Layout(app.name), to_entry(app)
    # An app that runs in its source directory serves its static files itself.
    static = app.static if app.source.directory is None else None
    return {
        **{option.name: entry[option.name] for option in dataclasses.fields(options) if option.name in entry},
        "app": app.name,
        "upstream": {"include": str(layout.live_upstream), "affinity": app.affinity},
        "static": [
            *([{"url": static.url, "live": str(layout.live)}] if static else []),
            *(
                {"url": options.url, "path": str(layout.shared / path), "untrusted": str(layout.home)}
                for path, options in app.shared_paths.items()
                if options.url
            ),
        ],
        "options": site_options.encode(app),
        "origin": f"{VARIABLE}.{app.name}",
    }


def site_tls(app: App, acme_peers: Sequence[str]) -> dict[str, Any] | None:
    """Return the TLS options of an app, None without HTTPS; the role certificates installs the files."""
    if app.tls.provider == "off":
        return None
    return {
        "certificate": str(chain_path(APP_SET, app.certificate_name)),
        "key": str(key_path(APP_SET, app.certificate_name)),
        "redirect": app.tls.redirect,
        "hsts": app.tls.hsts,
        "acme_clients": acme_clients(acme_peers) if app.tls.answers_challenges else [],
    }


FilterModule = filter_module(app_sites)
