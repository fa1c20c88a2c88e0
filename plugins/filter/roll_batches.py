# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.roll_batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import batches

DOCUMENTATION = r"""
name: roll_batches
short_description: Batches in which hosts switch
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Turns what a playbook is told of its batches into a play's C(serial).
positional: _input
options:
  _input:
    description: >-
      A dictionary of C(batch), the hosts that switch at a time or their share of all, C(canary), whether one host goes first,
      and C(pause), the seconds after a batch. All hosts switch at once without any.
    type: dict
    required: true
"""

EXAMPLES = r"""
serial: "{{ {'batch': '25%', 'canary': true} | funnel.tornado.roll_batches }}"
"""

RETURN = r"""
_value:
  description: The sizes of the batches, the last one repeated.
  type: list
  elements: str
"""


def roll_batches(options: Mapping[str, Any]) -> list[str]:
    """Return a play's ``serial``, or fail with every mistake in what it was told."""
    try:
        return batches(**options)
    except InvalidDataError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Tells Ansible of the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"roll_batches": roll_batches}
