#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: uv
short_description: Install a version of uv, and configure its package indexes
description:
  - Installs uv below C(/opt/uv), links it as C(/usr/local/bin/uv) and removes other versions.
  - It is downloaded with the pip of the Debian package C(python3-venv).
  - The previous version is kept until the new one has run.
  - Writes indexes, proxy and certificates to C(/etc/uv), also for builds. Values that may contain passwords are readable by root
    only.
  - The host is not contacted if the variable C(__funnel_host_state), the RV(funnel.tornado.preflight#module:host_state) of a
    check in the same run, shows that everything is up to date.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  version:
    description: The version.
    type: str
    required: true
  hashes:
    description: Hashes of the accepted wheels, V(sha256:...). If empty, any wheel of the version is accepted.
    type: list
    elements: str
    default: []
  index_url:
    description: URL of the package index; the default of the host if empty. It may contain a password.
    type: str
    default: ""
  extra_index_urls:
    description: URLs of additional indexes.
    type: list
    elements: str
    default: []
  ca_bundle:
    description: File with trusted certificates; the default of the host if empty.
    type: str
    default: ""
  proxy:
    description: URL of a proxy. It may contain a password.
    type: str
    default: ""
  no_proxy:
    description: Hosts that are contacted without the proxy, separated by commas.
    type: str
    default: ""
  mirror:
    description: URL from which other versions of Python are downloaded; the default of uv if empty. It may contain a password.
    type: str
    default: ""
  downloads_json:
    description: URL of the list of these versions; the default of uv if empty. It may contain a password.
    type: str
    default: ""
  wheelhouse:
    description:
      - Directory on the controller whose packages, including uv, replace all indexes. They are copied to C(/opt/wheelhouse), also
        for builds; only packages that the host lacks are sent.
    type: str
    default: ""
  packages:
    description: Hashes of the packages in O(wheelhouse). Reserved for the action plugin.
    type: dict
    default: {}
  archive:
    description: Archive of the packages that the host lacks. Reserved for the action plugin.
    type: path
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Install uv
  funnel.tornado.uv:
    version: 0.13.8

- name: Install uv on a host without access to an index
  funnel.tornado.uv:
    version: 0.13.8
    wheelhouse: files/wheels
"""

RETURN = r"""
path:
  description: Path of the program.
  returned: success
  type: str
  sample: /opt/uv/0.13.8/bin/uv
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system import wheelhouse
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSet, FileSetError
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import converge as apply
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import SOURCES, Sources, Uv, UvError


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "hashes": {"type": "list", "elements": "str", "default": []},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "extra_index_urls": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "ca_bundle": {"type": "str", "default": ""},
            "proxy": {"type": "str", "default": "", "no_log": True},
            "no_proxy": {"type": "str", "default": ""},
            "mirror": {"type": "str", "default": "", "no_log": True},
            "downloads_json": {"type": "str", "default": "", "no_log": True},
            "wheelhouse": {"type": "str", "default": ""},
            "packages": {"type": "dict", "default": {}},
            "archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = converge(module)
    except (UvError, wheelhouse.WheelhouseError, FileSetError) as error:
        module.fail_json(msg=error_text(error))
    module.exit_json(**result)


def converge(module: AnsibleModule) -> dict[str, Any]:
    """Return the result of the module; ``needs_packages`` requests these packages from the action plugin."""
    params = module.params
    uv = Uv(params["version"])
    desired = params["packages"]
    sources = Sources(**{key: params[key] for key in SOURCES}, wheelhouse=wheelhouse.HOME if desired else None)
    installed = wheelhouse.package_hashes(wheelhouse.HOME) if desired else {}
    before = [*uv.other_paths(), *(wheelhouse.HOME / name for name, digest in installed.items() if desired.get(name) != digest)]
    missing = [name for name, digest in desired.items() if installed.get(name) != digest]
    after = [*([] if uv.is_up_to_date() else [uv.directory]), *(wheelhouse.HOME / name for name in missing)]
    changed = bool(before or after)
    if changed and not module.check_mode:
        if missing and not params["archive"]:
            return {"needs_packages": missing}
        if desired:
            wheelhouse.converge(desired, Path(params["archive"]) if missing else None)
        if message := uv.install(params["hashes"], sources.pip_environment()):
            module.warn(message)
    elif message := uv.move_other(check_mode=True):
        module.warn(message)
    written = apply(FileSet(UV_ENVIRONMENT.parent, sources.files()), check_mode=module.check_mode)
    diff = [*([{"before": lines(before), "after": lines(after)}] if changed else []), *written.diff]
    return {"changed": changed or written.changed, "path": str(uv.program), "diff": diff if module._diff else []}


def lines(paths: list[Path]) -> str:
    return "".join(f"{path}\n" for path in paths)


if __name__ == "__main__":
    main()
