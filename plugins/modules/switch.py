#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Deploy a release: switch an app to it without downtime."""

from __future__ import annotations

DOCUMENTATION = r"""
module: switch
short_description: Switch an app to a release without downtime
version_added: 0.1.0
description:
  - Starts the release in the inactive slot, waits until its health checks succeed, moves the traffic by renaming a link,
    drains the connections of the old slot so that in-flight requests complete, and stops its processes.
  - If a process does not become healthy, the new processes are stopped and removed. The previous release serves throughout.
  - If the hook C(after_switch) fails, or a process is unhealthy or too many responses are errors within C(soak) seconds, the
    traffic is rolled back to the previous release.
  - Completes or removes what an interrupted run has left. Idempotent.
options:
  name:
    description: Name of the app.
    type: str
    required: true
  release:
    description:
      - Id of a release that was built on the host, V(live) for the live one, or V(previous) for the rollback target, the
        latest release before the live one that was not rolled back.
      - May be empty in check mode only, for a release whose id cannot be determined yet.
    type: str
    required: true
  rollback:
    description: Reject a release that was never live on the host, and skip its hooks C(before_start) and C(before_switch).
    type: bool
    default: false
  restart:
    description: Start new processes, in the inactive slot, even if the release is live already.
    type: bool
    default: false
  once:
    description: Whether this host runs the hooks that are configured with C(once).
    type: bool
    default: true
  wait:
    description: Seconds to wait for another deploy of the app on this host.
    type: int
    default: 60
  by:
    description: "Set by the action plugin: the operator and the controller, for the app's deploy history."
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode:
    support: full
    description: Shows the live release, its slot and its number of processes before and after.
author:
  - The funnel.tornado developers (@funnel)
seealso:
  - module: funnel.tornado.release
"""

EXAMPLES = r"""
- name: Switch to the release that was just built
  funnel.tornado.switch:
    name: shop
    release: "{{ built.id }}"

- name: Restart the processes without downtime
  funnel.tornado.switch:
    name: shop
    release: live
    restart: true

- name: Roll back to the previous release
  funnel.tornado.switch:
    name: shop
    release: previous
    rollback: true
"""

RETURN = r"""
slot:
  description: The live slot.
  returned: success
  type: str
  sample: a
release:
  description: Id of the live release, also after a failure.
  returned: always
  type: str
steps:
  description: The steps that were carried out, in order, with their durations in seconds.
  returned: success
  type: list
  elements: dict
  sample: [{name: start, seconds: 1.204}, {name: switch, seconds: 0.001}]
pruned:
  description: Ids of the old releases that were removed.
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
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import is_live
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.slots import has_leftovers
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.supervisord import SupervisorError, connect
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
    """Switch the app, or predict the result in check mode."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)  # nginx must be able to enter the new directories, whatever the umask of root
    layout = Layout(module.params["name"])
    try:
        if module.check_mode:
            module.exit_json(**predict(layout, build_request(layout, module.params)))
        if not layout.home.is_dir():
            module.fail_json(msg=f"{layout.app}: no release is live on this host")
        with deploy_lock(layout, module.params["by"], wait=module.params["wait"]) as note_step:
            request = build_request(layout, module.params)
            require_built(layout, request.release)
            if not module.params["rollback"]:
                require_latest_push(layout, request.release)
            before = describe_live(layout)
            result = Switcher(layout, request, lambda step: note_step(f"{step} of release {request.release}")).run()
    except (LockedError, OSError, SwitchError, SupervisorError, ServiceError) as error:
        module.fail_json(msg=printable_message(str(error)), release=layout.live_release() or "")
    module.exit_json(**dataclasses.asdict(result), diff=difference(layout, before, describe_live(layout)))


def build_request(layout: Layout, params: dict[str, Any]) -> SwitchRequest:
    """Return the request of the module's parameters, with ``live`` and ``previous`` replaced by ids.

    :raises SwitchError: when there is no such release, or the target of a rollback was never live.
    """
    release = params["release"]
    if release == "live":
        release = layout.live_release() or ""
        if not release:
            raise SwitchError(f"{layout.app}: no release is live on this host")
    elif release == "previous":
        release = history.previous(layout) or ""
        if not release:
            raise SwitchError(f"{layout.app}: this host has no previous release to roll back to")
    if params["rollback"]:
        require_in_history(layout, release)
    forward = not params["rollback"] and not params["restart"]
    return SwitchRequest(release, params["by"], params["restart"], forward, params["once"])


def require_in_history(layout: Layout, release: str) -> None:
    """Require that a release was live before and is still on this host.

    :raises SwitchError: when it is not.
    """
    if release not in {entry.release for entry in history.read(layout)}:
        raise SwitchError(f"{layout.app}: release {release} was never live on this host; {layout.history} lists those that were")
    require_built(layout, release)


def require_built(layout: Layout, release: str) -> None:
    """Require that a release is on this host.

    :raises SwitchError: when it is not.
    """
    if not layout.is_built(release):
        raise SwitchError(f"{layout.app}: release {release} is not on this host; deploy its version again")


def require_latest_push(layout: Layout, release: str) -> None:
    """Require that no newer push went live while a release was built from an earlier push.

    :raises SwitchError: when one did, which the switch would replace with older code.
    """
    live = layout.live_release()
    if live is None or not all(layout.pushed_source(each).exists() for each in (live, release)):
        return
    pushed, built = (read_manifest(layout, each).revision for each in (live, release))
    if pushed != built:
        raise SwitchError(f"{layout.app}: {pushed} was pushed meanwhile and is live; run again to apply the settings to it")


def describe_live(layout: Layout) -> str:
    """Return the live release as a line of a diff."""
    live, release = layout.live_slot(), layout.live_release()
    if live is None or release is None or not layout.is_built(release):
        return "nothing\n"
    return describe(layout, live, release)


def describe(layout: Layout, slot: str, release: str) -> str:
    """Return a release in a slot as a line of a diff, with the number of its processes if it is built."""
    if not layout.is_built(release):
        return f"release {release}, slot {slot}\n"
    return f"release {release}, slot {slot}, {read_manifest(layout, release).process_summary}\n"


def difference(layout: Layout, before: str, after: str) -> dict[str, str]:
    """Return the diff."""
    return {"before": before, "after": after, "before_header": f"served by {layout.app}"} if before != after else {}


def predict(layout: Layout, request: SwitchRequest) -> dict[str, Any]:
    """Return the result of a switch without changing anything, also on a host without supervisord."""
    before = describe_live(layout)
    live = layout.live_slot()
    switched = request.restart or not request.release or layout.live_release() != request.release
    leftovers = False
    if not switched:
        switched, leftovers = not is_live(layout, request.release, connect()), has_leftovers(layout)
    after = describe(layout, layout.inactive_slot(), request.release or "not built yet") if switched else before
    result = {"changed": switched or leftovers, "release": request.release, "slot": layout.inactive_slot() if switched else live}
    return result | {"steps": [], "pruned": [], "diff": difference(layout, before, after)}


if __name__ == "__main__":
    main()
