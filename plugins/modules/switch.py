#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
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
  - If its hook C(after_switch) fails, or it does badly in the seconds of C(soak), traffic goes back to what was served before.
  - What an earlier run left when it was broken off is finished or removed.
options:
  name:
    description: The app.
    type: str
    required: true
  release:
    description:
      - Id of a release that was built on the host, V(live), the one that is served, or V(previous), the one that was served
        before that.
      - Empty only in check mode, when it is not known yet.
    type: str
    required: true
  rollback:
    description: Refuse a release that was never served on the host, and leave out its hook C(before_switch).
    type: bool
    default: false
  restart:
    description: Start the processes anew, in the other slot, though they run.
    type: bool
    default: false
  once:
    description: Whether a hook C(before_switch) that is to run C(once) runs on this host.
    type: bool
    default: true
  wait:
    description: Seconds that another deploy of the app on this host is waited for.
    type: int
    default: 60
  by:
    description: "Only for the controller's half of this module: who runs this, and where. It is noted in the app's history."
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    support: full
    description: Shows the release, the slot and the processes that are served before and after.
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.release
"""

EXAMPLES = r"""
- name: Serve the release that was just built
  funnel.tornado.switch:
    name: shop
    release: "{{ built.id }}"

- name: Start the processes anew
  funnel.tornado.switch:
    name: shop
    release: live
    restart: true

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
  description: The release that is served now; after a failure, too.
  returned: always
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
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import LockedError, deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import Switcher, SwitchError, SwitchRequest
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "release": {"type": "str", "required": True},
    "rollback": {"type": "bool", "default": False},
    "restart": {"type": "bool", "default": False},
    "once": {"type": "bool", "default": True},
    "wait": {"type": "int", "default": 60},
    "by": {"type": "str", "default": ""},
}


def main() -> None:
    """Run the switch, or say what it would do."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)  # whatever root's is: nginx has to pass through what is made
    layout = Layout(module.params["name"])
    try:
        if module.check_mode:
            module.exit_json(**predict(layout, wanted(layout, module.params)))
        if not layout.home.is_dir():
            module.fail_json(msg=f"{layout.app}: nothing is served on this host")
        with deploy_lock(layout, module.params["by"], wait=module.params["wait"]) as note:
            asked = wanted(layout, module.params)
            require_built(layout, asked.release)
            if not module.params["rollback"]:
                require_last_push(layout, asked.release)
            before = served(layout)
            outcome = Switcher(layout, asked, lambda step: note(f"{step} of release {asked.release}")).run()
    except (LockedError, OSError, SwitchError, SupervisorError, ServiceError) as error:
        module.fail_json(msg=printable_message(str(error)), release=layout.live_release() or "")
    module.exit_json(**dataclasses.asdict(outcome), diff=difference(layout, before, served(layout)))


def wanted(layout: Layout, params: dict[str, Any]) -> SwitchRequest:
    """Return what is asked for, with the id of a release that was named by its place.

    :raises SwitchError: when there is none in that place, or a rollback asks for one that was never served.
    """
    release = params["release"]
    if release == "live":
        release = layout.live_release() or ""
        if not release:
            raise SwitchError(f"{layout.app}: nothing is served on this host")
    elif release == "previous":
        release = history.previous(layout) or ""
        if not release:
            raise SwitchError(f"{layout.app}: nothing was served on this host before what is served now")
    if params["rollback"]:
        require_served_before(layout, release)
    forward = not params["rollback"] and not params["restart"]
    forward = forward and (params["once"] or not is_once(layout, release))
    return SwitchRequest(release, params["by"], params["restart"], before_switch=forward)


def require_served_before(layout: Layout, release: str) -> None:
    """See that a release went live before, and is there.

    :raises SwitchError: when it is not so.
    """
    if release not in {entry.release for entry in history.read(layout)}:
        raise SwitchError(f"{layout.app}: release {release} was never served on this host; {layout.history} has those that were")
    require_built(layout, release)


def require_built(layout: Layout, release: str) -> None:
    """See that a release is on this host.

    :raises SwitchError: when it is not.
    """
    if not layout.is_built(release):
        raise SwitchError(f"{layout.app}: release {release} is not on this host; deploy its version again")


def require_last_push(layout: Layout, release: str) -> None:
    """See that nothing was pushed since a release was built of what had been pushed before.

    :raises SwitchError: when something was: it is served, and would be lost.
    """
    live = layout.live_release()
    if live is None or not all(layout.pushed_source(one).exists() for one in (live, release)):
        return
    last, built = (read_manifest(layout, one).revision for one in (live, release))
    if last != built:
        raise SwitchError(f"{layout.app}: {last} was pushed meanwhile and is served; run again, to have it with other settings")


def is_once(layout: Layout, release: str) -> bool:
    """Say whether the hook before the switch is for one host of the play only."""
    return layout.is_built(release) and read_manifest(layout, release).hooks_once


def served(layout: Layout) -> str:
    """Return what is served, as a line of a diff."""
    live, release = layout.live_slot(), layout.live_release()
    if live is None or release is None or not layout.is_built(release):
        return "nothing\n"
    return line(layout, live, release)


def line(layout: Layout, slot: str, release: str) -> str:
    """Return a release in a slot, as a line of a diff; one that is not built yet has its processes in the diff of its build."""
    if not layout.is_built(release):
        return f"release {release}, slot {slot}\n"
    return f"release {release}, slot {slot}, {read_manifest(layout, release).size}\n"


def difference(layout: Layout, before: str, after: str) -> dict[str, str]:
    """Return the diff."""
    return {"before": before, "after": after, "before_header": f"served by {layout.app}"} if before != after else {}


def predict(layout: Layout, asked: SwitchRequest) -> dict[str, Any]:
    """Return the result that a run would have, also on a host that has no supervisord yet."""
    before = served(layout)
    live = layout.live_slot()
    switched = asked.restart or not asked.release or layout.live_release() != asked.release
    leftovers = False
    if not switched:
        switcher = Switcher(layout, asked)
        switched, leftovers = not switcher.is_live(), switcher.has_leftovers()
    after = line(layout, layout.inactive_slot(), asked.release or "not built yet") if switched else before
    result = {"changed": switched or leftovers, "release": asked.release, "slot": layout.inactive_slot() if switched else live}
    return result | {"steps": [], "pruned": [], "diff": difference(layout, before, after)}


if __name__ == "__main__":
    main()
