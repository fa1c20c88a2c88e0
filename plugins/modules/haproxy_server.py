#!/usr/bin/python
# Copyright: The funnel.tornado developers
# MIT License (see LICENSE), compatible with the GNU General Public License version 3

from __future__ import annotations

DOCUMENTATION = r"""
---
module: haproxy_server
short_description: Drain a server of HAProxy, or put it back, without a reload
description:
  - Sets the state and the weight of a server over HAProxy's own socket, in all backends that have it or in one.
  - What is set outlasts reloads of HAProxy, and ends when it is restarted.
version_added: 0.1.0
author: The funnel.tornado developers (@funnel)
options:
  server:
    description: Name of the server, as in C(haproxy_backends.<backend>.servers) of the role haproxy.
    type: str
    required: true
  backend:
    description: Name of a backend; all that have the server if unset.
    type: str
  state:
    description:
      - V(ready) lets the checks decide whether it gets requests.
      - V(drain) gives it no new ones, and lets it finish those it has; it is checked on.
      - V(maint) is the same without checks. It is taken for V(drain) in sticky backends, as HAProxy would lead clients with its
        cookie to a server that is drained.
    type: str
    choices: [ready, drain, maint]
  weight:
    description: Its share, compared to the others; 0 to 256.
    type: int
  wait:
    description:
      - Seconds that the server's sessions are waited for, those of HAProxy's processes from before a reload included.
        It is no failure that some are left then.
    type: int
    default: 0
extends_documentation_fragment: funnel.tornado.attributes
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Give web1 no new requests, and let it finish those it has
  funnel.tornado.haproxy_server:
    server: web1
    state: drain
    wait: 60

- name: Put web1 back
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
  description: Sessions that it still has, in all of these together.
  returned: success
  type: int
  sample: 0
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import closest_match
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import (
    HaproxyError,
    Server,
    State,
    quiet_state,
    servers,
    sessions,
    tell,
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
        before = matching(name, backend)
        wanted = [wished(one, module.params["state"], weight) for one in before]
        if not module.check_mode:
            for old, new in zip(before, wanted, strict=True):
                change(old, new)
        after = wanted if module.check_mode else matching(name, backend)
        left = wait_for(name, after, 0 if module.check_mode else module.params["wait"])
    except HaproxyError as error:
        module.fail_json(msg=str(error))
    diff = {"before": text(before), "after": text(after), "before_header": name, "after_header": name}
    changed = before != wanted
    module.exit_json(changed=changed, servers=after, sessions=left, diff=diff if changed and module._diff else {})


def matching(name: str, backend: str | None) -> list[Server]:
    """Return the server in each backend that is meant and has it."""
    known = servers()
    found = [one for one in known if one["server"] == name and backend in (None, one["backend"])]
    if not found:
        names = sorted({one["server"] for one in known if backend in (None, one["backend"])})
        where = f"the backend {backend}" if backend else "no backend of HAProxy"
        near = closest_match(name, names)
        right = f"did you mean {near}?" if near else f"known are {', '.join(names)}"
        raise HaproxyError(f"server: {where} has {'no ' if backend else ''}server {name}; {right}")
    return found


def wished(one: Server, state: State | None, weight: int | None) -> Server:
    """Return a server as it has to be."""
    return {
        **one,
        "state": quiet_state(one, state) if state else one["state"],
        "weight": one["weight"] if weight is None else weight,
    }


def change(old: Server, new: Server) -> None:
    """Tell HAProxy what is to be different."""
    place = f"{old['backend']}/{old['server']}"
    if old["state"] != new["state"]:
        tell(f"set server {place} state {new['state']}")
    if old["weight"] != new["weight"]:
        tell(f"set server {place} weight {new['weight']}")


def wait_for(name: str, found: list[Server], seconds: int) -> int:
    """Return the sessions that are left when there are none, or after ``seconds``."""
    backends = [one["backend"] for one in found]
    end = time.monotonic() + seconds
    while (left := sessions(name, backends)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def text(found: list[Server]) -> str:
    return "".join(f"{one['backend']}: {one['state']}, weight {one['weight']}\n" for one in found)


if __name__ == "__main__":
    main()
