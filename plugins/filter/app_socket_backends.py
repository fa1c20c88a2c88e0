# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""Filter funnel.tornado.app_socket_backends: backends of apps for HAProxy as the reverse proxy of an app host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.filter.app_backends import terminated_tls
from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import DEFAULT_HEADERS
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: app_socket_backends
short_description: Derive HAProxy backends of an app host from its apps
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Derives C(haproxy_backends) of the haproxy role from C(tornado_apps), for HAProxy as the reverse proxy of an app host.
    Each app is a backend; its servers are the sockets of its processes.
  - Fails with all options of the apps that require nginx.
positional: _input, cpus
options:
  _input:
    description: Value of C(tornado_apps).
    type: dict
    required: true
  cpus:
    description: Number of CPUs of the host, as M(funnel.tornado.preflight) returns it.
    type: int
    required: true
  acme_peers:
    description: IP addresses of the other hosts that obtain certificates for the same names.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
haproxy_backends: "{{ tornado_apps | funnel.tornado.app_socket_backends(app_host.cpus) }}"
"""

RETURN = r"""
_value:
  description: Value for C(haproxy_backends).
  type: dict
"""

#: Keys of an app that require nginx.
NGINX_KEYS = ("allow", "basic_auth", "deny", "extra", "limits", "maintenance", "paths", "port", "prefix", "soak", "static")


def app_socket_backends(apps: object, cpus: int, acme_peers: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the backends of ``apps``, or fail with every problem in them."""
    loaded = load(apps)
    if problems := [problem for app in loaded.values() for problem in _problems(app)]:
        raise InvalidDataError(problems)
    return {name: backend(app, cpus) | terminated_tls(app, acme_peers) for name, app in loaded.items()}


def backend(app: App, cpus: int) -> dict[str, Any]:
    """Return the backend of an app, except TLS; its sockets are addressed through the link that a switch renames."""
    return {
        "servers": {str(process): f"unix@{_socket(app, process)}" for process in range(app.process_count(cpus))},
        "headers": {**DEFAULT_HEADERS, **app.headers},
        "health": {"path": app.health.path, "status": app.health.status, "headers": app.health.headers},
        "app": app.name,
        "affinity": app.affinity,
        "read_timeout": app.read_timeout,
        "origin": f"{VARIABLE}.{app.name}",
    }


def _socket(app: App, process: int) -> str:
    layout = Layout(app.name)
    return str(layout.live / layout.socket("a", process).relative_to(layout.slot("a")))


def _problems(app: App) -> Iterator[str]:
    blank = App(source=app.source, run=app.run)
    for path, options in app.shared_paths.items():
        if options.url:
            yield f"{VARIABLE}.{app.name}.shared.{path}.url: requires nginx, but app_proxy selects HAProxy; remove it"
    for key in NGINX_KEYS:
        if getattr(app, key) != getattr(blank, key):
            yield f"{VARIABLE}.{app.name}.{key}: requires nginx, but app_proxy selects HAProxy; remove it"


FilterModule = filter_module(app_socket_backends)
