"""Rendering of the nginx configuration: the files of a set of sites and upstreams, and the variables of their templates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.sites.front_door import FrontDoor
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import (
    CHALLENGE_URL,
    CHALLENGES,
    DEFAULT_HEADERS,
    HEALTH_HEADER,
    HEALTH_URL,
    ICON_URLS,
    RELEASE_HEADER,
    UNTRUSTED_HEADERS,
    Limits,
    Mount,
    NginxOptions,
    PathOptions,
    Server,
    Site,
    Upstream,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.validation import parse_sites

#: Directory of all nginx configuration files.
DIRECTORY = "/etc/nginx"

#: Directory of the collection's sites and their snippets: those of the host are in sites-enabled and conf.d.
SITES = "funnel"

#: Mode of configuration files. The master reads them as root; the access rules in them are hidden from other users, such as apps.
PRIVATE_MODE = "0600"


def site_files(
    sites: Mapping[str, object], upstreams: Mapping[str, object], *, name: str, options: NginxOptions
) -> dict[str, dict[str, Any]]:
    """Return the ``files`` for funnel.tornado.file_set of the set of sites called ``name``, relative to nginx's directory.

    Each file name begins with ``name`` and a dot.

    :raises InvalidDataError: with every problem of all sites and upstreams.
    """
    parsed_sites, parsed_upstreams = parse_sites(sites, upstreams, name=name, options=options)
    files: dict[str, dict[str, Any]] = {}
    for key, site in parsed_sites.items():
        files |= _SiteRenderer(f"{name}.{key}", key, site, options, parsed_upstreams).files()
    if parsed_upstreams:
        shared = [_upstream_variables(key, upstream, key) for key, upstream in parsed_upstreams.items()]
        files[f"{SITES}/{name}.conf"] = {
            "template": "upstreams.conf.j2",
            "vars": {"upstreams": shared},
            "label": "nginx_upstreams",
        }
    return files


def server_line(address: str, weight: int = 1, *, backup: bool = False) -> str:
    """Return the ``server`` directive of an upstream, also for the files that ``include`` names.

    ``max_fails=0`` disables passive health checks: by default, nginx excludes a server for ten seconds after one refused
    connection, so that the restart of a single process would fail requests.
    """
    share = f" weight={weight}" if weight != 1 else ""
    return f"server {address}{share} max_fails=0{' backup' if backup else ''};"


@dataclass(frozen=True)
class _Location:
    """A location of a site other than its root, with its directives.

    ``name`` prefixes its files, zones and named location. Unset options are inherited from ``parent``, the nearest location
    around it; a mount has another upstream and inherits only limits and access control. ``origin`` is the variable it comes from.
    """

    name: str
    url: str
    options: PathOptions
    upstream: str
    origin: str
    parent: _Location | None = None

    @property
    def buffering(self) -> bool | None:
        """Whether responses are buffered; None is all but event streams."""
        if self.options.buffering is None and self.parent and not isinstance(self.options, Mount):
            return self.parent.buffering
        return self.options.buffering

    @property
    def zones(self) -> list[str]:
        """The directives that define the shared memory zones of its own limits."""
        return _limit_zones(self.options.limits, self.name)

    @property
    def directives(self) -> dict[str, list[str]]:
        """The directives of its location block, by topic."""
        options = self.options
        found: dict[str, list[str]] = {}
        if self.parent:
            found |= self.parent.guards if isinstance(options, Mount) else self.parent.directives
        found |= _limit_directives(options.limits, self.name)
        if options.allow or options.deny:
            found["access"] = _access_directives(options.allow, options.deny)
        if options.upload_size:
            found["upload_size"] = [f"client_max_body_size {options.upload_size};"]
        if options.read_timeout:
            found["read_timeout"] = [f"proxy_read_timeout {options.read_timeout}s;"]
        if options.buffering is not None:
            found["buffering"] = [] if options.buffering else ["proxy_buffering off;", "proxy_request_buffering off;"]
        return found

    @property
    def guards(self) -> dict[str, list[str]]:
        """The directives of limits and access control, which apply to static files too."""
        return {topic: lines for topic, lines in self.directives.items() if topic in ("requests", "connections", "access")}

    @property
    def snippet(self) -> str:
        """The file of its ``extra`` lines, relative to nginx's directory."""
        return f"{SITES}/{self.name}.extra"


