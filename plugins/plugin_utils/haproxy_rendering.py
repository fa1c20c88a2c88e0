"""The backends of HAProxy as a user describes them, and the files they become."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    DOMAIN,
    Doc,
    InvalidDataError,
    Pattern,
    Range,
    parse_each,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import CHALLENGE_URL, NAME, UNTRUSTED_HEADERS
from ansible_collections.funnel.tornado.plugins.module_utils.sites.validation import (
    domain_conflicts,
    domain_problems,
    header_problems,
)

_SERVER_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, . _ and -")
_ADDRESS = Pattern(
    r"unix@/[^\s'\"\\#$]+|([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?",
    'a host or host:port, an IPv6 address in [ ], or a socket such as "unix@/run/shop/0.sock"',
)
_LISTEN = Pattern(r"(\[[0-9a-fA-F:.]+\]:|[0-9.]+:)?[0-9]{1,5}", 'a port, such as "80", or address:port')
_PEM = Pattern(r"/[^\s'\"\\#$]+\.pem", "the absolute path of a file that ends with .pem")
_SECONDS = Range(1, 86400)

#: Seconds that a server may be silent longer here than the site says: it is the server that is to give up first.
_MARGIN = 5
#: Seconds that nginx keeps a client's connection idle, which a balancer that passes TLS must not cut before (keepalive_timeout).
_KEPT = 65

#: The cookie of backends that are sticky.
COOKIE = "funnel_server"


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of a backend."""

    address: Annotated[str, Doc("host, host:port, or unix@ and the path of a socket; port 80 if it says none."), _ADDRESS]
    weight: Annotated[int, Doc("Its share, compared to the others."), Range(1, 256)] = 100
    max_connections: Annotated[
        int | None, Doc("Connections that it gets at a time; further ones wait in the backend's queue."), Range(1, 1_000_000)
    ] = None
    backup: Annotated[bool, Doc("Asked only when all others are down.")] = False


