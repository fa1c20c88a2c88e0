#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Validate the apps, and return the state of the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Validate tornado_apps and check the host
version_added: 0.1.0
description:
  - Validates all entries of C(tornado_apps) on the controller, then against the limits and names of the host. Fails with one
    message that lists every mistake with its path and remedy. Changes nothing.
options:
  apps:
    description: The value of C(tornado_apps).
    type: dict
    required: true
  names:
    description: Apps that O(apps) must contain.
    type: list
    elements: str
    default: []
  removed:
    description: Apps outside O(apps) that the run removes, so that they are no conflict.
    type: list
    elements: str
    default: []
  versions:
    description: Versions to use instead of the versions in the entries, by app.
    type: dict
    default: {}
  roles:
    description: Roles of this collection whose variables are validated against their argument specs.
    type: list
    elements: str
    default: []
  builds:
    description:
      - Whether releases of O(names), or of all apps, are built afterwards. Sources on the controller that cannot be sent, and a
        full disk of the host, are mistakes then.
    type: bool
    default: true
  packages:
    description: "Set by the action plugin: the packages that the apps need."
    type: list
    elements: str
    default: []
  releases:
    description: "Set by the action plugin: the inputs of the releases as JSON."
    type: str
    default: ""
  key:
    description: "Set by the action plugin: the key for the digests in RV(host_state)."
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
"""

EXAMPLES = r"""
- name: Validate the apps before anything changes
  funnel.tornado.preflight:
    apps: "{{ tornado_apps }}"
"""

RETURN = r"""
cpus:
  description: Number of CPUs available to processes.
  returned: success
  type: int
open_files:
  description: Maximum number of open files that a process can get.
  returned: success
  type: int
nginx_workers:
  description:
    - Recommended number of nginx workers, one for two CPUs, which leaves CPU time to the apps.
    - With one worker per CPU, as C(auto) sets, nginx and the processes of an app kept preempting each other. On two CPUs, half as
      many workers served about a fifth more requests.
  returned: success
  type: int
capacity:
  description: The limits of open files that RV(open_files) results from.
  returned: success
  type: dict
supervisor_limit:
  description: The drop-in of the host that overrides the limit of open files of supervisord, with its C(soft) and C(hard) limit.
  returned: if there is one
  type: dict
live:
  description: Names of the apps that are live on the host.
  returned: success
  type: list
  elements: str
users:
  description: Ids of the users of the apps in RV(live).
  returned: success
  type: dict
unlisted:
  description: Names of the apps in RV(live) that are not in O(apps) and keep their sites.
  returned: success
  type: list
  elements: str
memory:
  description: Bytes of memory that are C(available), and C(used) by each app of RV(live).
  returned: success
  type: dict
listeners:
  description: Programs that listen on TCP ports, with C(address), C(port), C(process), C(pid), C(unit) and the id of the C(user).
  returned: success
  type: list
  elements: dict
unprivileged_port:
  description: The first port that a program can listen on without a capability.
  returned: success
  type: int
  sample: 1024