@dataclass(frozen=True)
class _SiteRenderer:
    """Renders one site: ``name`` prefixes its files, ``key`` names the site and its own upstream.

    ``shared`` are the upstreams that sites use by name.
    """

    name: str
    key: str
    site: Site
    options: NginxOptions
    shared: Mapping[str, Upstream]

    def files(self) -> dict[str, dict[str, Any]]:
        """Return the files by path.

        Snippets are separate files, so that errors of nginx identify their key and a brace in one cannot end the block around it.
        """
        site = self.site
        found: dict[str, dict[str, Any]] = {
            self._path("conf"): {
                "template": "site.conf.j2",
                "vars": self._variables(),
                "mode": PRIVATE_MODE,
                "label": self._origin,
                "needs": [site.tls.certificate, site.tls.key] if site.tls else [],
            }
        }
        snippets = {self._path("extra"): (site.extra, self._origin)}
        snippets |= {location.snippet: (location.options.extra, location.origin) for location in self._locations()}
        for path, (text, origin) in snippets.items():
            if text:
                found[path] = {"content": f"{text.rstrip()}\n", "mode": PRIVATE_MODE, "label": f"{origin}.extra"}
        if site.maintenance.file:
            page = {"content": site.maintenance.page} if site.maintenance.page else {"template": "maintenance.html.j2"}
            found[self._path("html")] = {**page, "label": f"{self._origin}.maintenance.page"}
        for app, name in self._apps().items():
            found[f"{name}.health"] = {"template": "health.conf.j2", "vars": self._health_variables(app), "mode": PRIVATE_MODE}
            if door := self._front_door():
                found[f"{name}.door"] = {"content": door.to_json(), "mode": PRIVATE_MODE}
        for part in (site, *site.mounts.values()):
            if part.app and part.options:
                found[f"{self._apps()[part.app]}.options"] = {"content": part.options, "mode": PRIVATE_MODE}
        if site.basic_auth:
            lines = "".join(f"{user}:{password}\n" for user, password in site.basic_auth.items())
            found[self._path("htpasswd")] = {"content": lines, "mode": "0640", "group": "www-data", "secret": True}
        return found

    @property
    def _origin(self) -> str:
        """The variable that the site comes from."""
        return self.site.origin or f"nginx_sites.{self.key}"

    @property
    def _upstream_name(self) -> str:
        return self.site.upstream if isinstance(self.site.upstream, str) else self.key

    def _path(self, suffix: str) -> str:
        return f"{SITES}/{self.name}.{suffix}"

    def _apps(self) -> dict[str, str]:
        """Return the apps that the site serves, each with the prefix of its files."""
        names = [self.site.app, *(mount.app for mount in self.site.mounts.values())]
        return {name: f"{SITES}/{self.name.partition('.')[0]}.{name}" for name in names if name}

    def _health_variables(self, app: str) -> dict[str, Any]:
        live = Layout(app).live
        return {
            "app": app,
            "live": str(live),
            "headers": _included(str(live / Layout(app).health_headers("a").name)),
            "url": f"{HEALTH_URL}/{app}",
            "health_header": HEALTH_HEADER,
            "release_header": RELEASE_HEADER,
            # A load balancer must learn soon that a process hangs; on a host without one, the health check may take its time.
            "timeout": 1 if self.options.trusted_proxies else 5,
            "trusted_proxies": ["127.0.0.1", "::1", *self.options.trusted_proxies],
        }

    def _front_door(self) -> FrontDoor | None:
        """Return the address at which clients reach the site, over TLS if it has a certificate; None without a TCP address."""
        site, options = self.site, self.options
        available = options.listen_tls if site.tls else options.listen
        listen = [address for address in available if address in (site.listen or available) and not address.startswith("unix:")]
        domain = site.domains[0].replace("*", "funnel") if site.domains else "localhost"
        return next(
            (
                FrontDoor.of(address, domain, tls=site.tls is not None, proxy_protocol=options.proxy_protocol)
                for address in listen
            ),
            None,
        )

    def _locations(self) -> list[_Location]:
        """Return all locations but the root, numbered, each after those around it."""
        found: dict[str, tuple[PathOptions, str, str]] = {}
        for url, options in self.site.paths.items():
            found[url] = options, self._upstream_name, f"{self._origin}.paths.{url}"
        for number, (prefix, mount) in enumerate(self.site.mounts.items()):
            upstream = mount.upstream if isinstance(mount.upstream, str) else f"{self.key}.{number}"
            origin = mount.origin or f"{self._origin}.mounts.{prefix}"
            found[prefix] = mount, upstream, origin
            for url, options in mount.paths.items():
                found[url] = options, upstream, f"{origin}.paths.{url}"
        locations: list[_Location] = []
        for number, url in enumerate(sorted(found)):
            locations.append(_Location(f"{self.name}.{number}", url, *found[url], _nearest_parent(url, locations)))
        return locations

    def _upstreams(self, mounts: Sequence[tuple[_Location, Mount]]) -> Iterator[dict[str, Any]]:
        """Yield the template variables of the site's own upstreams."""
        own = [
            (self.key, self.site.upstream, "/"),
            *((location.upstream, mount.upstream, location.url) for location, mount in mounts),
        ]
        for name, upstream, url in own:
            if isinstance(upstream, Upstream):
                yield _upstream_variables(name, upstream, self._affinity_name(url))

    def _affinity_name(self, url: str) -> str:
        """Return the name of the affinity of the site's own upstream at ``url``, which other mounts do not change."""
        return self.key + url.rstrip("/")

    def _affinity_cookies(self, mounts: Sequence[tuple[_Location, Mount]]) -> Iterator[dict[str, str]]:
        """Yield the cookies that bind clients to a server of an upstream; that of a shared upstream covers the whole site."""
        used = [("/", self._upstream_name, self.site.upstream)]
        used += [(location.url, location.upstream, mount.upstream) for location, mount in mounts]
        found: dict[str, dict[str, str]] = {}
        for url, name, upstream in used:
            own = isinstance(upstream, Upstream)
            options = upstream if isinstance(upstream, Upstream) else self.shared[name]
            if options.affinity == "cookie" and name not in found:
                found[name] = {
                    "name": _affinity_cookie(self._affinity_name(url) if own else name),
                    "path": url if own else "/",
                    "pattern": re.escape(name),
                    "variable": self._variable(f"affinity__{_escaped(name)}"),
                }
        yield from found.values()

    def _static(self, locations: Sequence[_Location]) -> Iterator[dict[str, Any]]:
        """Yield the template variables of each directory of static files."""
        for directory in [*self.site.static, *(static for mount in self.site.mounts.values() for static in mount.static)]:
            parent = _nearest_parent(directory.url, locations)
            yield {**dataclasses.asdict(directory), "directives": _flatten(parent.guards) if parent else []}

    def _icon_directory(self) -> str:
        """Return the directory of favicon.ico and robots.txt; empty without static files."""
        first = next((directory for directory in self.site.static if not directory.untrusted), None)
        if first is None:
            return ""
        return f"{first.live}/release/public{first.url}" if first.live else str(first.path)

    def _variables(self) -> dict[str, Any]:
        """Return the variables of the site template."""
        site, locations = self.site, self._locations()
        mounts = [(location, location.options) for location in locations if isinstance(location.options, Mount)]
        mount_files = {url: mount.maintenance_file for url, mount in site.mounts.items() if mount.maintenance_file}
        return {
            **dataclasses.asdict(site),
            "listen": list(self._listen()),
            # The empty name, and a regular expression that matches all others: nginx prefers exact and wildcard names to it.
            "server_names": site.domains or ['""', "~^"],
            "realm": site.domains[0] if site.domains else self.key,
            "upstream": self._upstream_name,
            "upstreams": list(self._upstreams(mounts)),
            "zones": [*_limit_zones(site.limits, self.name), *(zone for location in locations for zone in location.zones)],
            "guards": [*_flatten(_limit_directives(site.limits, self.name)), *_access_directives(site.allow, site.deny)],
            # Below a mount, the path without the slash is redirected to the other app.
            "has_mounts": bool(site.mounts),
            "mount_urls": [url for url in site.mounts if url.rstrip("/") not in site.paths],
            "locations": [
                {"matches": ["/"], "directives": [], "extra": "", "events": "@events", "upstream": self._upstream_name},
                *map(self._location_variables, locations),
            ],
            "static": list(self._static(locations)),
            "own_policy": "content-security-policy" in {name.lower() for name in site.headers},
            "icon_directory": self._icon_directory(),
            "icon_urls": ICON_URLS,
            "headers": list(self._headers()),
            "affinity_cookies": list(self._affinity_cookies(mounts)),
            "password_file": self._path("htpasswd") if site.basic_auth else "",
            "maintenance_page": f"{DIRECTORY}/{self._path('html')}",
            "maintenance_applies": self._variable("in_maintenance"),
            "maintenance_file": self._variable("maintenance_file") if mount_files else site.maintenance.file,
            # nginx takes the first pattern that matches, so the longest prefix comes first.
            "mount_maintenance_files": [
                {"pattern": f"~^{re.escape(url)}", "file": mount_files[url]} for url in sorted(mount_files, key=len, reverse=True)
            ],
            "challenge_url": CHALLENGE_URL,
            "challenge_upstream": f"{self.name}{CHALLENGES}",
            "untrusted_headers": UNTRUSTED_HEADERS,
            "health_url": HEALTH_URL,
            "apps": [
                {"name": app, "upstream": _included(str(Layout(app).live_upstream)), "health": f"{name}.health"}
                for app, name in self._apps().items()
            ],
            "trusted_proxies": list(self.options.trusted_proxies),
            "extra": self._path("extra") if site.extra else "",
        }

    def _matches(self, location: _Location) -> Iterator[str]:
        """Yield the parameters of the location blocks: a path that ends with a slash also covers itself without the slash.

        Otherwise nginx would redirect a request for that, and clients would drop the body of a POST.
        """
        if not location.url.endswith("/"):
            yield f"= {location.url}"
            return
        bare = location.url.rstrip("/")
        taken = {*ICON_URLS, *self.site.paths, *(url for mount in self.site.mounts.values() for url in mount.paths)}
        # An exact location can neither contain others nor map the rest of the path to a directory.
        if (
            bare not in taken
            and not isinstance(location.options, Mount)
            and not re.search(r"\b(location|alias)\b", location.options.extra)
        ):
            yield f"= {bare}"
        yield f"^~ {location.url}"

    def _location_variables(self, location: _Location) -> dict[str, Any]:
        return {
            "matches": list(self._matches(location)),
            "directives": _flatten(location.directives),
            "extra": location.options.extra and location.snippet,
            # The named location of event streams: proxy_buffering accepts no variable.
            "events": f"@events{location.name.removeprefix(self.name)}" if location.buffering is None else "",
            "upstream": location.upstream,
        }

    def _variable(self, word: str) -> str:
        """Return the name of an nginx variable that is unique to the site; invalid characters are replaced by their code."""
        return f"$funnel_{_escaped(self.name)}__{word}"

    def _listen(self) -> Iterator[str]:
        site, options = self.site, self.options
        proxy = " proxy_protocol" if options.proxy_protocol else ""
        yield from (f"{address}{proxy}" for address in options.listen if not site.listen or address in site.listen)
        if site.tls:
            yield from (f"{address} ssl{proxy}" for address in options.listen_tls if not site.listen or address in site.listen)

    def _headers(self) -> Iterator[dict[str, str]]:
        """Yield the response headers; the map of each is empty if the response already has that header."""
        site = self.site
        own = {name.lower() for name in site.headers}
        headers = {name: value for name, value in DEFAULT_HEADERS.items() if name.lower() not in own} | site.headers
        for name, value in headers.items():
            if value:
                yield self._header(name, value, f"$sent_http_{_variable_word(name)}", '""')
        if site.tls and site.tls.hsts and "strict-transport-security" not in own:
            name = "Strict-Transport-Security"
            yield self._header(name, f"max-age={site.tls.hsts}", f"$funnel_scheme$sent_http_{_variable_word(name)}", "https")

    def _header(self, name: str, value: str, source: str, match: str) -> dict[str, str]:
        return {"name": name, "value": value, "source": source, "match": match, "variable": self._variable(_variable_word(name))}