@dataclass(frozen=True, kw_only=True)
class Health:
    """How a server shows that it can serve."""

    path: Annotated[
        str, Doc("Servers are asked for it each second; 2xx and 3xx are healthy."), Pattern(r"/[^\s'\"\\#$]*", "a path")
    ] = "/"
    host: Annotated[str | None, Doc("Name that it is asked for; the first of C(domains) if unset."), DOMAIN] = None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Servers, and what they are asked for."""

    servers: Annotated[dict[str, str | Server], Doc("Addresses by name, or dicts of what follows."), _ADDRESS]
    domains: Annotated[
        list[str],
        Doc("Names whose requests it gets. Without any it is the default one, which gets those of names that no other has."),
        DOMAIN,
    ] = field(default_factory=list)
    aliases: Annotated[list[str], Doc("Names that are redirected to the first of C(domains)."), DOMAIN] = field(
        default_factory=list
    )
    health: Annotated[Health, Doc("How a server shows that it can serve.")] = field(default_factory=Health)
    sticky: Annotated[bool, Doc("Whether a client stays with its server, which a cookie names, for as long as that serves.")] = (
        False
    )
    queue: Annotated[int, Doc("Seconds that a request waits for a connection, then it gets 503."), _SECONDS] = 30
    read_timeout: Annotated[
        int,
        Doc(
            "Seconds that a server may be silent, on websockets too; 5 more are granted, so that it is the server that gives up."
        ),
        _SECONDS,
    ] = 200
    redirect: Annotated[bool, Doc("Whether what comes by HTTP is sent to HTTPS.")] = False
    challenges: Annotated[
        bool,
        Doc("Whether servers answer what certificate authorities ask by HTTP (http-01 of ACME), so that it is not redirected."),
    ] = False
    hsts: Annotated[int, Doc("Seconds that browsers are to use nothing but HTTPS."), Range(0, 126_144_000)] = 0
    headers: Annotated[
        dict[str, str],
        Doc("Headers of every answer, unless the server sends its own; an empty text is none."),
        Pattern(r'[^"\\\n%]*', "one line without double quotes, backslashes and %"),
    ] = field(default_factory=dict)
    tls: Annotated[
        Literal["end", "pass"],
        Doc(
            "C(end): here, with C(haproxy_certificates). C(pass): at the servers, found by the name that the client asks for; "
            "then no TLS ends here for any backend."
        ),
    ] = "end"
    tls_port: Annotated[int, Doc("Port of the servers that TLS is passed to."), Range(1, 65535)] = 443
    proxy_protocol: Annotated[bool, Doc("Whether servers learn of the client by the PROXY protocol, version 2.")] = False
    origin: Annotated[str, Doc("Variable that it was made from, named in messages about it.")] = ""


#: Where HAProxy says whether it is well. Who asks while it is started again waits, as clients do.
MONITOR = "127.0.0.1:8404"


@dataclass(frozen=True)
class Addresses:
    """Where HAProxy listens, and with which certificates."""

    listen: Sequence[str]
    listen_tls: Sequence[str] = ()
    certificates: Sequence[str] = ()


def haproxy_files(backends: Mapping[str, object], addresses: Addresses) -> dict[str, dict[str, Any]]:
    """Return the ``files`` of funnel.tornado.file_set that follow from backends, below /etc/haproxy.

    :raises InvalidDataError: with every mistake of all backends and addresses.
    """
    problems = list(_address_problems(addresses))
    parsed = parse_each(Backend, backends, "haproxy_backends", problems, NAME)
    if not backends:
        problems.append("haproxy_backends: is empty; there has to be one, such as {shop: {servers: {web1: 192.0.2.11}}}")
    problems.extend(_cross_problems(parsed, addresses))
    if problems:
        raise InvalidDataError(problems)
    links = _links(addresses.certificates)
    *binds, monitor = map(_bind, itertools.count(), [*addresses.listen, *addresses.listen_tls, MONITOR])
    variables = {
        "backends": [_backend_variables(name, one) for name, one in parsed.items()],
        "http": _http_rules(parsed),
        "sni": _sni_rules(parsed),
        "binds": binds[: len(addresses.listen)],
        "tls_binds": binds[len(addresses.listen) :],
        "monitor": monitor,
        "ends_tls": bool(addresses.certificates),
        "untrusted_headers": UNTRUSTED_HEADERS,
        # Sockets are www-data's, and lie outside of any directory that HAProxy could be locked into.
        "reaches_sockets": any(
            _server(one).address.startswith("unix@") for backend in parsed.values() for one in backend.servers.values()
        ),
    }
    # Its master reads this as root: other users, such as apps, are not told what it has about sites.
    main = {"template": "haproxy.cfg.j2", "vars": variables, "mode": "0600", "needs": list(links.values())}
    units = {
        f"/etc/systemd/system/{path}": {"template": template, "vars": {"binds": [*binds, monitor]}}
        for path, template in (("haproxy.socket", "haproxy.socket.j2"), ("haproxy.service.d/50-funnel.conf", "unit.conf.j2"))
    }
    return {"haproxy.cfg": main, **units, **{path: {"link": target} for path, target in links.items()}}


def _links(certificates: Sequence[str]) -> dict[str, str]:
    """Return links to certificates and keys, in one directory and by the names that HAProxy wants."""
    found = {}
    for path in map(PurePosixPath, certificates):
        found[f"certificates/{path.name}"] = str(path)
        found[f"certificates/{path.name}.key"] = str(path.with_suffix(".key"))
    return found


def _address_problems(addresses: Addresses) -> Iterator[str]:
    for key, values in (("haproxy_listen", addresses.listen), ("haproxy_listen_tls", addresses.listen_tls)):
        for i, address in enumerate(values):
            if violation := _LISTEN.violation(address):
                yield f"{key}[{i}]: {violation}; found {address!r}"
    for i, path in enumerate(addresses.certificates):
        if violation := _PEM.violation(path):
            yield f"haproxy_certificates[{i}]: {violation}; found {path!r}"
    if addresses.certificates and not addresses.listen_tls:
        yield "haproxy_certificates: need an address to listen on, such as haproxy_listen_tls: ['443', '[::]:443']"


def _cross_problems(backends: Mapping[str, Backend], addresses: Addresses) -> Iterator[str]:
    passed = [name for name, backend in backends.items() if backend.tls == "pass"]
    if passed and addresses.certificates:
        yield f"haproxy_certificates: TLS is passed on for {', '.join(passed)}, so none ends here; remove one of them"
    by_path = {backend.origin or f"haproxy_backends.{name}": backend for name, backend in backends.items()}
    for path, backend in by_path.items():
        yield from _own_problems(backend, path)
        yield from _tls_problems(backend, path, addresses)
    yield from domain_conflicts(by_path)


def _own_problems(backend: Backend, path: str) -> Iterator[str]:
    """Yield what is wrong between the keys of one backend."""
    for server in backend.servers:
        if violation := _SERVER_NAME.violation(server):
            yield f"{path}.servers.{server}: {violation}"
    if not backend.servers:
        yield f"{path}.servers: is empty; a backend needs one server at least"
    yield from header_problems(backend.headers, path)
    yield from domain_problems(backend, path)


def _tls_problems(backend: Backend, path: str, addresses: Addresses) -> Iterator[str]:
    if backend.tls == "end":
        for key in ("redirect", "hsts"):
            if getattr(backend, key) and not addresses.certificates:
                yield f"{path}.{key}: needs HTTPS, and so its certificate in haproxy_certificates"
        return
    if not addresses.listen_tls:
        yield f"{path}.tls: needs an address to listen on, such as haproxy_listen_tls: ['443', '[::]:443']"
    for key, what in (("sticky", "a cookie"), ("hsts", "a header"), ("headers", "headers")):
        if getattr(backend, key):
            yield f"{path}.{key}: needs {what}, and nothing can be added where TLS is passed on"
    for name, server in backend.servers.items():
        if _server(server).address.startswith("unix@"):
            yield f"{path}.servers.{name}: is a socket, to which no TLS can be passed"


def _server(server: str | Server) -> Server:
    return Server(address=server) if isinstance(server, str) else server


def _bind(number: int, address: str) -> dict[str, str]:
    """Return how systemd and HAProxy know an address. One for IPv6 leaves IPv4 to others, as nginx does.

    ``socket``, which systemd hands over, is a file descriptor: they begin with 3 (sd_listen_fds(3)).
    """
    return {
        "variable": f"BIND_{number}",
        "socket": f"fd@{number + 3}",
        "address": address if ":" in address else f"*:{address}",
        "stream": address if ":" in address else f"0.0.0.0:{address}",
        "options": " v6only" if address.startswith("[") else "",
    }


def _host_test(name: str) -> str:
    """Return how a name is compared: with the whole, or, after ``*``, with its end."""
    return f"-m end {name[1:]}" if name.startswith("*.") else f"-m str {name}"


def _sorted_names(names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return names with what they lead to, names proper first, then the longest: the first that fits wins."""
    return sorted(names.items(), key=lambda item: (item[0].startswith("*."), -len(item[0]), item[0]))


