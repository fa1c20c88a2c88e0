#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: haproxy_server
short_description: Drain a server of HAProxy, or put it back in service, without a reload
description:
  - Sets the state and weight of a server over HAProxy's runtime API, in one backend or in all that have the server.
  - Both survive reloads of HAProxy, and are reset by a restart.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  server:
    description: Name of the server, as in C(haproxy_backends.<backend>.servers) of the role haproxy.
    type: str
    required: true
  backend:
    description: Name of a backend; all backends that have the server if unset.
    type: str
  state:
    description:
      - V(ready) puts the server in service; health checks decide whether it gets requests.
      - V(drain) sends it no new requests and lets in-flight ones finish (connection draining); health checks continue.
      - V(maint) is the same without health checks. It replaces V(drain) in backends with affinity by a cookie, because HAProxy
        still sends requests with a server's cookie to that server while it is draining.
    type: str
    choices: [ready, drain, maint]
  weight:
    description: Share of requests relative to the other servers, from 0 to 256.
    type: int
  wait:
    description:
      - Maximum seconds to wait for the server's sessions to end, including those of HAProxy processes from before a reload.
        Remaining sessions are not a failure.
    type: int
    default: 0
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Drain web1
  funnel.tornado.haproxy_server:
    server: web1
    state: drain
    wait: 60

- name: Put web1 back in service
  funnel.tornado.haproxy_server:
    server: web1
    state: ready
"""

RETURN = r"""
servers:
  description: The server in each backend, with C(backend), C(address), C(state), C(status), C(check), C(sessions), C(weight).
  returned: success
  type: list
  elements: dict
sessions:
  description: Remaining sessions of the server in these backends.
  returned: success
  type: int
  sample: 0
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import closest_match
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import (
    HaproxyError,
    Server,
    State,
    count_sessions,
    effective_state,
    execute,
    list_servers,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "backend": {"type": "str"},
            "state": {"type": "str", "choices": ["ready", "drain", "maint"]},
            "weight": {"type": "int"},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    name, backend = module.params["server"], module.params["backend"]
    weight = module.params["weight"]
    if weight is not None and not 0 <= weight <= 256:
        module.fail_json(msg=f"weight: must be from 0 to 256; found {weight}")
    try:
        before = find_servers(name, backend)
        desired = [desired_server(server, module.params["state"], weight) for server in before]
        if not module.check_mode:
            for current, target in zip(before, desired, strict=True):
                update(current, target)
        after = desired if module.check_mode else find_servers(name, backend)
        remaining = wait_for_sessions(name, after, 0 if module.check_mode else module.params["wait"])
    except HaproxyError as error:
        module.fail_json(msg=str(error))
    diff = {"before": summary(before), "after": summary(after), "before_header": name, "after_header": name}
    changed = before != desired
    module.exit_json(changed=changed, servers=after, sessions=remaining, diff=diff if changed and module._diff else {})


def find_servers(name: str, backend: str | None) -> list[Server]:
    """Return the server called ``name`` in ``backend``, or in each backend that has it."""
    candidates = [server for server in list_servers() if backend in (None, server["backend"])]
    found = [server for server in candidates if server["server"] == name]
    if not found:
        names = sorted({server["server"] for server in candidates})
        near = closest_match(name, names)
        hint = f"did you mean {near}?" if near else f"found {', '.join(names)}"
        missing = f"backend {backend} has no server {name}" if backend else f"no backend of HAProxy has server {name}"
        raise HaproxyError(f"server: {missing}; {hint}")
    return found


def desired_server(server: Server, state: State | None, weight: int | None) -> Server:
    """Return the server with the desired state and weight."""
    return {
        **server,
        "state": effective_state(server, state) if state else server["state"],
        "weight": server["weight"] if weight is None else weight,
    }


def update(current: Server, desired: Server) -> None:
    """Apply the state and weight that differ."""
    target = f"{current['backend']}/{current['server']}"
    if current["state"] != desired["state"]:
        execute(f"set server {target} state {desired['state']}")
    if current["weight"] != desired["weight"]:
        execute(f"set server {target} weight {desired['weight']}")


def wait_for_sessions(name: str, servers: list[Server], timeout: int) -> int:
    """Wait up to ``timeout`` seconds until the server has no sessions; return the remaining number."""
    backends = [server["backend"] for server in servers]
    return poll(lambda: count_sessions(name, backends), lambda sessions: sessions == 0, timeout=timeout, interval=0.1)


def summary(servers: list[Server]) -> str:
    return "".join(f"{server['backend']}: {server['state']}, weight {server['weight']}\n" for server in servers)


if __name__ == "__main__":
    main()
