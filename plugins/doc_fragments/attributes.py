# Copyright: The funnel.tornado developers
# MIT License (see LICENSE)
"""What the modules' documentation says of check mode and diff mode, unless it is something of their own."""

from __future__ import annotations


class ModuleDocFragment:
    """Included by ``extends_documentation_fragment: funnel.tornado.attributes``."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
"""
