# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""Filter funnel.tornado.app_backends: load balancer backends of apps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, site_owner
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import url_host
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import HEALTH_HEADER, HEALTH_HOST, HEALTH_URL
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import acme_clients
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: app_backends
short_description: Derive HAProxy backends from apps
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Derives C(haproxy_backends) of the haproxy role from C(tornado_apps), one backend for each app without C(prefix).
  - The servers of a backend are all app hosts; the health check queries the app through their nginx.
positional: _input, addresses, tls_at
options:
  _input:
    description: Value of C(tornado_apps).
    type: dict
    required: true
  addresses:
    description: IP addresses of the app hosts by host, as P(funnel.tornado.fleet_addresses#filter) returns them.
    type: dict
    required: true
  tls_at:
    description: Where TLS is terminated. With V(app_hosts), nginx there must accept the PROXY protocol.
    type: str
    choices: [balancers, app_hosts]
    default: balancers
  acme_peers:
    description: IP addresses of the other load balancers, which obtain certificates for the same names.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
haproxy_backends: "{{ tornado_apps | funnel.tornado.app_backends(groups.app_hosts | funnel.tornado.fleet_addresses(hostvars)) }}"
"""

RETURN = r"""
_value:
  description: Value for C(haproxy_backends).
  type: dict
"""


def app_backends(
    apps: object, addresses: Mapping[str, str], tls_at: str = "balancers", acme_peers: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the backends of ``apps``, or fail with every problem in them."""
    loaded = load(apps)
    owners = [app for app in loaded.values() if app.prefix is None]
    return {
        app.name: backend(app, [other for other in loaded.values() if site_owner(other, owners) == app], addresses)
        | (passed_tls(app) if tls_at == "app_hosts" else terminated_tls(app, acme_peers))
        for app in owners
    }


def backend(app: App, parts: Collection[App], addresses: Mapping[str, str]) -> dict[str, Any]:
    """Return the backend of a site, except TLS; ``parts`` are all apps of the site, including ``app``, which owns it."""
    limit = {} if app.balance.connections is None else {"max_connections": app.balance.connections}
    return {
        "servers": {host: {"address": url_host(address), **limit} for host, address in addresses.items()},
        "health": {"path": f"{HEALTH_URL}/{app.name}", "host": HEALTH_HOST, "verdict": HEALTH_HEADER},
        "affinity": next((kind for kind in ("cookie", "address") if kind in {part.affinity for part in parts}), "none"),
        "queue": app.balance.queue,
        "read_timeout": max(seconds for part in parts for seconds in _read_timeouts(part)),
        "origin": f"{VARIABLE}.{app.name}",
    }


def passed_tls(app: App) -> dict[str, Any]:
    """Return the options of a backend whose servers terminate TLS and answer ACME challenges."""
    return {"domains": app.all_domains, "tls": "end" if app.tls.provider == "off" else "pass", "proxy_protocol": True}


def terminated_tls(app: App, acme_peers: Sequence[str]) -> dict[str, Any]:
    """Return the options of a backend for which HAProxy terminates TLS."""
    return {
        "domains": app.domains,
        "aliases": app.aliases,
        "redirect": app.tls.provider != "off" and app.tls.redirect,
        "hsts": app.tls.hsts,
        "acme_clients": acme_clients(acme_peers) if app.tls.answers_challenges else [],
    }


def _read_timeouts(app: App) -> list[int]:
    return [app.read_timeout, *(path.read_timeout for path in app.paths.values() if path.read_timeout)]


FilterModule = filter_module(app_backends)
