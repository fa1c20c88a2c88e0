#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_member
short_description: Add a host to an etcd cluster, and promote it to a voting member
description:
  - With O(state=known), registers this host in the cluster before etcd is started for the first time, and returns the
    initial cluster for that start. A member that has lost its data is replaced. New members are learners, without a vote.
  - With O(state=voting), promotes a started learner to a voting member as soon as it has caught up.
  - Refuses what could not be undone. Examples are a version of etcd that cannot join the cluster, and several members with a
    password of root but without O(tls).
  - In check mode, reports that the host would join even if no other member answers, as before the first run, with a warning.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  name:
    description: Name of this host among O(members).
    type: str
    required: true
  members:
    description: Addresses of all members by name. The first one founds the cluster.
    type: dict
    required: true
  data:
    description: Data directory of etcd.
    type: path
    required: true
  state:
    description: Desired state of the member.
    type: str
    choices: [known, voting]
    default: known
  tls:
    description: Whether members use TLS.
    type: bool
    default: false
  ca:
    description: PEM certificate of the authority that issued the certificates of the members.
    type: str
    default: ""
  root_password:
    description: Password of root; empty if authentication is disabled.
    type: str
    default: ""
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Register this host in the cluster
  funnel.tornado.etcd_member:
    name: "{{ inventory_hostname }}"
    members: {lock1: 10.0.0.1, lock2: 10.0.0.2, lock3: 10.0.0.3}
    data: /var/lib/etcd/funnel
"""

RETURN = r"""
membership:
  description:
    - V(founder) if this host founds the cluster, V(joining) if it is registered and etcd must be started,
      V(learner) if it was started and has no vote yet, V(member) otherwise.
  returned: success
  type: str
  sample: joining
initial_cluster:
  description: ETCD_INITIAL_CLUSTER for the first start of etcd; empty after that.
  returned: success
  type: str
  sample: lock1=http://10.0.0.1:2380,lock2=http://10.0.0.2:2380
alone:
  description: Whether this host is the only member, and no other one is desired, so that its peer port is not needed.
  returned: success
  type: bool
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    Cluster,
    EtcdError,
    Membership,
    parse_version,
    promote_learner,
    register_member,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceError

#: Assumed version in check mode if etcd is not installed yet.
ASSUMED_VERSION = "3.5.0"


def main() -> None:
    os.umask(0o022)  # whatever the connection has set
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
        raise EtcdError(f"etcd_members: must include this host, {name}; found {', '.join(members) or 'none'}")
    cluster = Cluster(name, members, params["tls"], params["ca"], params["root_password"])
    if params["state"] == "known":
        running = systemd.query("etcd").active
        own_version = installed_version(check_mode=check_mode)
        return register_member(cluster, Path(params["data"]), own_version, running=running, check_mode=check_mode)
    if not check_mode:
        promote_learner(cluster)
    return Membership("member", changed=True)


def installed_version(*, check_mode: bool) -> str:
    try:
        return parse_version(run(["etcd", "--version"]).output)
    except CommandError:
        if check_mode:
            return ASSUMED_VERSION
        raise


if __name__ == "__main__":
    main()
