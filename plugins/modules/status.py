#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Tell what a host of the fleet is doing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Tell what a host of the fleet is doing
version_added: 0.1.0
description:
  - Reads what the machine is, how the services do that have to run on it, and what is served of every app.
  - Reads, for every process of every app, its release, state, uptime, restarts, connections, open files, memory and health.
  - Reads of every certificate who issued it, and how long it is still good. It is a problem when that is less than 14 days,
    when it is a temporary one or not for all domains, when what serves it has not read it yet, and when it or its key is missing.
  - Reads from HAProxy, where that has to run, which servers it uses.
  - Apps that the host has and that are not named are shown too, and are problems.
  - A firewall that was set and is not in force is a problem, too.
  - Changes nothing. What cannot be read is a problem, and the rest is read all the same.
options:
  names:
    description: The apps, keys of C(tornado_apps).
    type: list
    elements: str
    default: []
  services:
    description: The services that have to run on the host.
    type: list
    elements: str
    choices: [etcd, haproxy, keepalived, mongod, nginx, rsyslog, supervisor]
    default: []
  certificates:
    description: The certificates that it serves, as P(funnel.tornado.app_certificates#filter) gives them.
    type: dict
    default: {}
  certificates_set:
    description: Name of the set that they are in.
    type: str
    default: app
  backends:
    description: The backends that HAProxy has to have, where that has to run, with their servers, as C(haproxy_backends).
    type: dict
    default: {}
  floating_addresses:
    description: IP addresses that this host or another one has, with or without the lengths of their prefixes.
    type: list
    elements: str
    default: []
  mongodb_port:
    description: Port of mongod, where that has to run.
    type: int
    default: 27017
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
"""

EXAMPLES = r"""
- name: See what the host is doing
  funnel.tornado.status:
    names: "{{ tornado_apps | list }}"
    services: [nginx, supervisor]
    certificates: "{{ tornado_apps | funnel.tornado.app_certificates }}"
  register: found
"""

RETURN = r"""
status:
  description: What was found. Times are in seconds, sizes in bytes.
  returned: success
  type: dict
  contains:
    machine:
      description: Versions of Debian, the kernel and Python, CPUs, load, memory, disk, and whether a reboot is due.
      type: dict
    services:
      description: Version, open files, memory and age of each service, and its role among its like, such as C(primary).
      type: list
      elements: dict
    apps:
      description: The release of each app, since when and by whom, its versions of Python and Tornado, and its maintenance.
      type: list
      elements: dict
    processes:
      description: The processes.
      type: list
      elements: dict
    certificates:
      description: The certificates, with C(days) that are left, domains that are C(lacking), and services that are C(stale).
      type: list
      elements: dict
    servers:
      description: The servers of HAProxy, each with its C(backend), C(status), C(sessions) and C(weight).
      type: list
      elements: dict
    addresses:
      description: The floating addresses, and whether they are C(held) by this host.
      type: list
      elements: dict
problems:
  description: What is not as it has to be; empty when all is well.
  returned: success
  type: list
  elements: str
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_data
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import HaproxyError
from ansible_collections.funnel.tornado.plugins.module_utils.status import apps, machine
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests

#: What is raised where a part cannot be read.
UNREADABLE = (CommandError, HaproxyError, InvalidDataError, OSError, systemd.ServiceError, supervisord.SupervisorError)


class Part(Protocol):
    """Something that was found; ``problem`` is what is not as it has to be with it."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def problem(self) -> str: ...


def main() -> None:
    """Look at each part of the host."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "list", "elements": "str", "choices": sorted(machine.PACKAGES), "default": []},
            "certificates": {"type": "dict", "default": {}},
            "certificates_set": {"type": "str", "default": "app"},
            "backends": {"type": "dict", "default": {}},
            "floating_addresses": {"type": "list", "elements": "str", "default": []},
            "mongodb_port": {"type": "int", "default": 27017},
        },
        supports_check_mode=True,
    )
    params = module.params
    host = machine.look_at_machine()
    problems = [problem for problem in (host.problem, nftables.drift()) if problem]

    def read(look: Callable[[], Iterable[Part]]) -> list[dict[str, Any]] | None:
        try:
            found = list(look())
        except UNREADABLE as error:
            problems.append(str(error))
            return None
        problems.extend(one.problem for one in found if one.problem)
        return [{**dataclasses.asdict(one), "problem": one.problem} for one in found if not isinstance(one, apps.Failure)]

    abandoned = apps.abandoned(params["names"])
    layouts = [Layout(name) for name in [*params["names"], *abandoned]]
    server = supervisord.connect()
    services = read(lambda: machine.look_at_services(params["services"], mongodb_port=params["mongodb_port"]))
    balances = any(one["name"] == "haproxy" and one["active"] for one in services or ())
    found = {
        "machine": {**dataclasses.asdict(host), "problem": host.problem},
        "services": services,
        "apps": read(lambda: apps.look_at_apps(layouts)),
        "processes": read(lambda: apps.look(layouts, server)),
        "certificates": read(lambda: certificates(params)),
        "servers": read(lambda: machine.look_at_servers(params["backends"])) if balances else [],
        "addresses": read(lambda: map(machine.look_at_address, params["floating_addresses"])),
    }
    problems += [f"{app}: is on this host and not in tornado_apps; remove.yml ends it" for app in abandoned]
    lines = [" ".join(problem.split()) for problem in dict.fromkeys(problems)]
    module.exit_json(changed=False, status=printable_data(found), problems=printable_data(lines))


def certificates(params: dict[str, Any]) -> Iterator[apps.CertificateState]:
    """Yield the certificates, and which of the services that may read them have not."""
    readers = {name: systemd.query(name).loaded_at for name in apps.SELF_CHECKS if name in params["services"]}
    yield from apps.certificates(parse_requests(params["certificates"]), params["certificates_set"], readers)


if __name__ == "__main__":
    main()
