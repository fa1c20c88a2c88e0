# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.expected_backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.haproxy_rendering import backend_digests
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import live_apps

DOCUMENTATION = r"""
name: expected_backends
short_description: What load balancers must know about backends
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the digest of each backend, and the servers that must be up, which are the hosts on which a release of the app is live
    according to the results of this run. Hosts that are unreachable are not expected.
positional: _input, hosts, hostvars
options:
  _input:
    description: Backends by name, as C(haproxy_backends) of the role haproxy.
    type: dict
    required: true
  hosts:
    description: Names of the app hosts, which are the names of their servers.
    type: list
    elements: str
    required: true
  hostvars:
    description: The variables of all hosts, C(hostvars).
    type: dict
    required: true
  apps:
    description: Return only the backends of these apps; all if empty, or if one of the apps shares the backend of another.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
backends: "{{ haproxy_backends | funnel.tornado.expected_backends(groups.app_hosts, hostvars) }}"
"""

RETURN = r"""
_value:
  description: Value for C(backends) of M(funnel.tornado.haproxy_health).
  type: dict
"""


def expected_backends(
    backends: Mapping[str, Any], hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], *, apps: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the digest and servers of each backend."""
    names = set(apps)
    chosen = names if names and names <= set(backends) else set(backends)
    live = {host: live_apps(hostvars[host]) for host in hosts}
    return {
        name: {
            "digest": digest,
            "servers": [host for host, served in live.items() if name in served and host in backends[name]["servers"]],
        }
        for name, digest in backend_digests(backends).items()
        if name in chosen
    }


FilterModule = filter_module(expected_backends)
