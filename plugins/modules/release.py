#!/usr/bin/python
# Copyright: (c) 2026, The funnel.tornado developers
# MIT License (see LICENSE)
"""Build a release of an app on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Build a release of an app, beside what is served
version_added: 0.1.0
description:
  - A release is an immutable build of an app, its code, virtual environment and configuration, in
    C(/srv/<app>/releases/<id>). Nothing that is served changes by building one.
  - The id is a hash of what goes into it, so the same inputs build nothing a second time.
options:
  name:
    description: The app, a key of O(apps).
    type: str
    required: true
  apps:
    description: The value of C(tornado_apps).
    type: dict
    required: true
  version:
    description: Version that takes the place of the entry's own.
    type: str
  wait:
    description: Seconds that another deploy of the app on this host is waited for.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Says whether the release would be built. A git source is asked for its commit, and nothing is fetched.
  diff_mode:
    support: full
    description: Shows the release that is served and the one that is built.
author:
  - The funnel.tornado developers
"""

EXAMPLES = r"""
- name: Build the release of the shop
  funnel.tornado.release:
    name: shop
    apps: "{{ tornado_apps }}"
"""

RETURN = r"""
once:
  description: Whether something has to run on one host before any other one switches.
  returned: success
  type: bool
id:
  description: The release's id; empty when check mode cannot know it, as the host has no git yet.
  returned: success
  type: str
  sample: 3f1c0a9be2d4
revision:
  description: The commit of a git source, or the hash of the files of a path.
  returned: success
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import App, load
from ansible_collections.funnel.tornado.plugins.module_utils.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.lock import LockedError, deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.release import (
    BuildError,
    Programs,
    build,
    ensure_home,
    is_built,
    look_up,
    plan,
    resolve,
)
from ansible_collections.funnel.tornado.plugins.module_utils.schema import InvalidDataError

#: What the action plugin sends instead of ``apps``: one app, its secrets apart, and what only the controller has.
ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "app": {"type": "dict", "required": True},
    "secrets": {"type": "dict", "required": True, "no_log": True},
    "revision": {"type": "str", "required": True},
    "archive": {"type": "path"},
    "launcher": {"type": "str", "required": True},
    "runner": {"type": "str", "required": True},
    "builder": {"type": "str", "required": True},
    "wait": {"type": "int", "default": 60},
}


def main() -> None:
    """Plan the release, and build it when it is not there and its source is."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)  # whatever root's is: nginx has to pass through what is made
    try:
        name = module.params["name"]
        app = load({name: module.params["app"] | {"secrets": module.params["secrets"]}})[name]
        layout = Layout(name)
        if module.check_mode:
            module.exit_json(**release(module, layout, app))
        with deploy_lock(layout, module.params["builder"], wait=module.params["wait"]) as note:
            note("the build of a release")
            result = release(module, layout, app)
    except (BuildError, InvalidDataError, LockedError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def release(module: AnsibleModule, layout: Layout, app: App) -> dict[str, object]:
    """Return the module's result; ``needs_archive`` tells the action plugin to send the source and call again."""
    revision = module.params["revision"]
    if app.source.git is not None:
        revision = look_up(app) if module.check_mode else resolve(layout, app)
        if revision is None:
            return {"changed": True, "id": "", "revision": ""}
    programs = Programs(module.params["launcher"], module.params["runner"])
    planned = plan(app, revision, programs)
    result: dict[str, object] = {"id": planned.id, "revision": revision, "changed": not is_built(layout, planned.id)}
    if not result["changed"]:
        result["changed"] = not module.check_mode and ensure_home(layout)
        return result
    live = layout.live_slot()
    served = layout.slot_release(live) if live else None
    result["diff"] = {
        "before": f"{served or 'none'}\n",
        "after": f"{planned.id}\n",
        "before_header": f"release of {app.name}",
    }
    archive = module.params["archive"]
    if module.check_mode:
        return result
    if app.source.path is not None and archive is None:
        return {"needs_archive": True}
    build(layout, app, planned, programs, Path(archive) if archive else None, module.params["builder"])
    return result


if __name__ == "__main__":
    main()
