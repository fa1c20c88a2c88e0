# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.select_apps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.app_selection import select
from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module

DOCUMENTATION = r"""
name: select_apps
short_description: Select the apps that an operator names
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Splits the value of C(-e app=), and suggests the right name for an unknown app.
positional: _input, apps
options:
  _input:
    description: Names of apps, separated by commas.
    type: str
    required: true
  apps:
    description: The names of all apps.
    type: list
    elements: str
    required: true
  default:
    description: The apps that an empty input selects; if unset, the only app.
    type: list
    elements: str
    default: []
  single:
    description: Whether exactly one app must be selected.
    type: bool
    default: false
"""

EXAMPLES = r"""
selected: "{{ app | default('') | funnel.tornado.select_apps(tornado_apps) }}"
"""

RETURN = r"""
_value:
  description: C(names), the apps, and C(problem), why the input is invalid; one of them is empty.
  type: dict
"""


def select_apps(named: object, apps: Iterable[str], *, default: Iterable[str] = (), single: bool = False) -> dict[str, Any]:
    """Return the names, or the problem."""
    return asdict(select(named, apps, default=default, single=single))


FilterModule = filter_module(select_apps)
