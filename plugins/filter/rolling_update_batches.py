# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""The filter funnel.tornado.rolling_update_batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.funnel.tornado.plugins.plugin_utils.filter_plugin import filter_module
from ansible_collections.funnel.tornado.plugins.plugin_utils.rolling_update import batches

DOCUMENTATION = r"""
name: rolling_update_batches
short_description: Batches of a rolling update
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
description:
  - Returns the C(serial) of a play. Options that are invalid are an error.
positional: _input
options:
  _input:
    description: >-
      A dictionary of C(batch), the number of hosts in a batch or their share of all hosts, C(canary), whether the first batch is
      a single host, and C(pause), the seconds after a batch. By default, all hosts are one batch.
    type: dict
    required: true
"""

EXAMPLES = r"""
serial: "{{ {'batch': '25%', 'canary': true} | funnel.tornado.rolling_update_batches }}"
"""

RETURN = r"""
_value:
  description: The sizes of the batches, the last one repeated.
  type: list
  elements: str
"""


def rolling_update_batches(options: Mapping[str, Any]) -> list[str]:
    """Return the ``serial`` of a play.

    :raises InvalidDataError: with every mistake.
    """
    return batches(**options)


FilterModule = filter_module(rolling_update_batches)
