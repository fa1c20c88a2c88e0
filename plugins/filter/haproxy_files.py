# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.haproxy_files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils import haproxy_rendering

DOCUMENTATION = r"""
name: haproxy_files
short_description: Files of HAProxy's backends
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Checks the backends of the haproxy role and turns them into the files that M(funnel.tornado.file_set) applies.
  - All mistakes are reported at once.
positional: _input
options:
  _input:
    description: The backends, a dictionary by name, as C(haproxy_backends) of the role.
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
    description: PEM files on the host, as C(haproxy_certificates) of the role.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
files: "{{ haproxy_backends | funnel.tornado.haproxy_files(listen=['80']) }}"
"""

RETURN = r"""
_value:
  description: The value for C(files) of M(funnel.tornado.file_set).
  type: dict
"""


def haproxy_files(
    backends: Mapping[str, object], *, listen: Sequence[str], listen_tls: Sequence[str] = (), certificates: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the files of backends, or fail with every mistake in them."""
    try:
        return haproxy_rendering.haproxy_files(backends, haproxy_rendering.Frontend(listen, listen_tls, certificates))
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"haproxy_files": haproxy_files}