def _escaped(name: str) -> str:
    """Return a name in the form of nginx variables: dots become two underscores, other characters their code."""
    return "__".join(re.sub(r"[^a-z0-9]", lambda found: f"_{ord(found[0]):x}", part) for part in name.split("."))


def _affinity_cookie(name: str) -> str:
    return f"funnel_{_escaped(name)}"


def _nearest_parent(url: str, locations: Iterable[_Location]) -> _Location | None:
    """Return the longest location prefix that contains ``url``; a location without a trailing slash contains nothing."""
    parents = [location for location in locations if location.url.endswith("/") and url.startswith(location.url)]
    return max(parents, key=lambda location: len(location.url), default=None)


def _limit_zones(limits: Limits, name: str) -> list[str]:
    """Return the directives that define the shared memory zones of limits."""
    zones = []
    if limits.requests is not None:
        zones.append(f"limit_req_zone $funnel_client zone={name}.requests:10m rate={limits.requests}r/s;")
    if limits.connections is not None:
        zones.append(f"limit_conn_zone $funnel_client zone={name}.connections:10m;")
    return zones


def _limit_directives(limits: Limits, name: str) -> dict[str, list[str]]:
    """Return the directives that apply limits, by topic."""
    lines = {}
    if limits.requests is not None:
        burst = limits.requests if limits.burst is None else limits.burst
        lines["requests"] = [f"limit_req zone={name}.requests{f' burst={burst} nodelay' if burst else ''};"]
    if limits.connections is not None:
        lines["connections"] = [f"limit_conn {name}.connections {limits.connections};"]
    return lines


