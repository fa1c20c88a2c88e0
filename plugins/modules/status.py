#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3
"""Report the status of a host, or wait until it is healthy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Report the status of a host, or wait until it is healthy
version_added: 0.1.0
description:
  - Reports the resources of the host, the reasons to reboot it, its services, and the live release of every app.
  - Reports release, state, uptime, restarts, connections, open files, memory and health check of every process of every app.
  - Reports issuer and remaining days of every certificate. A certificate is a problem when its renewal is overdue, is
    temporary, does not cover all domains, was not loaded by the service that serves it, or if it or its key is missing.
  - Reports the servers of HAProxy where that is one of the O(services).
  - Also reports apps of the host that are not in O(names), as problems.
  - A configured firewall that is not active is a problem.
  - Reasons to reboot are C(/run/reboot-required), an installed kernel newer than the running one, processes that run programs
    or libraries whose files were replaced, and services started before the roles last changed their units.
  - Changes nothing. A part that cannot be read is a problem, and does not prevent the others from being read.
options:
  names:
    description: The apps, keys of C(tornado_apps).
    type: list
    elements: str
    default: []
  services:
    description: The services that must run on the host.
    type: list
    elements: str
    choices: [etcd, haproxy, keepalived, mongod, nginx, rsyslog, supervisor]
    default: []
  health_timeout:
    description:
      - Seconds to wait first until the host is healthy. Then the O(services) run, MongoDB and etcd are members of their
        cluster, the check script of keepalived succeeds, and every live process of the apps passes its health check. Apps
        without a live release are skipped.
      - The module fails if the host is still unhealthy. By default, it does not wait.
    type: int
  machine_only:
    description:
      - Whether to report only the resources of the host and the reasons to reboot it.
      - Fails if a service of O(services) refuses its configuration, and thus would not start after a reboot.
    type: bool
    default: false
  certificates:
    description: The certificates that the host serves, as returned by P(funnel.tornado.app_certificates#filter).
    type: dict
    default: {}
  certificates_set:
    description: Name of the set of these certificates.
    type: str
    default: app
  backends:
    description: The desired backends of HAProxy with their servers, as in C(haproxy_backends).
    type: dict
    default: {}
  floating_addresses:
    description: Floating IPs that this host or another one holds, with or without prefix lengths.
    type: list
    elements: str
    default: []
  mongodb_port:
    description: Port of mongod.
    type: int
    default: 27017
  controller_time:
    description: Time of the controller in seconds since 1970. A clock of the host that differs by over a minute is a problem.
    type: float
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author:
  - The funnel.tornado developers (@funnel)
"""

EXAMPLES = r"""
- name: Report the status of the host
  funnel.tornado.status:
    names: "{{ tornado_apps | list }}"
    services: [nginx, supervisor]
    certificates: "{{ tornado_apps | funnel.tornado.app_certificates }}"
  register: found

- name: Wait until the host is healthy
  funnel.tornado.status:
    names: [shop]
    services: [nginx, supervisor, etcd]
    health_timeout: 300
"""

