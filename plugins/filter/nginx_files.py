# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""Filter funnel.tornado.nginx_files: nginx configuration files of sites and upstreams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import NginxOptions
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import site_files
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: nginx_files
short_description: Render a set of nginx sites
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Validates the sites and upstreams of the nginx role and returns the files for M(funnel.tornado.file_set).
  - Fails with all problems at once.
positional: _input
options:
  _input:
    description: Sites by name, as C(nginx_sites) of the role.
    type: dict
    required: true
  upstreams:
    description: Upstreams by name, as C(nginx_upstreams) of the role.
    type: dict
    required: true
  name:
    description: Name of the set, the prefix of its file names.
    type: str
    required: true
  listen:
    description: Addresses that nginx listens on, as C(nginx_listen) of the role.
    type: list
    elements: str
    required: true
  listen_tls:
    description: Addresses that nginx listens on for TLS, as C(nginx_listen_tls) of the role.
    type: list
    elements: str
    default: []
  trusted_proxies:
    description: Addresses and networks of trusted proxies, as C(nginx_trusted_proxies) of the role.
    type: list
    elements: str
    default: []
  proxy_protocol:
    description: Whether clients connect by the PROXY protocol, as C(nginx_proxy_protocol) of the role.
    type: bool
    default: false
"""

EXAMPLES = r"""
files: "{{ nginx_sites | funnel.tornado.nginx_files(upstreams=nginx_upstreams, name='nginx', listen=['80']) }}"
"""

RETURN = r"""
_value:
  description: Value for C(files) of M(funnel.tornado.file_set).
  type: dict
"""


def nginx_files(
    sites: Mapping[str, object],
    *,
    upstreams: Mapping[str, object],
    name: str,
    listen: Sequence[str],
    listen_tls: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    proxy_protocol: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the files of a set of sites, or fail with every problem in them."""
    options = NginxOptions(listen, listen_tls, trusted_proxies, proxy_protocol)
    return site_files(sites, upstreams, name=name, options=options)


FilterModule = filter_module(nginx_files)
