#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: uv
short_description: Install one version of uv, and tell it where to fetch from
description:
  - Installs uv below C(/opt/uv), links it as C(/usr/local/bin/uv) and removes other versions.
  - It is downloaded by the pip that the Debian package C(python3-venv) brings.
  - The version that is there stays until the new one has run.
  - Writes where to fetch from to C(/etc/uv), for later builds, too. Only root may read what may hold passwords.
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
    description: Hashes of the wheels that may be installed, V(sha256:...); any wheel of that version may without them.
    type: list
    elements: str
    default: []
  index_url:
    description: Package index; the host's own setting if empty. It may hold a password.
    type: str
    default: ""
  extra_index_urls:
    description: Further indexes.
    type: list
    elements: str
    default: []
  ca_bundle:
    description: File of the certificates to trust; the host's own setting if empty.
    type: str
    default: ""
  proxy:
    description: URL of a proxy. It may hold a password.
    type: str
    default: ""
  no_proxy:
    description: Hosts reached without the proxy, separated by commas.
    type: str
    default: ""
  mirror:
    description: URL that other versions of Python are downloaded from; uv's own if empty. It may hold a password.
    type: str
    default: ""
  downloads_json:
    description: URL of the list of these versions; uv's own if empty. It may hold a password.
    type: str
    default: ""
  wheelhouse:
    description:
      - Directory on the controller whose packages, uv among them, take the place of every index. They are kept in
        C(/opt/wheelhouse), for builds as well; what the host has already is not sent again.
      - None if empty.
    type: str
    default: ""
  packages:
    description: "Only for the controller's half of this module: the hash of each package in O(wheelhouse)."
    type: dict
    default: {}
  archive:
    description: "Only for the controller's half of this module: an archive of the packages that the host has asked for."
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

- name: Install uv on a host that reaches no index
  funnel.tornado.uv:
    version: 0.13.8
    wheelhouse: files/wheels
"""

RETURN = r"""
path:
  description: The program.
  returned: success
  type: str
  sample: /opt/uv/0.13.8/bin/uv
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system import wheelhouse
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSet, FileSetError
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import converge as apply
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import SOURCES, Sources, Uv, UvError


def main() -> None:
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
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def converge(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; ``needs_packages`` tells the action plugin to send these and call again."""
    params = module.params
    uv = Uv(params["version"])
    wanted = params["packages"]
    sources = Sources(**{key: params[key] for key in SOURCES}, wheelhouse=wheelhouse.HOME if wanted else None)
    found = wheelhouse.package_hashes(wheelhouse.HOME) if wanted else {}
    before = [*uv.other_paths(), *(wheelhouse.HOME / name for name, digest in found.items() if wanted.get(name) != digest)]
    missing = [name for name, digest in wanted.items() if found.get(name) != digest]
    after = [*([] if uv.is_up_to_date() else [uv.directory]), *(wheelhouse.HOME / name for name in missing)]
    changed = bool(before or after)
    if changed and not module.check_mode:
        if missing and not params["archive"]:
            return {"needs_packages": missing}
        if wanted:
            wheelhouse.converge(wanted, Path(params["archive"]) if missing else None)
        uv.install(params["hashes"], sources.pip_environment())
    written = apply(FileSet(UV_ENVIRONMENT.parent, sources.files()), check_mode=module.check_mode)
    diff = [*([{"before": lines(before), "after": lines(after)}] if changed else []), *written.diff]
    return {"changed": changed or written.changed, "path": str(uv.program), "diff": diff if module._diff else []}


def lines(paths: list[Path]) -> str:
    return "".join(f"{path}\n" for path in paths)


if __name__ == "__main__":
    main()
