"""The sites and upstreams of nginx as a user describes them, and the files they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from ansible_collections.funnel.tornado.plugins.module_utils.schema import (
    Doc,
    InvalidDataError,
    Pattern,
    Range,
    nearest,
    parse,
)

T = TypeVar("T")

_PATH = Pattern(r"/[^\s;{}'\"\\$*?\[\]]*", "an absolute path, without blanks, quotes and any of ; { } $ * ? [ ]")
_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a name of letters, digits, _ and -")
_ADDRESS = Pattern(r"unix:/[^\s;{}'\"\\$]+|[^\s;{}'\"\\$/]+", 'host:port, or a socket such as "unix:/run/shop/0.sock"')
_SECONDS = Range(1, 86400)


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of an upstream."""

    address: Annotated[str, Doc("host:port, or unix: and the path of a socket."), _ADDRESS]
    weight: Annotated[int, Doc("Its share, compared to the others."), Range(1, 1000)] = 1
    backup: Annotated[bool, Doc("Asked only when all others cannot be reached.")] = False


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Servers that requests are passed to."""

    EXACTLY_ONE: ClassVar = ("servers", "include")

    servers: Annotated[list[str | Server], Doc("Addresses, or dicts of address, weight and backup."), _ADDRESS] = field(
        default_factory=list
    )
    include: Annotated[
        str | None,
        Doc("File of C(server) lines. While it does not exist, the site answers 502, and nginx still starts."),
        _PATH,
    ] = None
    balance: Annotated[
        Literal["least_conn", "round_robin", "ip_hash", "random"], Doc("How a server is chosen for a request.")
    ] = "least_conn"
    keepalive: Annotated[int, Doc("Idle connections that each worker keeps."), Range(1, 10_000)] = 256
    keepalive_time: Annotated[int, Doc("Seconds after which a connection takes no further request."), _SECONDS] = 2
    keepalive_timeout: Annotated[int, Doc("Seconds that a connection is kept idle."), _SECONDS] = 2


@dataclass(frozen=True, kw_only=True)
class Static:
    """Files that nginx serves itself."""

    url: Annotated[
        str, Doc("Prefix of their addresses."), Pattern(r"/([\w.~-]+/)+", 'a path between slashes, such as "/static/"')
    ]
    path: Annotated[str, Doc("Their directory on the host."), _PATH]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What nginx answers to the names of a site."""

    upstream: Annotated[str | Upstream, Doc("Name of one of the upstreams, or one of its own."), _NAME]
    domains: Annotated[
        list[str],
        Doc("Names it answers to. Without any it answers to every name that no other site has."),
        Pattern(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", "a domain name in lower case"),
    ] = field(default_factory=list)
    listen: Annotated[list[str], Doc("Addresses it listens on, of those of the role; all of them if unset.")] = field(
        default_factory=list
    )
    upload_size: Annotated[str, Doc("Largest request body."), Pattern(r"\d+[kKmMgG]?", 'a size, such as "50m"')] = "50m"
    read_timeout: Annotated[int, Doc("Seconds that the upstream may be silent, on websockets too."), _SECONDS] = 200
    websocket: Annotated[bool, Doc("Whether websockets are passed on.")] = True
    static: Annotated[
        list[Static], Doc("Directories nginx serves itself; the first one also has favicon.ico and robots.txt.")
    ] = field(default_factory=list)
    headers: Annotated[
        dict[str, str],
        Doc("Headers added to every answer."),
        Pattern(r'[^"\\\n]*', "one line without double quotes and backslashes"),
    ] = field(default_factory=dict)
    extra: Annotated[str, Doc("Lines for its server block, checked by nginx before they are live.")] = ""
    origin: Annotated[str, Doc("Variable that it was made from, named in messages about it.")] = ""


def site_files(
    sites: Mapping[str, object], upstreams: Mapping[str, object], *, name: str, listen: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the ``files`` of funnel.tornado.file_set that a set of sites takes, below nginx's directory.

    ``name`` is the set's; ``listen`` are the addresses that nginx.conf listens on.

    :raises InvalidDataError: with every mistake of all sites and upstreams.
    """
    problems: list[str] = []
    if _NAME.objection(name):
        problems.append(f"nginx_set: must be {_NAME.wanted}; found {name!r}")
    parsed_upstreams = _parse_all(Upstream, upstreams, "nginx_upstreams", problems)
    parsed_sites = _parse_all(Site, sites, "nginx_sites", problems)
    problems.extend(_cross_problems(parsed_sites, parsed_upstreams, listen))
    if problems:
        raise InvalidDataError(problems)
    files = {f"sites-enabled/{name}.{key}.conf": _site_file(key, site, listen) for key, site in parsed_sites.items()}
    if parsed_upstreams:
        shared = [_upstream_variables(key, upstream) for key, upstream in parsed_upstreams.items()]
        files[f"sites-enabled/{name}.conf"] = {
            "template": "upstreams.conf.j2",
            "vars": {"upstreams": shared},
            "label": "nginx_upstreams",
        }
    return files


def _parse_all(schema: type[T], entries: Mapping[str, object], variable: str, problems: list[str]) -> dict[str, T]:
    parsed: dict[str, T] = {}
    for key, entry in entries.items():
        if _NAME.objection(key):
            problems.append(f"{variable}.{key}: must be {_NAME.wanted}")
        try:
            parsed[key] = parse(schema, entry, f"{variable}.{key}")
        except InvalidDataError as error:
            problems.extend(error.problems)
    return parsed


def _cross_problems(sites: Mapping[str, Site], upstreams: Mapping[str, Upstream], listen: Sequence[str]) -> Iterator[str]:
    owners: dict[str, str] = {}
    for key, site in sites.items():
        path = f"nginx_sites.{key}"
        if isinstance(site.upstream, str) and site.upstream not in upstreams:
            near = nearest(site.upstream, upstreams)
            yield f"{path}.upstream: nginx_upstreams has no {site.upstream}" + (f"; did you mean {near}?" if near else "")
        if isinstance(site.upstream, Upstream) and key in upstreams:
            yield f"{path}.upstream: nginx_upstreams has a {key}, too; name that instead, or rename one of them"
        for address in site.listen:
            if address not in listen:
                yield f"{path}.listen: {address} is not in nginx_listen ({', '.join(listen)}); add it there"
        for domain in site.domains or [""]:
            owner = owners.setdefault(domain, key)
            if owner != key:
                what = f"{domain} is {owner}'s, too" if domain else f"{owner} answers to all other names, too"
                yield f"{path}.domains: {what}; each site needs names of its own"


def _site_file(key: str, site: Site, listen: Sequence[str]) -> dict[str, Any]:
    own = {key: site.upstream} if isinstance(site.upstream, Upstream) else {}
    label = f"{site.origin or f'nginx_sites.{key}'}{'.extra' if site.extra else ''}"
    variables = {
        **dataclasses.asdict(site),
        "label": label,
        "listen": site.listen or list(listen),
        # To no name at all, and by a regular expression, to which nginx prefers every name proper, to any.
        "names": site.domains or ['""', "~^"],
        "upstream": key if own else site.upstream,
        "upstreams": [_upstream_variables(name, upstream) for name, upstream in own.items()],
        "static": [{"url": one.url, "path": one.path.rstrip("/")} for one in site.static],
    }
    return {"template": "site.conf.j2", "vars": variables, "label": label}


def _upstream_variables(name: str, upstream: Upstream) -> dict[str, Any]:
    variables = {**dataclasses.asdict(upstream), "name": name, "lines": [server_line(one) for one in upstream.servers]}
    if upstream.include:
        # As a mask, because nginx does not mind one that matches nothing: an upstream that is not there yet must not
        # keep nginx from starting and serving the other sites.
        variables["include"] = f"{upstream.include[:-1]}[{upstream.include[-1]}]"
    return variables


def server_line(server: str | Server) -> str:
    """Return the line of an upstream for a server, the one for files that ``include`` names too.

    ``max_fails=0``: nginx's default takes a server out for ten seconds after one refused connection, and so turns the
    restart of one process into refused requests.
    """
    one = Server(address=server) if isinstance(server, str) else server
    weight = f" weight={one.weight}" if one.weight != 1 else ""
    return f"server {one.address}{weight} max_fails=0{' backup' if one.backup else ''};"
