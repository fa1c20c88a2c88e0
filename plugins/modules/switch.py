#!/usr/bin/python
# Copyright: (c) 2026, The funnel.tornado developers
# MIT License (see LICENSE)
"""Bring a release of an app live."""

from __future__ import annotations

DOCUMENTATION = r"""
module: switch
short_description: Bring a release of an app live without losing a request
version_added: 0.1.0
description:
  - Starts the release in the slot that is free, waits until every process of it is healthy, moves traffic by renaming a
    link, waits until nobody is connected to the other slot, and stops that.
  - If the release does not become healthy it is stopped and removed again. What was served before is served throughout.
  - What an earlier run left when it was broken off is finished or removed.
options:
  name:
    description: The app.
    type: str
    required: true
  release:
    description:
      - Id of a release that was built on the host, or V(previous), the one that was served before the one that is.
      - Empty only in check mode, when it is not known yet.
    type: str
    required: true
  rollback:
    description: Refuse a release that was never served on the host.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    description: Shows the release that is served before and after.
author:
  - The funnel.tornado developers
seealso:
  - module: funnel.tornado.release
"""

EXAMPLES = r"""
- name: Serve the release that was just built
  funnel.tornado.switch:
    name: shop
    release: "{{ built.id }}"

- name: Go back
  funnel.tornado.switch:
    name: shop
    release: previous
    rollback: true
"""

RETURN = r"""
slot:
  description: The slot that is served now.
  returned: success
  type: str
  sample: a
release:
  description: The release that is served now.
  returned: success
  type: str
steps:
  description: What was done, in order, and the seconds it took.
  returned: success
  type: list
  elements: dict
  sample: [{name: start, seconds: 1.204}, {name: switch, seconds: 0.001}]
pruned:
  description: Ids of old releases that were removed.
  returned: success
  type: list
  elements: str
"""

import dataclasses
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils import history
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout, LockedError
from ansible_collections.funnel.tornado.plugins.module_utils.release import is_built
from ansible_collections.funnel.tornado.plugins.module_utils.service import ServiceError
from ansible_collections.funnel.tornado.plugins.module_utils.supervisord import SupervisorError
from ansible_collections.funnel.tornado.plugins.module_utils.switch import Switcher, SwitchError


def main() -> None:
    """Run the switch, or say what it would do."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "rollback": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # whatever root's is: nginx has to pass through what is made
    layout = Layout(module.params["name"])
    release = module.params["release"]
    if release == "previous" or module.params["rollback"]:
        try:
            release = served_before(layout, release)
        except SwitchError as error:
            module.fail_json(msg=str(error))
    live = layout.live_slot()
    before = layout.slot_release(live) if live else None
    diff = {"before": f"{before or 'none'}\n", "after": f"{release}\n", "before_header": f"served by {layout.app}"}
    try:
        if module.check_mode:
            module.exit_json(changed=would_change(layout, release, before), release=release, steps=[], pruned=[], diff=diff)
        with layout.locked():
            outcome = Switcher(layout, release).run()
    except (LockedError, SwitchError, SupervisorError, ServiceError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**dataclasses.asdict(outcome), diff=diff if before != release else {})


def served_before(layout: Layout, release: str) -> str:
    """Return the id of a release that went live before.

    :raises SwitchError: when it never did, or is no longer on the host.
    """
    if release == "previous":
        release = history.previous(layout) or ""
        if not release:
            raise SwitchError(f"{layout.app}: nothing was served on this host before what is served now")
    if release not in {entry.release for entry in history.read(layout)}:
        raise SwitchError(f"{layout.app}: release {release} was never served on this host; {layout.history} has those that were")
    if not is_built(layout, release):
        raise SwitchError(f"{layout.app}: release {release} is no longer on this host; deploy its version again")
    return release


def would_change(layout: Layout, release: str, before: str | None) -> bool:
    """Say whether a switch would do anything, also on a host that has no supervisord yet."""
    if not release or before != release:
        return bool(release) or before is None
    switcher = Switcher(layout, release)
    return not switcher.is_served() or switcher.has_leftovers()


if __name__ == "__main__":
    main()
