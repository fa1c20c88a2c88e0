#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: file_set
short_description: Apply the configuration files of a service atomically
description:
  - Renders templates on the controller, and does everything else on the host in one round trip.
  - If anything differs, the daemon's own checker validates a copy of O(root) with the new files. Then all files are replaced
    atomically, obsolete files are removed, and the service is reloaded or restarted.
  - The reload is verified. If the service does not start with the new files, the previous ones are restored and activated.
  - A run that was interrupted between writing files and reloading the service is completed by the next run.
  - The host is not contacted if the variable C(__funnel_host_state), the RV(funnel.tornado.preflight#module:host_state) of a
    check in the same run, shows that everything is up to date.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  root:
    description: Base directory of relative paths. It is copied for O(check).
    type: path
    default: /
  files:
    description:
      - Dictionary of path to desired state. An absolute path may be outside O(root); the copy for O(check) does not contain it.
      - C(template), a template of the role or playbook, rendered with the additional variables C(vars), or C(content), a
        string. Jinja's C(trim_blocks) and C(lstrip_blocks) are enabled.
      - C(link), the target of a symbolic link, instead of both.
      - C(mode), octal in quotes (V("0644")), C(owner) and C(group) (V(root)).
      - C(secret), whether to hide the content in output and diffs (V(false)).
      - C(label), the variable that the file is generated from, for messages.
      - C(needs), a list of other files that O(check) reads because of this file, such as certificates.
      - Missing directories are created with mode 0755. A symbolic link at the path of a file is replaced.
      - After a change below C(/etc/systemd/system), systemd reloads its units. The change takes effect immediately if
        O(service.on_change) restarts the service, and otherwise at its next start.
    type: dict
    required: true
  owns:
    description:
      - Globs. Matching files that are not in O(files) are removed; directories are kept.
      - Directories below O(root) with such files become those of root, which only root can change.
    type: list
    elements: str
    default: []
  keep:
    description: Globs. Matching files are not removed, although they match O(owns).
    type: list
    elements: str
    default: []
  absent:
    description: Files that must not exist.
    type: list
    elements: str
    default: []
  later:
    description:
      - Globs of files that a later task of the same run applies. If O(check) rejects one of them, because it is damaged, the
        files of this task are written nevertheless, with a warning, and the service keeps its present configuration.
    type: list
    elements: str
    default: []
  check:
    description:
      - Command of the daemon's checker; C({root}) is replaced by the path of the staged copy of O(root).
      - It runs only if something differs. In check mode it is skipped if the checker, the service or a needed file is missing.
    type: list
    elements: str
    default: []
  service:
    description: The systemd service that reads the files. It is enabled and started.
    type: dict
    suboptions:
      name:
        description: Name of the service, without C(.service), or of a timer, with C(.timer).
        type: str
        required: true
      on_change:
        description:
          - Action after a change of the files.
          - After a change of the unit O(service.listener), V(reload) restarts the service.
          - V(restart_if_idle) restarts it only if its main process has no child processes; otherwise it warns that the change
            takes effect at the next start.
        type: str
        choices: [reload, restart, restart_if_idle, none]
        default: none
      log:
        description: Error log of the service, if it does not log to the journal. New lines are shown on failure.
        type: path
      socket:
        description: Unix socket that accepts connections once the service is ready.
        type: path
      udp_port:
        description: UDP port that the main process of the service has bound once it is ready.
        type: int
      listener:
        description: The systemd socket unit that passes its sockets to the service, such as V(haproxy.socket).
        type: str
        default: ""
      timeout:
        description:
          - Timeout in seconds of a start or reload, after which the previous files are restored. Include the time that a
            service needs to repair its data.
        type: int
        default: 120
  front_doors:
    description:
      - Apps whose live releases clients must still reach through the service. If one that they reached before is not reached
        after the change, the previous files are restored.
    type: list
    elements: str
    default: []
  releases:
    description:
      - Releases of apps that the files belong to, by app. If another one is live, because somebody switched it meanwhile, nothing
        is changed. Not verified in check mode.
    type: dict
    default: {}
  secret_contents:
    description: The contents of secret files. Reserved for the action plugin.
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
  description: Paths that were or would be written.
  returned: success
  type: list
  elements: str
  sample: [/etc/nginx/nginx.conf]
removed:
  description: Paths that were or would be removed.
  returned: success
  type: list
  elements: str
  sample: [/etc/nginx/sites-enabled/default]
service:
  description:
    - Action on the service, V(start), V(reload), V(restart) or V(enable); empty if none was required.
    - V(deferred) if the change takes effect at its next start.
  returned: success
  type: str
  sample: reload
service_name:
  description: Name of the service.
  returned: if the host was not known to be up to date
  type: str
  sample: nginx
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import front_door_check
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_entries import parse_files
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import (
    FileSet,
    FileSetError,
    FileSetResult,
    converge,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.protected_directories import owned_directories, protect
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
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "files": {"type": "dict", "required": True},
            "owns": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "later": {"type": "list", "elements": "str", "default": []},
            "check": {"type": "list", "elements": "str", "default": []},
            "service": {"type": "dict", "options": SERVICE},
            "front_doors": {"type": "list", "elements": "str", "default": []},
            "releases": {"type": "dict", "default": {}},
            "secret_contents": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(module.params, check_mode=module.check_mode)
    except FileSetError as error:
        module.fail_json(msg=error_text(error))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=result.changed,
        files=result.files,
        removed=result.removed,
        service=result.service,
        diff=result.diff if module._diff else [],
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
    file_set = FileSet(root, files, params["owns"], params["absent"], params["keep"], params["later"])
    if not check_mode:
        require_live(params["releases"])
    protected = protect(owned_directories(root, params["owns"]), check_mode=check_mode)
    result = converge(
        file_set,
        check=params["check"],
        service=spec,
        find_problems=lambda: front_door_check.problems(params["front_doors"]),
        check_mode=check_mode,
    )
    result.files.extend(protected)
    return result


def require_live(releases: dict[str, str], base: Path = Path("/")) -> None:
    for app, release in releases.items():
        live = Layout(app, base).live_release() or ""
        if live != release:
            raise FileSetError(
                f"{app}: {f'release {live}' if live else 'no release'} is live instead of {release}, because somebody switched "
                "it meanwhile; its site was not changed"
            )


if __name__ == "__main__":
    main()