nginx:
  description: The RV(funnel.tornado.nginx_info#module:nginx) of the host.
  returned: success
  type: dict
balanced:
  description: Names of the backends of HAProxy on the host.
  returned: success
  type: list
  elements: str
programs:
  description:
    - Programs of the administrator in supervisord, C(groups), sections of supervisord.conf that would be C(lost), and the socket
      of another supervisord, C(other_socket).
  returned: success
  type: dict
names:
  description: Names of users, groups and directories in C(/srv) and C(/var/log) that belong to no app, and thus are reserved.
  returned: success
  type: list
  elements: str
unavailable_packages:
  description: The packages of O(packages) that are neither installed nor in a package source of the host.
  returned: success
  type: list
  elements: str
certificates:
  description: Names of the apps whose certificates are on the host.
  returned: success
  type: list
  elements: str
pushed:
  description: Names of the apps that are configured for push to deploy.
  returned: success
  type: list
  elements: str
host_state:
  description:
    - >-
      The state of everything that the roles of an app host manage: digests of configuration files, which only the controller can
      compare, states of services, kernel settings, the version of uv, and the apps whose releases are live and up to date.
    - In the variable C(__funnel_host_state), it lets M(funnel.tornado.file_set), M(funnel.tornado.limits),
      M(funnel.tornado.release) and M(funnel.tornado.uv) skip a host that is up to date.
  returned: success
  type: dict
packages:
  description:
    - The C(versions) of all installed packages and the C(codename) of the distribution release.
    - In the variable C(__funnel_packages), it lets M(funnel.tornado.packages) skip a host that is up to date.
  returned: success
  type: dict
"""

import grp
import json
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.app.site_options import all_applied
from ansible_collections.funnel.tornado.plugins.module_utils.building.release import Programs
from ansible_collections.funnel.tornado.plugins.module_utils.core import memory
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import TEMPORARY, full_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import PUSH_ENTRIES, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.listeners import first_unprivileged_port, tcp_listeners
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import link_protection_problem, root_problem
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.settled import settled_releases
from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import existing_nginx
from ansible_collections.funnel.tornado.plugins.module_utils.status.apps import live_apps
from ansible_collections.funnel.tornado.plugins.module_utils.status.host_state import collect_host_state
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.existing_programs import existing_programs
from ansible_collections.funnel.tornado.plugins.module_utils.system.filesystems import APP_DIRECTORIES, filesystem_problem
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import build_environment, is_managed
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import overriding_drop_in
from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import (
    PackagesError,
    find_unavailable,
    installed_versions,
    provided_versions,
    require_supported_host,
    upstream_versions,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET, installed_names

#: The controller validates all arguments; only the last four are sent to the host.
ARGUMENTS = {
    "apps": {"type": "dict", "required": True},
    "names": {"type": "list", "elements": "str", "default": []},
    "removed": {"type": "list", "elements": "str", "default": []},
    "versions": {"type": "dict", "default": {}},
    "roles": {"type": "list", "elements": "str", "default": []},
    "builds": {"type": "bool", "default": True},
    "packages": {"type": "list", "elements": "str", "default": []},
    "releases": {"type": "str", "default": "", "no_log": True},
    "key": {"type": "str", "default": "", "no_log": True},
}


def main() -> None:
    """Return the state of the host."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    capacity = Capacity.of_host()
    try:
        distribution = require_supported_host()
        problem = root_problem() or link_protection_problem() or filesystem_problem(APP_DIRECTORIES)
        if problem := problem or (module.params["builds"] and full_problem(written_directories())):
            module.fail_json(msg=f"{problem}; nothing was changed")
        installed = installed_versions()
        installed |= provided_versions([name for name in module.params["packages"] if name not in installed])
        unavailable = find_unavailable([name for name in module.params["packages"] if name not in installed])
    except (CommandError, PackagesError) as error:
        module.fail_json(msg=str(error))
    cpus = len(os.sched_getaffinity(0))
    users = {name: pwd.getpwnam(name).pw_uid for name in live_apps() if name in {user.pw_name for user in pwd.getpwall()}}
    used = memory.used_by(users.values())
    module.exit_json(
        changed=False,
        cpus=cpus,
        nginx_workers=max(1, cpus // 2),
        open_files=capacity.max_open_files,
        capacity=asdict(capacity),
        supervisor_limit=(found := overriding_drop_in("supervisor")) and asdict(found),
        live=live_apps(),
        users=users,
        memory={"available": memory.available(), "used": {name: used[uid] for name, uid in users.items()}},
        listeners=[asdict(listener) for listener in tcp_listeners()],
        unprivileged_port=first_unprivileged_port(),
        names=sorted(set(taken_names())),
        certificates=installed_names(APP_SET),
        unavailable_packages=unavailable,
        packages={"codename": distribution.codename, "versions": upstream_versions(installed)},
        nginx=existing_nginx().to_data(),
        programs=asdict(existing_programs()),
        balanced=balanced_backends(),
        host_state=replace(
            collect_host_state(module.params["key"].encode()), releases=find_settled(module.params["releases"])
        ).to_data(),
        pushed=sorted(path.stem for path in PUSH_ENTRIES.glob("*.json")),
        site_options=all_applied(),
    )


def written_directories() -> list[str | Path]:
    """Return the directories that a deploy writes to, including that of Ansible in the home of the user who connects."""
    homes = {user.pw_name: Path(user.pw_dir) for user in pwd.getpwall()}
    home = homes.get(os.environ.get("SUDO_USER", "root"), Path("/root"))
    return [*APP_DIRECTORIES, *TEMPORARY, home, home / ".ansible", home / ".ansible/tmp"]


def find_settled(inputs: str) -> dict[str, dict[str, str]]:
    """Return the settled releases among those with these inputs, by app."""
    if not inputs:
        return {}
    os.environ.update(build_environment())  # certificates and proxy for git
    data = json.loads(inputs)
    return settled_releases(data["apps"], data["revisions"], Programs(data["launcher"], json.loads(data["runner"])))


def balanced_backends(file: Path = Path("/etc/haproxy/haproxy.cfg")) -> list[str]:
    """Return the names of the backends of HAProxy on this host."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return re.findall(r"^backend (\S+)", text, re.MULTILINE)


def taken_names() -> Iterator[str]:
    """Yield the names of users, groups and directories that do not belong to an app."""
    yield from (user.pw_name for user in pwd.getpwall() if user.pw_dir != str(Layout(user.pw_name).home))
    yield from (group.gr_name for group in grp.getgrall() if not is_managed(Layout(group.gr_name)))
    for directory in filter(Path.is_dir, (Path("/var/log"), Path("/srv"))):
        yield from (path.name for path in directory.iterdir() if path.is_dir() and not is_managed(Layout(path.name)))


if __name__ == "__main__":
    main()
