"""Names in nginx directives that nginx resolves when it starts, once for all: if one fails, nginx does not start for any site."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx_config import Directive, NginxSyntaxError, parse

#: Directives that pass a request to a server; the directive server of an upstream, which has no block, names one, too.
_PASSES = frozenset({"fastcgi_pass", "grpc_pass", "memcached_pass", "proxy_pass", "scgi_pass", "uwsgi_pass"})

#: The reason and the simplest cure.
_RISK = "nginx resolves {name} when it starts, and serves no site at all if that fails, such as at a boot; use its address"


def resolution_problems(extra: str, path: str) -> Iterator[str]:
    """Yield the host names in the lines ``extra`` at ``path`` that nginx would resolve when it starts.

    A name without a dot is an upstream, or one of /etc/hosts. nginx reports invalid syntax better.
    """
    try:
        directives = parse(extra)
    except NginxSyntaxError:
        return
    for name in dict.fromkeys(_names(directives)):
        cure = f'resolve it at run time: resolver ADDRESS; set $backend "{name}"; and $backend in the place of the name'
        yield f"{path}: {_RISK.format(name=name)}, or {cure}"


def server_problem(address: str, path: str) -> str:
    """Return why the server of an upstream could keep nginx from starting; empty if its address has no name to resolve."""
    name = _host(address)
    return name and f"{path}: {_RISK.format(name=name)}"


def _names(directives: Sequence[Directive]) -> Iterator[str]:
    for directive in directives:
        yield from _names(directive.block or ())
        passes = directive.name in _PASSES or (directive.name == "server" and directive.block is None)
        if passes and directive.arguments and "resolve" not in directive.arguments and (name := _host(directive.arguments[0])):
            yield name


def _host(url: str) -> str:
    """Return the name of a host in the argument of a directive; empty if nginx need not resolve it."""
    host = re.sub(r"^[a-z]+://", "", url).partition("/")[0].rpartition("@")[2]
    host = re.sub(r":\d+\Z", "", host)
    if "$" in url or "unix:" in url or "." not in host or host.startswith("["):
        return ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return ""
