# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""Filter funnel.tornado.haproxy_files: configuration files of the HAProxy load balancer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils import haproxy_rendering
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: haproxy_files
short_description: Render the HAProxy configuration
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Validates the backends of the haproxy role and returns the files for M(funnel.tornado.file_set).
  - Fails with all problems at once.
positional: _input
options:
  _input:
    description: Backends by name, as C(haproxy_backends) of the role.
    type: dict
    required: true
  listen:
    description: Addresses to listen on, as C(haproxy_listen) of the role.
    type: list
    elements: str
    required: true
  listen_tls:
    description: Addresses to listen on for TLS, as C(haproxy_listen_tls) of the role.
    type: list
    elements: str
    default: []
  certificates:
    description: PEM files of certificates on the host, as C(haproxy_certificates) of the role.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
files: "{{ haproxy_backends | funnel.tornado.haproxy_files(listen=['80']) }}"
"""

RETURN = r"""
_value:
  description: Value for C(files) of M(funnel.tornado.file_set).
  type: dict
"""


def haproxy_files(
    backends: Mapping[str, object], *, listen: Sequence[str], listen_tls: Sequence[str] = (), certificates: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the files of backends, or fail with every problem in them."""
    return haproxy_rendering.haproxy_files(backends, haproxy_rendering.Frontend(listen, listen_tls, certificates))


FilterModule = filter_module(haproxy_files)
