"""The backend model of the HAProxy load balancer, its validation, and the rendering of the configuration files."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core import status_codes
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    DOMAIN,
    Doc,
    InvalidDataError,
    Pattern,
    Range,
    parse_each,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.front_door import FrontDoor
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import (
    CHALLENGE_URL,
    CHALLENGES,
    HOST_PORT,
    NAME,
    UNTRUSTED_HEADERS,
    Affinity,
    Domains,
)
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

#: Seconds added to the timeouts of servers, so that the server times out before the load balancer does.
_TIMEOUT_MARGIN = 5
#: nginx's keepalive_timeout in seconds. A load balancer that passes TLS through must not close idle connections earlier.
_NGINX_KEEPALIVE = 65

#: Cookie of backends with affinity.
COOKIE = "funnel_server"


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of a backend."""

    address: Annotated[str, Doc("C(host), C(host:port), or C(unix@) and the path of a socket; the default port is 80."), _ADDRESS]
    weight: Annotated[int, Doc("Share of requests relative to the other servers."), Range(1, 256)] = 100
    max_connections: Annotated[
        int | None,
        Doc("Maximum number of concurrent connections; further requests wait in a queue."),
        Range(1, 1_000_000),
    ] = None
    backup: Annotated[bool, Doc("Whether the server gets requests only when all others are down.")] = False


