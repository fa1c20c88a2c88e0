#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: file_set
short_description: Apply the configuration files of a service as one set
description:
  - Renders templates on the controller and does everything else on the host in one round trip.
  - If anything differs, a copy of the whole O(root) with the new files in it is checked by the daemon itself, then
    every file is replaced by a rename, leftovers are removed, and the service is reloaded or restarted.
  - The reload is confirmed. If the service does not take the new files, those of before are put back and reactivated.
  - A run that was cut off between writing files and reloading the service is finished by the next one.
  - The host is not contacted if the variable C(__funnel_host_state), the RV(funnel.tornado.preflight#module:host_state) of a
    check in the same run, shows that everything is up to date.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  root:
    description: Directory that relative paths are below, and that is copied for O(check).
    type: path
    default: /
  files:
    description:
      - A dictionary of path to how the file has to be.
        An absolute path may lie outside of O(root); O(check) does not see it.
      - C(template), a template of the role or playbook, rendered with C(vars) added to the variables, or C(content),
        a text. Jinja's C(trim_blocks) and C(lstrip_blocks) are on.
      - C(link), the target of a symbolic link, instead of both.
      - C(mode), octal in quotes (V("0644")), C(owner) and C(group) (V(root)).
      - C(secret), whether the content must be kept out of output and diffs (V(false)).
      - C(label), the variable the file was made from, named in messages about it.
      - C(needs), a list of files elsewhere that O(check) reads because of it, such as certificates.
      - Missing directories are made with mode 0755. A symbolic link in a file's place is replaced by the file.
      - After a change below C(/etc/systemd/system), systemd reads its units again. A service is restarted for
        it if a change of its files restarts it, see O(service.on_change), and otherwise takes it up at its next start.
    type: dict
    required: true
  owns:
    description: Globs. What they match and O(files) does not name is removed; directories stay.
    type: list
    elements: str
    default: []
  absent:
    description: Files that have to be gone.
    type: list
    elements: str
    default: []
  check:
    description:
      - The daemon's own checker and its arguments; C({root}) is replaced by the staged copy of O(root).
      - It runs only if something differs. In check mode it is left out while the checker, the service or a file that is
        needed is missing.
    type: list
    elements: str
    default: []
  service:
    description: The systemd service that reads the files. It is always made enabled and active.
    type: dict
    suboptions:
      name:
        description: Name of the service, without C(.service). That of a timer ends with C(.timer).
        type: str
        required: true
      on_change:
        description:
          - What lets the service read changed files.
          - V(reload) is a restart after a change of the unit O(service.listener).
          - V(restart_if_idle) restarts it only while its main process has no children, and else warns that the change
            waits.
        type: str
        choices: [reload, restart, restart_if_idle, none]
        default: none
      log:
        description: File that the service writes errors to instead of the journal; what it adds is shown when it fails.
        type: path
      socket:
        description: Unix socket that accepts connections when the service is ready.
        type: path
      udp_port:
        description: UDP port that the service's main process has when it is ready.
        type: int
      listener:
        description: The systemd unit of the sockets that are handed to the service, such as V(haproxy.socket).
        type: str
        default: ""
      timeout:
        description:
          - Seconds that the service may take to start or reload. One that takes longer has failed, and is restarted with the
            files of before. For one that first repairs its data that has to be long.
        type: int
        default: 120
  secret_contents:
    description: The contents of secret files. The action plugin fills it; do not use it.
    type: dict
    default: {}
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Apply the nginx configuration
  funnel.tornado.file_set:
    root: /etc/nginx
    files:
      nginx.conf: {template: nginx.conf.j2}
      sites-enabled/shop.conf: {template: site.conf.j2, vars: {site: shop}, label: nginx_sites.shop}
      htpasswd: {content: "{{ vault_htpasswd }}", mode: "0640", group: www-data, secret: true}
    owns: [sites-enabled/*.conf]
    absent: [sites-enabled/default]
    check: [nginx, -t, -q, -c, "{root}/nginx.conf"]
    service: {name: nginx, on_change: reload, log: /var/log/nginx/error.log}
"""

RETURN = r"""
files:
  description: Paths that were written, or would be.
  returned: success
  type: list
  elements: str
  sample: [/etc/nginx/nginx.conf]
removed:
  description: Paths that were removed, or would be.
  returned: success
  type: list
  elements: str
  sample: [/etc/nginx/sites-enabled/default]
service:
  description:
    - What was done to the service, V(start), V(reload), V(restart) or V(enable); empty if nothing had to be.
    - V(deferred) if the change waits for its next start.
  returned: success
  type: str
  sample: reload
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import (
    FileSet,
    FileSetError,
    FileSetResult,
    converge,
    parse_files,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceSpec

SERVICE = {
    "name": {"type": "str", "required": True},
    "on_change": {"type": "str", "choices": ["reload", "restart", "restart_if_idle", "none"], "default": "none"},
    "log": {"type": "path"},
    "socket": {"type": "path"},
    "udp_port": {"type": "int"},
    "listener": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 120},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "files": {"type": "dict", "required": True},
            "owns": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "str", "default": []},
            "check": {"type": "list", "elements": "str", "default": []},
            "service": {"type": "dict", "options": SERVICE},
            "secret_contents": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        outcome = apply(module.params, check_mode=module.check_mode)
    except FileSetError as error:
        module.fail_json(msg=str(error))
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(
        changed=outcome.changed,
        files=outcome.files,
        removed=outcome.removed,
        service=outcome.service,
        diff=outcome.diff if module._diff else [],
    )


def apply(params: dict[str, Any], *, check_mode: bool) -> FileSetResult:
    secrets = {path: {"content": content} for path, content in params["secret_contents"].items()}
    files = parse_files({path: {**entry, **secrets.get(path, {})} for path, entry in params["files"].items()})
    root = Path(params["root"])
    if params["check"] and root == Path("/"):
        raise FileSetError("check: needs a root other than /, because root is copied for it")
    service = params["service"]
    spec = service and ServiceSpec(
        name=service["name"],
        on_change=service["on_change"],
        log=service["log"] and Path(service["log"]),
        socket=service["socket"] and Path(service["socket"]),
        udp_port=service["udp_port"],
        listener=service["listener"],
        timeout=service["timeout"],
    )
    file_set = FileSet(root, files, params["owns"], params["absent"])
    return converge(file_set, check=params["check"], service=spec, check_mode=check_mode)


if __name__ == "__main__":
    main()