def _flatten(directives: Mapping[str, Sequence[str]]) -> list[str]:
    return [line for lines in directives.values() for line in lines]


def _access_directives(allow: Sequence[str], deny: Sequence[str]) -> list[str]:
    """Return the directives of access control; nginx applies the first that matches a client."""
    lines = [*(f"deny {network};" for network in deny), *(f"allow {network};" for network in allow)]
    return [*lines, "deny all;"] if allow else lines


def _variable_word(header: str) -> str:
    """Return a header name in the form of nginx variables."""
    return header.lower().replace("-", "_")


def _upstream_variables(name: str, upstream: Upstream, affinity_name: str) -> dict[str, Any]:
    """Return the template variables of an upstream; ``affinity_name`` names its cookie and the variable of its hash key."""
    cookie = _affinity_cookie(affinity_name)
    keys = {"none": "", "cookie": f"$funnel_affinity_{_escaped(affinity_name)}", "address": "$remote_addr"}
    servers = [Server(address=server) if isinstance(server, str) else server for server in upstream.servers]
    lines = [server_line(server.address, server.weight, backup=server.backup) for server in servers]
    variables = {**dataclasses.asdict(upstream), "name": name, "servers": lines}
    variables |= {"affinity_key": keys[upstream.affinity], "cookie": cookie if upstream.affinity == "cookie" else ""}
    if upstream.include:
        variables["include"] = _included(upstream.include)
    return variables


def _included(path: str) -> str:
    """Return a glob pattern for one file, which may match nothing: nginx must start and serve other sites without the file."""
    return f"{path[:-1]}[{path[-1]}]"