RETURN = r"""
status:
  description: The status. Times are in seconds, sizes in bytes.
  returned: success
  type: dict
  contains:
    machine:
      description: Versions of Debian, the kernel and Python, CPUs, load, memory, disk, and C(reboot), the reasons to reboot.
      type: dict
    services:
      description: Version, open files, memory and uptime of each service, and its role in a cluster, such as C(primary).
      type: list
      elements: dict
    apps:
      description: The live release of each app, time and author of its deploy, versions of Python and Tornado, and maintenance.
      type: list
      elements: dict
    processes:
      description: The processes.
      type: list
      elements: dict
    certificates:
      description: The certificates, with the remaining C(days), domains that are C(lacking), and services that are C(stale).
      type: list
      elements: dict
    servers:
      description: The servers of HAProxy, each with its C(backend), C(status), C(sessions) and C(weight).
      type: list
      elements: dict
    addresses:
      description: The floating IPs, and whether they are C(held) by this host.
      type: list
      elements: dict
problems:
  description: The problems; empty when everything is healthy and up to date.
  returned: success, or after O(health_timeout)
  type: list
  elements: str
  sample: ["mongod: is neither primary nor secondary of rs0"]
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable_data, printable_message
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import root_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.network import nftables
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import HaproxyError
from ansible_collections.funnel.tornado.plugins.module_utils.status import apps, configuration, machine
from ansible_collections.funnel.tornado.plugins.module_utils.status.host_health import wait_until_healthy
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import parse_requests

#: Errors raised by a part that cannot be read.
UNREADABLE = (CommandError, HaproxyError, InvalidDataError, OSError, systemd.ServiceError, supervisord.SupervisorError)


class Part(Protocol):
    """A part of the status, with its problem, if any."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def problem(self) -> str: ...


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "list", "elements": "str", "choices": sorted(machine.PACKAGES), "default": []},
            "health_timeout": {"type": "int"},
            "machine_only": {"type": "bool", "default": False},
            "certificates": {"type": "dict", "default": {}},
            "certificates_set": {"type": "str", "default": "app"},
            "backends": {"type": "dict", "default": {}},
            "floating_addresses": {"type": "list", "elements": "str", "default": []},
            "mongodb_port": {"type": "int", "default": 27017},
            "controller_time": {"type": "float"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if problem := root_problem():
        module.fail_json(msg=problem)
    if (timeout := params["health_timeout"]) is not None:
        unhealthy = wait_until_healthy(params["names"], params["services"], mongodb_port=params["mongodb_port"], timeout=timeout)
        if problems := list(map(printable_message, unhealthy)):
            module.fail_json(msg=f"unhealthy after {timeout} s: {'; '.join(problems)}", problems=problems)
    host = machine.machine_status()
    machine_data = {**dataclasses.asdict(host), "problem": host.problem}
    if params["machine_only"]:
        if invalid := [f"{name}: {reason}" for name in params["services"] if (reason := configuration.configuration_error(name))]:
            module.fail_json(msg=f"{printable_message('; '.join(invalid))}; correct this first, as a reboot would stop it")
        problems = [host.problem] if host.problem else []
        module.exit_json(changed=False, status=printable_data({"machine": machine_data}), problems=printable_data(problems))
    clock = machine.clock_problem(params["controller_time"], time.time()) if params["controller_time"] else ""
    problems = [problem for problem in (host.problem, clock, nftables.drift()) if problem]
    try:
        problems += [*configuration.service_problems(params["services"]), *configuration.overridden_settings(params["services"])]
    except UNREADABLE as error:
        problems.append(str(error))

    def read(collect: Callable[[], Iterable[Part]]) -> list[dict[str, Any]] | None:
        try:
            found = list(collect())
        except UNREADABLE as error:
            problems.append(str(error))
            return None
        problems.extend(part.problem for part in found if part.problem)
        return [{**dataclasses.asdict(part), "problem": part.problem} for part in found if not isinstance(part, apps.Failure)]

    unlisted = apps.unlisted_apps(params["names"])
    layouts = [Layout(name) for name in [*params["names"], *unlisted]]
    server = supervisord.connect()
    services = read(lambda: machine.service_statuses(params["services"], mongodb_port=params["mongodb_port"]))
    has_haproxy = any(service["name"] == "haproxy" and service["active"] for service in services or ())
    found = {
        "machine": machine_data,
        "services": services,
        "apps": read(lambda: apps.app_statuses(layouts)),
        "processes": read(lambda: apps.process_statuses(layouts, server)),
        "certificates": read(lambda: certificate_statuses(params)),
        "servers": read(lambda: machine.server_statuses(params["backends"])) if has_haproxy else [],
        "addresses": read(lambda: map(machine.floating_ip_status, params["floating_addresses"])),
    }
    problems += [f"{app}: is on this host but not in tornado_apps; run remove.yml -e app={app} to remove it" for app in unlisted]
    lines = [" ".join(problem.split()) for problem in dict.fromkeys(problems)]
    module.exit_json(changed=False, status=printable_data(found), problems=printable_data(lines))


def certificate_statuses(params: dict[str, Any]) -> Iterator[apps.CertificateStatus]:
    """Yield the certificates, compared with the time at which each service that serves them was (re)loaded."""
    readers = {name: systemd.query(name).loaded_at for name in apps.CONFIGURATION_CHECKS if name in params["services"]}
    yield from apps.certificate_statuses(parse_requests(params["certificates"]), params["certificates_set"], readers)


if __name__ == "__main__":
    main()