@dataclass(frozen=True, kw_only=True)
class Health:
    """Health check of the servers of a backend."""

    path: Annotated[str, Doc("Path requested from each server every second."), Pattern(r"/[^\s'\"\\#$]*", "a path")] = "/"
    host: Annotated[str | None, Doc("Host header of the request; the first of C(domains) if unset."), DOMAIN] = None
    headers: Annotated[
        dict[str, str],
        Doc("Further headers of the request; C(Host) replaces C(host)."),
        Pattern(r"[ !#&-\[\]-~]*", 'one line of ASCII characters without " \\ $ and %'),
    ] = field(default_factory=dict)
    status: Annotated[
        list[int | str],
        Doc("Status codes of a healthy server, and ranges of them."),
        Range(200, 499),
        Pattern(r"[2-4][0-9]{2}(-[2-4][0-9]{2})?", 'a code or a range from 200 to 499, such as 204 or "300-399"'),
    ] = field(default_factory=lambda: list(status_codes.DEFAULT))
    verdict: Annotated[
        str | None,
        Doc(
            "Response header whose value must be C(healthy), whatever the status is. The nginx role sends C(X-Funnel-Health) for "
            "apps, so that the host judges the release that it serves."
        ),
        Pattern(r"[A-Za-z0-9-]+", "a header name"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Backend(Domains):
    """A group of servers and the domains that HAProxy routes to them."""

    REPLACED: ClassVar = {"sticky": "was replaced by affinity; set affinity: cookie"}

    servers: Annotated[dict[str, str | Server], Doc("Addresses by server name, or dicts of the following keys."), _ADDRESS]
    health: Annotated[Health, Doc("Health check of the servers.")] = field(default_factory=Health)
    affinity: Annotated[
        Affinity,
        Doc(
            "How a client stays with one server while that server is healthy (session affinity): C(cookie) by a cookie that "
            "HAProxy sets, C(address) by its IP address. With C(none), requests go to the server with the fewest."
        ),
    ] = "none"
    queue: Annotated[int, Doc("Maximum seconds that a request waits for a connection before it gets 503."), _SECONDS] = 30
    read_timeout: Annotated[
        int,
        Doc(
            "Seconds without data from a server until the connection is closed, websockets included. HAProxy waits 5 seconds "
            "longer, so that the server times out first."
        ),
        _SECONDS,
    ] = 200
    redirect: Annotated[bool, Doc("Whether HTTP requests are redirected to HTTPS.")] = False
    challenges: Annotated[
        bool,
        Doc("Whether the servers answer ACME http-01 challenges, so that HAProxy proxies instead of redirects these requests."),
    ] = False
    acme_clients: Annotated[
        list[str],
        Doc(
            "Addresses, C(host:port), of ACME clients, one of which answers each http-01 challenge for the domains: that of this "
            "host, C(127.0.0.1:402) with the role certificates, then those of other load balancers with the same domains."
        ),
        HOST_PORT,
    ] = field(default_factory=list)
    hsts: Annotated[
        int, Doc("Seconds for C(Strict-Transport-Security), which forbids browsers plain HTTP."), Range(0, 126_144_000)
    ] = 0
    headers: Annotated[
        dict[str, str],
        Doc("Headers added to every response that lacks them; an empty value disables one."),
        Pattern(r'[^"\\\n%]*', "one line without double quotes, backslashes and %"),
    ] = field(default_factory=dict)
    tls: Annotated[
        Literal["end", "pass"],
        Doc(
            "C(end) terminates TLS here, with C(haproxy_certificates). C(pass) passes TLS through to the servers, routed by the "
            "server name (SNI); HAProxy then terminates TLS for no backend."
        ),
    ] = "end"
    tls_port: Annotated[int, Doc("Port of the servers for TLS passthrough."), Range(1, 65535)] = 443
    proxy_protocol: Annotated[
        bool, Doc("Whether HAProxy sends the client address to the servers by the PROXY protocol, version 2.")
    ] = False
    app: Annotated[str | None, Doc("App whose processes on this host are the servers; deploys ask HAProxy for it."), NAME] = None
    origin: Annotated[str, Doc("Variable that the backend was derived from, for error messages.")] = ""


#: Address where HAProxy reports its own health. systemd holds its socket, so that a check waits during a restart.
MONITOR = "127.0.0.1:8404"


@dataclass(frozen=True)
class Frontend:
    """Listen addresses and certificates of HAProxy."""

    listen: Sequence[str]
    listen_tls: Sequence[str] = ()
    certificates: Sequence[str] = ()


def haproxy_files(backends: Mapping[str, object], frontend: Frontend) -> dict[str, dict[str, Any]]:
    """Return the ``files`` for funnel.tornado.file_set, relative to /etc/haproxy.

    :raises InvalidDataError: with every problem of all backends and of the frontend.
    """
    problems = list(_frontend_problems(frontend))
    parsed = parse_each(Backend, backends, "haproxy_backends", problems, NAME)
    if not backends:
        problems.append("haproxy_backends: is empty; add a backend, such as {shop: {servers: {web1: 192.0.2.11}}}")
    problems.extend(_backend_problems(parsed, frontend))
    if problems:
        raise InvalidDataError(problems)
    links = _certificate_links(frontend.certificates)
    *binds, monitor = map(_bind, itertools.count(), [*frontend.listen, *frontend.listen_tls, MONITOR])
    variables = {
        "backends": [_backend_variables(name, backend) for name, backend in parsed.items()],
        "http": _http_rules(parsed),
        "sni": _sni_rules(parsed),
        "binds": binds[: len(frontend.listen)],
        "tls_binds": binds[len(frontend.listen) :],
        "monitor": monitor,
        "terminates_tls": bool(frontend.certificates),
        "untrusted_headers": UNTRUSTED_HEADERS,
        # The sockets belong to www-data and are outside of any directory that HAProxy could use as chroot.
        "uses_sockets": any(
            _server(server).address.startswith("unix@") for backend in parsed.values() for server in backend.servers.values()
        ),
    }
    # HAProxy's master reads it as root; its content is hidden from other users, such as apps.
    main = {"template": "haproxy.cfg.j2", "vars": variables, "mode": "0600", "needs": list(links.values())}
    units = {
        f"/etc/systemd/system/{path}": {"template": template, "vars": {"binds": [*binds, monitor]}}
        for path, template in (("haproxy.socket", "haproxy.socket.j2"), ("haproxy.service.d/50-funnel.conf", "unit.conf.j2"))
    }
    doors = {
        f"doors/{backend.app}.door": {"content": _front_door(backend, frontend).to_json(), "mode": "0600"}
        for backend in parsed.values()
        if backend.app
    }
    return {"haproxy.cfg": main, **units, **doors, **{path: {"link": target} for path, target in links.items()}}


def backend_digests(backends: Mapping[str, object]) -> dict[str, str]:
    """Return a digest of the options of each valid backend, which tells whether a load balancer has these options."""
    return {name: _digest(backend) for name, backend in parse_each(Backend, backends, "haproxy_backends", []).items()}


def _digest(backend: Backend) -> str:
    return hashlib.sha256(json.dumps(asdict(backend), sort_keys=True).encode()).hexdigest()[:12]


def _front_door(backend: Backend, frontend: Frontend) -> FrontDoor:
    """Return the address at which clients reach the app of a backend, over TLS if requests are redirected to it."""
    listen = frontend.listen_tls if backend.redirect else frontend.listen
    domain = backend.domains[0].replace("*", "funnel") if backend.domains else "localhost"
    return FrontDoor.of(listen[0], domain, tls=backend.redirect)


def _certificate_links(certificates: Sequence[str]) -> dict[str, str]:
    """Return the links to certificates and keys in one directory, named as HAProxy requires it."""
    found = {}
    for path in map(PurePosixPath, certificates):
        found[f"certificates/{path.name}"] = str(path)
        found[f"certificates/{path.name}.key"] = str(path.with_suffix(".key"))
    return found


def _frontend_problems(frontend: Frontend) -> Iterator[str]:
    for key, values in (("haproxy_listen", frontend.listen), ("haproxy_listen_tls", frontend.listen_tls)):
        for i, address in enumerate(values):
            if violation := _LISTEN.violation(address):
                yield f"{key}[{i}]: {violation}; found {address!r}"
    for i, path in enumerate(frontend.certificates):
        if violation := _PEM.violation(path):
            yield f"haproxy_certificates[{i}]: {violation}; found {path!r}"
    if frontend.certificates and not frontend.listen_tls:
        yield "haproxy_certificates: require an address to listen on, such as haproxy_listen_tls: ['443', '[::]:443']"


def _backend_problems(backends: Mapping[str, Backend], frontend: Frontend) -> Iterator[str]:
    """Yield the problems between the keys of each backend, between backends, and with the frontend."""
    passed = [name for name, backend in backends.items() if backend.tls == "pass"]
    if passed and frontend.certificates:
        yield f"haproxy_certificates: {', '.join(passed)} passes TLS through, so HAProxy cannot terminate it; remove one of them"
    by_path = [(backend.origin or f"haproxy_backends.{name}", backend) for name, backend in backends.items()]
    for path, backend in by_path:
        for server in backend.servers:
            if violation := _SERVER_NAME.violation(server):
                yield f"{path}.servers.{server}: {violation}"
        if not backend.servers:
            yield f"{path}.servers: is empty; a backend requires at least one server"
        yield from header_problems(backend.headers, path)
        yield from domain_problems(backend, path)
        yield from _tls_problems(backend, path, frontend)
    yield from domain_conflicts(by_path)


def _tls_problems(backend: Backend, path: str, frontend: Frontend) -> Iterator[str]:
    if backend.tls == "end":
        for key in ("redirect", "hsts"):
            if getattr(backend, key) and not frontend.certificates:
                yield f"{path}.{key}: requires HTTPS; add the certificate to haproxy_certificates"
        return
    if not frontend.listen_tls:
        yield f"{path}.tls: requires an address to listen on, such as haproxy_listen_tls: ['443', '[::]:443']"
    if backend.affinity == "cookie":
        yield f"{path}.affinity: requires a cookie, which HAProxy cannot add to TLS that it passes through; use address"
    for key, content in (("hsts", "a header"), ("headers", "headers")):
        if getattr(backend, key):
            yield f"{path}.{key}: requires {content}, which HAProxy cannot add to TLS that it passes through"
    for name, server in backend.servers.items():
        if _server(server).address.startswith("unix@"):
            yield f"{path}.servers.{name}: is a socket; TLS passthrough requires a host"


def _server(server: str | Server) -> Server:
    return Server(address=server) if isinstance(server, str) else server


def _bind(number: int, address: str) -> dict[str, str]:
    """Return an address in the notations of systemd and HAProxy; an IPv6 address excludes IPv4, as in nginx.

    ``socket`` is the file descriptor that systemd passes; these begin at 3 (sd_listen_fds(3)).
    """
    return {
        "variable": f"BIND_{number}",
        "socket": f"fd@{number + 3}",
        "address": address if ":" in address else f"*:{address}",
        "stream": address if ":" in address else f"0.0.0.0:{address}",
        "options": " v6only" if address.startswith("[") else "",
    }


def _match(domain: str) -> str:
    """Return the ACL match of a domain: the whole name, or the suffix after ``*``."""
    return f"-m end {domain[1:]}" if domain.startswith("*.") else f"-m str {domain}"


def _by_precedence(domains: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return domains and their backends, exact names first, then the longest wildcard: HAProxy takes the first match."""
    return sorted(domains.items(), key=lambda item: (item[0].startswith("*."), -len(item[0]), item[0]))


def _http_rules(backends: Mapping[str, Backend]) -> dict[str, Any]:
    """Return the routing rules of domains to backends, and the default backend."""
    domains = {domain: name for name, backend in backends.items() for domain in (*backend.domains, *backend.aliases)}
    rules = [{"match": _match(domain), "backend": name} for domain, name in _by_precedence(domains)]
    return {"rules": rules, "default": next((name for name, backend in backends.items() if not backend.domains), "")}


def _sni_rules(backends: Mapping[str, Backend]) -> dict[str, Any]:
    """Return the routing rules of TLS passthrough."""
    return _http_rules({f"{name}.tls": backend for name, backend in backends.items() if backend.tls == "pass"})


def _backend_variables(name: str, backend: Backend) -> dict[str, Any]:
    """Return the template variables of a backend."""
    proxy = ["send-proxy-v2"] if backend.proxy_protocol else []
    # Passive health checks, if there is another server: requests wait for a single server that restarts, rather than fail.
    passive_check = ["observe", "layer4", "error-limit", "3", "on-error", "mark-down"] if len(backend.servers) > 1 else []
    servers, tls_servers = [], []
    for key, value in backend.servers.items():
        server = _server(value)
        shared = [f"weight {server.weight}", *([f"maxconn {server.max_connections}"] if server.max_connections else [])]
        shared += [*(["backup"] if server.backup else []), *proxy]
        cookie = [f"cookie {_cookie_value(key)}"] if backend.affinity == "cookie" else []
        address = server.address if server.address.startswith("unix@") or _port_of(server.address) else f"{server.address}:80"
        servers.append(" ".join([key, address, "check", *shared, *cookie, *passive_check]))
        tls_servers.append(" ".join([key, f"{_host_of(server.address)}:{backend.tls_port}", f"track {name}/{key}", *shared]))
    return {
        "name": name,
        "digest": _digest(backend),
        "servers": servers,
        "tls_servers": tls_servers if backend.tls == "pass" else [],
        "affinity": backend.affinity,
        "health": backend.health.path,
        "health_headers": _health_headers(backend),
        "health_status": ",".join(map(str, backend.health.status)),
        "verdict": backend.health.verdict,
        "queue": backend.queue,
        "read_timeout": backend.read_timeout + _TIMEOUT_MARGIN,
        "tunnel_timeout": max(backend.read_timeout, _NGINX_KEEPALIVE) + _TIMEOUT_MARGIN,
        "aliases": [_match(alias) for alias in backend.aliases],
        "main_domain": backend.domains[0] if backend.domains else "",
        "redirect": backend.redirect,
        "challenges": backend.challenges,
        "acme_clients": backend.acme_clients,
        "acme_backend": f"{name}{CHALLENGES}",
        "acme_domains": [_match(domain) for domain in (*backend.domains, *backend.aliases)] if backend.acme_clients else [],
        "headers": list(_headers(backend)),
        "cookie": COOKIE,
        "challenge_url": CHALLENGE_URL,
    }


def _health_headers(backend: Backend) -> dict[str, str]:
    """Return the headers of the health check by name, in lower case."""
    domain = next((domain for domain in backend.domains if not domain.startswith("*.")), "localhost")
    own = {name.lower(): value for name, value in backend.health.headers.items()}
    return {"host": backend.health.host or domain} | own


def _headers(backend: Backend) -> Iterator[dict[str, str]]:
    """Yield the headers to add to responses that lack them."""
    own = {name.lower() for name in backend.headers}
    for name, value in backend.headers.items():
        if value:
            yield {"name": name, "value": value, "condition": ""}
    if backend.hsts and "strict-transport-security" not in own:
        yield {"name": "Strict-Transport-Security", "value": f"max-age={backend.hsts}", "condition": "{ ssl_fc } "}


def _cookie_value(server: str) -> str:
    """Return the cookie value of a server, which does not disclose its name."""
    return hashlib.sha256(server.encode()).hexdigest()[:8]


def _port_of(address: str) -> str:
    found = re.search(r":([0-9]+)$", address)
    return found[1] if found else ""


def _host_of(address: str) -> str:
    port = _port_of(address)
    return address.removesuffix(f":{port}") if port else address
