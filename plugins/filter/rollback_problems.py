# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.rollback_problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rollback import build_problems

DOCUMENTATION = r"""
name: rollback_problems
short_description: Compare the builds of a host with the target of a rollback
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns why the builds of a host that lacks the target of a rollback are other releases.
positional: _input, built
options:
  _input:
    description: The targets that the host lacks, from the value C(missing) of P(funnel.tornado.rollback_plan#filter).
    type: dict
    required: true
  built:
    description: The results of M(funnel.tornado.release) in a loop over the apps.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
problems: "{{ plan.missing.web1 | funnel.tornado.rollback_problems(built.results) }}"
"""

RETURN = r"""
_value:
  description: A message for each app whose build is another release.
  type: list
  elements: str
"""


def rollback_problems(missing: Mapping[str, Mapping[str, str]], built: list[Mapping[str, Any]]) -> list[str]:
    """Return the messages."""
    return list(build_problems(missing, {result["item"]: result for result in built}))


FilterModule = filter_module(rollback_problems)
