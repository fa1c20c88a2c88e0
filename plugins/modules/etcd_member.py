#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_member
short_description: Make a host a member of a cluster of etcd
description:
  - With O(state=known), sees that the cluster knows of this host before etcd is started for the first time, and says what
    etcd has to be told then. A member that has lost its data is replaced. Whoever is added has no vote yet.
  - With O(state=voting), gives a member that was started its promote_learner, as soon as it has caught up.
  - The cluster is never asked for what it cannot take back. A version of etcd that cannot join is refused, and so are several
    members with a password of root and without O(tls).
  - In check mode a host joins even if no other member answers, as none has been started before the first run; there is a warning.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description: Name of this host among O(members).
    type: str
    required: true
  members:
    description: Addresses of all members by name. The cluster begins with the first.
    type: dict
    required: true
  data:
    description: Directory of etcd's data.
    type: path
    required: true
  state:
    description: What has to be.
    type: str
    choices: [known, voting]
    default: known
  tls:
    description: Whether members speak TLS.
    type: bool
    default: false
  ca:
    description: Certificate, in PEM, that has signed the members'.
    type: str
    default: ""
  root_password:
    description: Password of root; empty where authentication is off.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: See that the cluster knows of this host
  funnel.tornado.etcd_member:
    name: "{{ inventory_hostname }}"
    members: {lock1: 10.0.0.1, lock2: 10.0.0.2, lock3: 10.0.0.3}
    data: /var/lib/etcd/funnel
"""

RETURN = r"""
membership:
  description:
    - V(founder) if the cluster begins with this host, V(joining) if the cluster knows of it and etcd is to be started,
      V(learner) if it was started and has no vote yet, V(member) otherwise.
  returned: success
  type: str
  sample: joining
initial_cluster:
  description: What etcd has to be told at its first start; empty if that has been.
  returned: success
  type: str
  sample: lock1=http://10.0.0.1:2380,lock2=http://10.0.0.2:2380
alone:
  description: Whether this host is the only member, and no other one is wanted; then nobody needs to reach its port for members.
  returned: success
  type: bool
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    Cluster,
    EtcdError,
    Membership,
    own_version,
    promote_learner,
    register_member,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

#: What a host that has no etcd yet, as in check mode, is taken to get.
NOT_INSTALLED = "3.5.0"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "members": {"type": "dict", "required": True},
            "data": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["known", "voting"], "default": "known"},
            "tls": {"type": "bool", "default": False},
            "ca": {"type": "str", "default": ""},
            "root_password": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        membership = apply(module.params, check_mode=module.check_mode)
    except (EtcdError, CommandError, ServiceError) as error:
        module.fail_json(msg=str(error))
    for warning in membership.warnings:
        module.warn(warning)
    module.exit_json(
        changed=membership.changed,
        membership=membership.state,
        initial_cluster=membership.initial_cluster,
        alone=membership.alone,
    )


def apply(params: dict[str, Any], *, check_mode: bool) -> Membership:
    name, members = params["name"], params["members"]
    if name not in members:
        raise EtcdError(f"etcd_members: has to name this host, {name}; found {', '.join(members) or 'nobody'}")
    cluster = Cluster(name, members, params["tls"], params["ca"], params["root_password"])
    if params["state"] == "known":
        runs = systemd.query("etcd").active
        return register_member(cluster, Path(params["data"]), version(check_mode=check_mode), runs=runs, check_mode=check_mode)
    if not check_mode:
        promote_learner(cluster)
    return Membership("member", changed=True)


def version(*, check_mode: bool) -> str:
    try:
        return own_version(run(["etcd", "--version"]).output)
    except CommandError:
        if check_mode:
            return NOT_INSTALLED
        raise


if __name__ == "__main__":
    main()
