#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Deploy releases: switch apps to them without downtime."""

from __future__ import annotations

DOCUMENTATION = r"""
module: switch
short_description: Switch apps to releases without downtime
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
    description: Name of the app; O(apps) names several.
    type: str
  release:
    description:
      - Id of a release that was built on the host, V(live) for the live one, or V(previous) for the rollback target, the
        newest release that served well, other than the live one. A release that was undone, rolled back from or not verified
        completely did not.
      - May be empty in check mode only, for a release whose id cannot be determined yet.
    type: str
  apps:
    description: Releases by app, each as O(release). The apps are switched concurrently, two for each CPU.
    type: dict
  depends_on:
    description: Apps that are switched before an app, by app. If one of them fails, the app is not switched.
    type: dict
    default: {}
  failed:
    description: Apps that failed earlier. Apps that depend on them are not switched.
    type: list
    elements: str
    default: []
  replaced:
    description:
      - The releases that were live when those of O(apps) were built. The deploy fails if one of them was rolled back meanwhile.
    type: dict
    default: {}
  rollback:
    description:
      - Record that the live release is rolled back, and skip the hooks C(before_start) and C(before_switch).
      - A deploy of the app that is running is preempted. If the release still runs in the inactive slot, it is live at once.
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
  defer:
    description:
      - Whether to leave the verification of an app that nothing served before, from its front door to C(soak), to a second call
        without this option, when the site of the app has been applied. RV(apps) then has C(deferred) for the app.
    type: bool
    default: false
  drain:
    description:
      - Whether to drain and stop the replaced slot. If not, its workers are asked to stop, and the rest is left to a second call
        with the release V(live). RV(apps) then has C(draining) for the app.
    type: bool
    default: true
  preempt:
    description: Whether to preempt a deploy of the app that is running, instead of waiting for it.
    type: bool
    default: false
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

- name: Restart several apps
  funnel.tornado.switch:
    apps: {shop: live, blog: live}
    restart: true

- name: Roll back to the previous release
  funnel.tornado.switch:
    name: shop
    release: previous
    rollback: true
"""

RETURN = r"""
apps:
  description: With O(apps), the following values by app, and C(msg) for an app that failed.
  returned: with O(apps), also after a failure
  type: dict
before:
  description: Id of the release that was live before; empty without one.
  returned: always
  type: str
slot:
  description: The live slot.
  returned: success
  type: str
  sample: a
release:
  description: Id of the live release, also after a failure.
  returned: always
  type: str
undone:
  description: Whether the release was live, and the switch rolled it back.
  returned: failure
  type: bool
steps:
  description: The steps that were carried out, in order, with their durations in seconds.
  returned: success
  type: list
  elements: dict
  sample: [{name: start, seconds: 1.204}, {name: switch, seconds: 0.001}]
deferred:
  description: Whether the verification was left to a second call, see O(defer).
  returned: success
  type: bool
draining:
  description: Whether the replaced slot was left to a second call, see O(drain).
  returned: success
  type: bool
pruned:
  description: Ids of the old releases that were removed.
  returned: success
  type: list
  elements: str
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.operation import Operation, perform, perform_all

ARGUMENTS = {
    "name": {"type": "str"},
    "release": {"type": "str"},
    "apps": {"type": "dict"},
    "depends_on": {"type": "dict", "default": {}},
    "failed": {"type": "list", "elements": "str", "default": []},
    "replaced": {"type": "dict", "default": {}},
    "rollback": {"type": "bool", "default": False},
    "restart": {"type": "bool", "default": False},
    "once": {"type": "bool", "default": True},
    "defer": {"type": "bool", "default": False},
    "drain": {"type": "bool", "default": True},
    "preempt": {"type": "bool", "default": False},
    "wait": {"type": "int", "default": 60},
    "by": {"type": "str", "default": ""},
}


def main() -> None:
    """Switch the apps, or predict the result in check mode."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_one_of=[("name", "apps")],
        mutually_exclusive=[("name", "apps")],
        required_together=[("name", "release")],
    )
    os.umask(0o022)  # nginx must be able to enter the new directories, whatever the umask of root
    params = module.params
    options = ("by", "rollback", "restart", "once", "defer", "drain", "wait", "preempt", "replaced", "depends_on", "failed")
    operation = Operation(check=module.check_mode, **{option: params[option] for option in options})
    if params["name"]:
        finish(module, perform(operation, Layout(params["name"]), params["release"]))
    results = perform_all(operation, params["apps"])
    diffs = [diff for result in results.values() if (diff := result.pop("diff", None))]
    problems = [result["msg"] for result in results.values() if result.get("failed")]
    failure = {"failed": True, "msg": "\n".join(problems)} if problems else {}
    finish(module, {"changed": any(result["changed"] for result in results.values()), "apps": results, "diff": diffs} | failure)


def finish(module: AnsibleModule, result: dict[str, Any]) -> None:
    """Exit with the result."""
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
