"""What a load balancer knows about backends, and whether their servers are up."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import SOCKET, Server, list_servers

#: HAProxy's configuration, in which a comment has the digest of each backend.
CONFIGURATION = Path("/etc/haproxy/haproxy.cfg")

#: Seconds between two queries while a server is not up.
INTERVAL = 0.3

_BACKEND = re.compile(r"^backend (\S+)\n    # digest of the options: (\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Expected:
    """What a load balancer must know of a backend: its digest, and the servers that must be up."""

    digest: str
    servers: list[str] = field(default_factory=list)


def outdated_backends(expected: Mapping[str, Expected], configuration: Path = CONFIGURATION) -> list[str]:
    """Return the backends that the load balancer lacks, or knows with other options."""
    text = configuration.read_text(encoding="utf-8") if configuration.exists() else ""
    known = dict(_BACKEND.findall(text))
    return [name for name, backend in expected.items() if known.get(name) != backend.digest]


def wait_until_up(
    expected: Mapping[str, Expected], outdated: Container[str] = (), *, timeout: float, path: Path = SOCKET
) -> list[str]:
    """Wait until the servers of the backends are up; return those that are not, with HAProxy's reason.

    A server that an operator drains or has taken out of service is not waited for.

    :arg outdated: backends that may lack servers.
    :raises HaproxyError: if HAProxy does not respond.
    """
    return poll(lambda: _down(expected, outdated, list_servers(path)), lambda down: not down, timeout=timeout, interval=INTERVAL)


def _down(expected: Mapping[str, Expected], outdated: Container[str], servers: Iterable[Server]) -> list[str]:
    found: dict[tuple[str, str], Any] = {(server["backend"], server["server"]): server for server in servers}
    problems = []
    for backend, name in ((backend, name) for backend, entry in expected.items() for name in entry.servers):
        server = found.get((backend, name))
        if server is None:
            problems += [f"backend {backend} has no server {name}"] * (backend not in outdated)
        elif server["state"] == "ready" and not server["status"].startswith("UP"):
            reason = f" ({server['check']})" if server["check"] else ""
            problems.append(f"server {name} of backend {backend} is {server['status']}{reason}")
    return problems