def _http_rules(backends: Mapping[str, Backend]) -> dict[str, Any]:
    """Return which name leads to which backend, and to which all others do."""
    names = {domain: name for name, one in backends.items() for domain in (*one.domains, *one.aliases)}
    rules = [{"test": _host_test(domain), "backend": name} for domain, name in _sorted_names(names)]
    return {"rules": rules, "default": next((name for name, one in backends.items() if not one.domains), "")}


def _sni_rules(backends: Mapping[str, Backend]) -> dict[str, Any]:
    """Return the same for the backends that TLS is passed to."""
    return _http_rules({f"{name}.tls": one for name, one in backends.items() if one.tls == "pass"})


def _backend_variables(name: str, backend: Backend) -> dict[str, Any]:
    """Return what the template takes of a backend."""
    proxy = ["send-proxy-v2"] if backend.proxy_protocol else []
    # Where there are others. A single server that restarts is better waited for than taken out.
    watched = ["observe", "layer4", "error-limit", "3", "on-error", "mark-down"] if len(backend.servers) > 1 else []
    servers, tls_servers = [], []
    for key, server in backend.servers.items():
        one = _server(server)
        shared = [f"weight {one.weight}", *([f"maxconn {one.max_connections}"] if one.max_connections else [])]
        shared += [*(["backup"] if one.backup else []), *proxy]
        cookie = [f"cookie {_alias(key)}"] if backend.sticky else []
        address = one.address if one.address.startswith("unix@") or _port_of(one.address) else f"{one.address}:80"
        servers.append(" ".join([key, address, "check", *shared, *cookie, *watched]))
        tls_servers.append(" ".join([key, f"{_host_of(one.address)}:{backend.tls_port}", f"track {name}/{key}", *shared]))
    return {
        "name": name,
        "servers": servers,
        "tls_servers": tls_servers if backend.tls == "pass" else [],
        "sticky": backend.sticky,
        "health": backend.health.path,
        "host": backend.health.host or next((domain for domain in backend.domains if not domain.startswith("*.")), "localhost"),
        "queue": backend.queue,
        "silence": backend.read_timeout + _MARGIN,
        "tunnel": max(backend.read_timeout, _KEPT) + _MARGIN,
        "aliases": [_host_test(alias) for alias in backend.aliases],
        "first": backend.domains[0] if backend.domains else "",
        "redirect": backend.redirect,
        "challenges": backend.challenges,
        "headers": list(_headers(backend)),
        "cookie": COOKIE,
        "challenge_url": CHALLENGE_URL,
    }


def _headers(backend: Backend) -> Iterator[dict[str, str]]:
    """Yield the headers that answers get if they do not have them."""
    own = {name.lower() for name in backend.headers}
    for name, value in backend.headers.items():
        if value:
            yield {"name": name, "value": value, "when": ""}
    if backend.hsts and "strict-transport-security" not in own:
        yield {"name": "Strict-Transport-Security", "value": f"max-age={backend.hsts}", "when": "{ ssl_fc } "}


def _alias(server: str) -> str:
    """Return what a cookie says in place of a server's name, which is nobody else's business."""
    return hashlib.sha256(server.encode()).hexdigest()[:8]


def _port_of(address: str) -> str:
    found = re.search(r":([0-9]+)$", address)
    return found[1] if found else ""


def _host_of(address: str) -> str:
    port = _port_of(address)
    return address.removesuffix(f":{port}") if port else address
