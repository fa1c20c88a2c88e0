"""Validation of sites and upstreams: rules between keys, between sites, and against the options of nginx.

HAProxy backends and apps share the rules on domains, aliases, headers and paths, so that each rule exists once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    InvalidDataError,
    Network,
    closest_match,
    parse_each,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import (
    CHALLENGE_URL,
    ICON_URLS,
    MOUNT_URL,
    NAME,
    OWN_URL,
    Domains,
    Limits,
    Mount,
    NginxOptions,
    PathOptions,
    Server,
    Site,
    SiteOptions,
    Upstream,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.name_resolution import resolution_problems, server_problem

#: A path as written in a location of nginx, which compares it with the normalized path of a request.
_LOCATION_PATH = re.compile(r"/((?!\.{1,2}(/|$))[A-Za-z0-9._~-]+(/|$))*")


@dataclass(frozen=True)
class SitePart:
    """The paths that one upstream serves in a site, all below ``prefix``; ``static`` and ``paths`` map keys to URL paths.

    ``paths`` also has the directories that apps write, which contain no favicon.ico and robots.txt of the site.
    """

    origin: str
    prefix: str
    static: Mapping[str, str]
    paths: Mapping[str, str]

    @property
    def locations(self) -> dict[str, str]:
        """All URL paths by key."""
        return {**self.static, **self.paths}


def parse_sites(
    sites: Mapping[str, object], upstreams: Mapping[str, object], *, name: str, options: NginxOptions
) -> tuple[dict[str, Site], dict[str, Upstream]]:
    """Parse and validate the set of sites called ``name`` and its upstreams.

    :raises InvalidDataError: with every problem of all sites and upstreams.
    """
    problems: list[str] = []
    if NAME.violation(name):
        problems.append(f"nginx_set: must be {NAME.expected}; found {name!r}")
    for i, proxy in enumerate(options.trusted_proxies):
        if violation := Network().violation(proxy):
            problems.append(f"nginx_trusted_proxies[{i}]: {violation}; found {proxy!r}")
    parsed_upstreams = parse_each(Upstream, upstreams, "nginx_upstreams", problems, NAME)
    parsed_sites = parse_each(Site, sites, "nginx_sites", problems, NAME)
    for key, upstream in parsed_upstreams.items():
        problems.extend(server_problems(upstream, f"nginx_upstreams.{key}"))
    by_path: list[tuple[str, Site]] = []
    for key, site in parsed_sites.items():
        path = site.origin or f"nginx_sites.{key}"
        by_path.append((path, site))
        problems.extend(_upstream_problems(site.upstream, path, parsed_upstreams))
        problems.extend(_mount_problems(site, path, parsed_upstreams))
        if isinstance(site.upstream, Upstream) and key in parsed_upstreams:
            problems.append(f"{path}.upstream: nginx_upstreams also has {key}; use it by name, or rename one of them")
        problems.extend(site_problems(site, path))
        problems.extend(_location_problems(site, path))
        problems.extend(_listen_problems(site, path, options))
    problems.extend(domain_conflicts(by_path))
    if problems:
        raise InvalidDataError(problems)
    return parsed_sites, parsed_upstreams


def site_problems(site: SiteOptions, path: str) -> Iterator[str]:
    """Yield the problems between the keys of one site or app at ``path``."""
    yield from domain_problems(site, path)
    yield from header_problems(site.headers, path)
    for user in site.basic_auth:
        if not re.fullmatch(r"[^\s:]+", user):
            yield f"{path}.basic_auth.{user}: a user name must not contain colons or blanks"
    yield from _limit_problems(site.limits, f"{path}.limits")
    yield from _path_problems(site.paths, f"{path}.paths")
    for key, extra in {
        "extra": site.extra,
        **{f"paths.{url}.extra": options.extra for url, options in site.paths.items()},
    }.items():
        yield from resolution_problems(extra, f"{path}.{key}")


def domain_problems(site: Domains, path: str) -> Iterator[str]:
    """Yield duplicate names of one site, and aliases without a domain to redirect to."""
    names = [*site.domains, *site.aliases]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path}.{'aliases' if name in site.aliases else 'domains'}: {name} is listed twice"
    if site.aliases and (not site.domains or site.domains[0].startswith("*.")):
        yield f"{path}.aliases: redirect to the first of domains, which must be a name without *"


def domain_conflicts(sites: Iterable[tuple[str, Domains]]) -> Iterator[str]:
    """Yield each name that two sites claim; each site comes with its path. There is one default site without names.

    The paths need not differ: sites with the same ``origin`` share one.
    """
    owners: dict[str, str] = {}
    for path, site in sites:
        for name in dict.fromkeys([*site.domains, *site.aliases] or [""]):
            if name not in owners:
                owners[name] = path
            elif name:
                key = "aliases" if name in site.aliases else "domains"
                yield f"{path}.{key}: {name} already belongs to {owners[name]}; names must be unique"
            else:
                yield f"{path}.domains: {owners[name]} is already the default for other names; only one may have no domains"


def header_problems(headers: Iterable[str], path: str) -> Iterator[str]:
    """Yield the names of response headers that HTTP does not allow."""
    for name in headers:
        if not re.fullmatch(r"[A-Za-z0-9-]+", name):
            yield f"{path}.headers.{name}: a header name must consist of letters, digits and -"


def is_reserved(url: str) -> bool:
    """Return whether the role itself serves a path on every site."""
    return url.startswith((CHALLENGE_URL, OWN_URL))


def part_problems(part: SitePart) -> Iterator[str]:
    """Yield the paths of a part that are outside its prefix, reserved or duplicate."""
    taken = set(ICON_URLS) if part.static and part.prefix == "/" else set()
    for key, url in part.locations.items():
        if not url.startswith(part.prefix):
            yield f"{key}: must begin with {part.prefix}, the prefix of {part.origin}; found {url!r}"
        elif url == part.prefix:
            yield f"{key}: must be a path below {url}; set options of all of {url} in {part.origin} itself"
        elif url in taken or is_reserved(url):
            yield f"{key}: {url} is already in use or reserved; choose another path"
        taken.add(url)


def overlap_problems(parts: Collection[SitePart]) -> Iterator[str]:
    """Yield the paths of a part that nginx would route to another part of the site."""
    for part in parts:
        for key, url in part.locations.items():
            inner = [other for other in parts if len(other.prefix) > len(part.prefix) and url.startswith(other.prefix)]
            if inner:
                other = max(inner, key=lambda candidate: len(candidate.prefix))
                yield f"{key}: {url} lies below {other.prefix}, which {other.origin} serves; move it there or choose another path"


def _path_problems(paths: Mapping[str, PathOptions], path: str) -> Iterator[str]:
    for url, options in paths.items():
        if not _LOCATION_PATH.fullmatch(url):
            yield f"{path}.{url}: must be a path of letters, digits and . _ ~ - that starts with /, without // and /../"
        yield from _limit_problems(options.limits, f"{path}.{url}.limits")


def _location_problems(site: Site, path: str) -> Iterator[str]:
    mounts = [_site_part(mount.origin or f"{path}.mounts.{url}", url, mount) for url, mount in site.mounts.items()]
    parts = [_site_part(path, "/", site), *mounts]
    for part in parts:
        yield from part_problems(part)
    yield from overlap_problems(parts)


def _site_part(origin: str, prefix: str, options: Site | Mount) -> SitePart:
    static = {f"{origin}.static[{i}].url": each.url for i, each in enumerate(options.static) if not each.untrusted}
    others = {f"{origin}.static[{i}].url": each.url for i, each in enumerate(options.static) if each.untrusted}
    return SitePart(origin, prefix, static, {f"{origin}.paths.{url}": url for url in options.paths} | others)


def _mount_problems(site: Site, path: str, upstreams: Mapping[str, Upstream]) -> Iterator[str]:
    for url, mount in site.mounts.items():
        mount_path = mount.origin or f"{path}.mounts.{url}"
        if violation := MOUNT_URL.violation(url):
            yield f"{mount_path}: {violation}"
        elif is_reserved(url):
            yield f"{mount_path}: {url} is reserved for the site itself; choose another path"
        yield from _upstream_problems(mount.upstream, mount_path, upstreams)
        yield from _limit_problems(mount.limits, f"{mount_path}.limits")
        yield from _path_problems(mount.paths, f"{mount_path}.paths")
        if mount.maintenance_file and not site.maintenance.file:
            yield f"{mount_path}.maintenance_file: requires the site's maintenance.file"


def _upstream_problems(upstream: str | Upstream, path: str, upstreams: Mapping[str, Upstream]) -> Iterator[str]:
    if isinstance(upstream, str) and upstream not in upstreams:
        near = closest_match(upstream, upstreams)
        yield f"{path}.upstream: nginx_upstreams has no {upstream}" + (f"; did you mean {near}?" if near else "")
    elif isinstance(upstream, Upstream):
        yield from server_problems(upstream, f"{path}.upstream")


def server_problems(upstream: Upstream, path: str) -> Iterator[str]:
    """Yield the servers of an upstream with names that nginx would resolve when it starts, and a conflict with its affinity."""
    for i, server in enumerate(upstream.servers):
        if problem := server_problem(server.address if isinstance(server, Server) else server, f"{path}.servers[{i}]"):
            yield problem
    if upstream.affinity != "none" and any(isinstance(server, Server) and server.backup for server in upstream.servers):
        yield f"{path}.affinity: cannot have servers with backup, which its hash does not support; remove one of them"


def _limit_problems(limits: Limits, path: str) -> Iterator[str]:
    if limits.burst is not None and limits.requests is None:
        yield f"{path}.burst: requires requests"


def _listen_problems(site: Site, path: str, options: NginxOptions) -> Iterator[str]:
    available = [*options.listen, *(options.listen_tls if site.tls else ())]
    for address in site.listen:
        if address not in available:
            yield f"{path}.listen: {address} is not in nginx_listen ({', '.join(available)}); add it there"
    if site.tls and not set(site.listen or available) & set(options.listen_tls):
        yield f"{path}.tls: requires an address to listen on, such as nginx_listen_tls: ['443', '[::]:443']"
    if site.tls and not site.domains:
        yield f"{path}.tls: requires domains, the names that the certificate is for"
