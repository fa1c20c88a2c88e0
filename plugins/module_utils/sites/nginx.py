"""The sites and upstreams of nginx as a user describes them, and the files they become."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    DOMAIN,
    Doc,
    Hidden,
    InvalidDataError,
    Network,
    Pattern,
    Range,
    closest_match,
    parse_each,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.upstream import server_line

_PATH = Pattern(r"/[^\s;{}'\"\\$*?\[\]]*", "an absolute path, without blanks, quotes and any of ; { } $ * ? [ ]")
_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a name of letters, digits, _ and -")
_ADDRESS = Pattern(r"unix:/[^\s;{}'\"\\$]+|[^\s;{}'\"\\$/]+", 'host:port, or a socket such as "unix:/run/shop/0.sock"')
_SIZE = Pattern(r"[1-9][0-9]*[kmg]?", 'a size, such as "50m"')
_SECONDS = Range(1, 86400)

#: Below which address static files are, or another upstream is.
_BETWEEN_SLASHES = r"/((?!\.{1,2}/)[A-Za-z0-9._~-]+/)+"
STATIC_URL = Pattern(_BETWEEN_SLASHES, 'a path between slashes, such as "/static/"')
MOUNT_URL = Pattern(_BETWEEN_SLASHES, 'a path between slashes, such as "/api/"')

#: Mode of what nginx's master reads as root: other users, such as apps, are not told who may reach a site, and how.
PRIVATE = "0600"

#: What crypt(3) of Debian takes: SHA-256 and SHA-512, bcrypt, yescrypt, and the MD5 of htpasswd.
_HASH = Pattern(
    r"\$(5|6|y|2[aby]|apr1)\$[^\s:]+", "a hash, as openssl passwd -6 or htpasswd -B makes it; never the password itself"
)

#: The address of a path, as it stands in a location of nginx, which compares it with normalized ones.
_LOCATION = re.compile(r"/((?!\.{1,2}(/|$))[A-Za-z0-9._~-]+(/|$))*")

HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")

#: Where nginx reads all files of this role from.
DIRECTORY = "/etc/nginx"

#: What a certificate authority asks for, whatever else is in the way of a request.
CHALLENGE_URL = "/.well-known/acme-challenge/"

#: Below this are the role's own pages.
_OWN_URL = "/.funnel/"

#: Where load balancers ask whether the site's upstream is well.
HEALTH_URL = f"{_OWN_URL}health"

#: Headers in which some server or framework believes a proxy about the client, the scheme, the host or the path. No proxy here
#: sets them, so what arrives in them is a client's own word.
CLAIMS = (
    "Forwarded",
    "Proxy",
    "Front-End-Https",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Forwarded",
    "X-Forwarded-By",
    "X-Forwarded-Host",
    "X-Forwarded-Path",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Protocol",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-Uri",
    "X-Host",
    "X-HTTP-Host-Override",
    "X-Original-Host",
    "X-Original-URI",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Script-Name",
    "X-Url-Scheme",
)

#: Headers of every answer, unless the site or the app says otherwise: https://owasp.org/www-project-secure-headers/.
HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}


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
    keepalive_timeout: Annotated[int, Doc("Seconds that a connection is kept idle."), _SECONDS] = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client, known by its address, may ask for. The rest is answered with 429."""

    requests: Annotated[int | None, Doc("Requests per second."), Range(1, 100_000)] = None
    burst: Annotated[
        int | None, Doc("Requests beyond that which are answered at once; as many as C(requests) if unset."), Range(0, 100_000)
    ] = None
    connections: Annotated[
        int | None, Doc("Connections with a request in progress, websockets among them."), Range(1, 100_000)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Path:
    """What is different below a path of a site, or at one."""

    read_timeout: Annotated[int | None, Doc("As the site's."), _SECONDS] = None
    buffering: Annotated[
        bool | None,
        Doc(
            "Whether nginx takes in answers as fast as they come, and whole request bodies, before it passes them on; "
            "if unset, all but what a browser's EventSource asks for."
        ),
    ] = None
    upload_size: Annotated[str | None, Doc("As the site's."), _SIZE] = None
    limits: Annotated[Limits, Doc("Each in place of the site's.")] = field(default_factory=Limits)
    allow: Annotated[list[str], Doc("In place of the site's C(allow) and C(deny)."), Network()] = field(default_factory=list)
    deny: Annotated[list[str], Doc("In place of the site's C(allow) and C(deny)."), Network()] = field(default_factory=list)
    extra: Annotated[
        str,
        Doc(
            "Lines for its location block. C(proxy_set_header) only adds to what the site sends to the app, C(add_header) takes "
            "the place of the site's header of that name. A C(location) or C(alias) in it needs C(buffering)."
        ),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class Maintenance:
    """What is answered while a site is in maintenance."""

    page: Annotated[str, Doc("The page, in HTML; a plain one if empty.")] = ""
    retry_after: Annotated[int, Doc("Seconds after which clients are asked to try again."), _SECONDS] = 300
    allow: Annotated[list[str], Doc("Addresses and networks that reach the app all the same."), Network()] = field(
        default_factory=list
    )


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """What a site of this role and an app have in common."""

    domains: Annotated[
        list[str],
        Doc("Names the site answers to. Without any it is the default site, which answers to every name that no other site has."),
        DOMAIN,
    ] = field(default_factory=list)
    aliases: Annotated[list[str], Doc("Names that are redirected to the first of C(domains)."), DOMAIN] = field(
        default_factory=list
    )
    upload_size: Annotated[str, Doc("Largest request body, the same for nginx and the runner."), _SIZE] = "50m"
    read_timeout: Annotated[int, Doc("Seconds that the app may be silent, on websockets too."), _SECONDS] = 200
    paths: Annotated[
        dict[str, Path],
        Doc(
            "What is different by path, such as C({/live/: {read_timeout: 3600}}); one without / at its end is exact. What a "
            "path does not say, but for C(extra), is as in the nearest one that it lies in."
        ),
    ] = field(default_factory=dict)
    headers: Annotated[
        dict[str, str],
        Doc(
            "Headers of every answer, unless the app sends its own. X-Content-Type-Options, X-Frame-Options and Referrer-Policy "
            "are set anyway; an empty text removes one."
        ),
        Pattern(r'[^"\\\n]*', "one line without double quotes and backslashes"),
    ] = field(default_factory=dict)
    allow: Annotated[list[str], Doc("Addresses and networks that are let in; everybody if empty."), Network()] = field(
        default_factory=list
    )
    deny: Annotated[list[str], Doc("Addresses and networks that are kept out, also of what C(allow) has."), Network()] = field(
        default_factory=list
    )
    basic_auth: Annotated[
        dict[str, str], Doc("Who is let in by a password: hashes by name, as C(openssl passwd -6) makes them."), _HASH, Hidden
    ] = field(default_factory=dict)
    limits: Annotated[Limits, Doc("What one client, known by its address, may ask for; the rest is answered with 429.")] = field(
        default_factory=Limits
    )
    maintenance: Annotated[Maintenance, Doc("What is answered while the site is in maintenance.")] = field(
        default_factory=Maintenance
    )
    extra: Annotated[
        str,
        Doc(
            "Lines for the site's server block in nginx, checked by nginx before they are live. A C(location) in it with a "
            "C(proxy_set_header) or C(add_header) of its own has none of the site's and has to repeat them."
        ),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class Static:
    """Files that nginx serves itself."""

    EXACTLY_ONE: ClassVar = ("path", "live")

    url: Annotated[str, Doc("Prefix of their addresses."), STATIC_URL]
    path: Annotated[str | None, Doc("Their directory on the host."), _PATH] = None
    live: Annotated[
        str | None,
        Doc(
            "A link that is moved with each release. Below it lie C(release/public), the files by their whole address, and "
            "C(before), which has the same of the release before, and its files by the hash of their content in C(versions)."
        ),
        _PATH,
    ] = None


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A site's certificate, and what HTTPS comes with."""

    certificate: Annotated[str, Doc("PEM file on the host: the site's certificate and its chain."), _PATH]
    key: Annotated[str, Doc("PEM file on the host: its private key."), _PATH]
    redirect: Annotated[bool, Doc("Whether what comes by HTTP is sent to HTTPS.")] = True
    hsts: Annotated[int, Doc("Seconds that browsers are to use nothing but HTTPS."), Range(0, 126_144_000)] = 0
    challenges: Annotated[str | None, Doc("Directory with the answers to ACME's http-01 challenges."), _PATH] = None


@dataclass(frozen=True, kw_only=True)
class SiteMaintenance(Maintenance):
    """What is answered while a file exists."""

    file: Annotated[str | None, Doc("The file; without one the site has no maintenance."), _PATH] = None


@dataclass(frozen=True, kw_only=True)
class Mount(Path):
    """Another upstream, below a path of a site. What it does not say of limits and of who is let in holds as around it."""

    upstream: Annotated[str | Upstream, Doc("Name of one of the upstreams, or one of its own."), _NAME]
    paths: Annotated[dict[str, Path], Doc("What is different by path, by whole addresses; the rest is the mount's.")] = field(
        default_factory=dict
    )
    static: Annotated[list[Static], Doc("Directories nginx serves itself, below the mount.")] = field(default_factory=list)
    maintenance_file: Annotated[
        str | None,
        Doc("While it exists, the site's sign of maintenance is up here; the site's own file then counts no more."),
        _PATH,
    ] = None
    origin: Annotated[str, Doc("Variable that it was made from, named in messages about it.")] = ""


@dataclass(frozen=True, kw_only=True)
class Site(SiteOptions):
    """What nginx answers to the names of a site."""

    upstream: Annotated[str | Upstream, Doc("Name of one of the upstreams, or one of its own."), _NAME]
    listen: Annotated[list[str], Doc("Addresses it listens on, of those of the role; all of them if unset.")] = field(
        default_factory=list
    )
    tls: Annotated[Tls | None, Doc("Its certificate; HTTP only without.")] = None
    health: Annotated[
        str | None,
        Doc("Path that its upstream is asked for when one of C(nginx_trusted_proxies) asks the site for C(/.funnel/health)."),
        _PATH,
    ] = None
    mounts: Annotated[dict[str, Mount], Doc("Other upstreams, by the paths below which they are asked; the longest wins.")] = (
        field(default_factory=dict)
    )
    websocket: Annotated[bool, Doc("Whether websockets are passed on.")] = True
    static: Annotated[
        list[Static], Doc("Directories nginx serves itself; the first one also has favicon.ico and robots.txt.")
    ] = field(default_factory=list)
    maintenance: Annotated[SiteMaintenance, Doc("What is answered while a file exists.")] = field(default_factory=SiteMaintenance)
    origin: Annotated[str, Doc("Variable that it was made from, named in messages about it.")] = ""


@dataclass(frozen=True)
class Addresses:
    """Where nginx.conf listens, and which proxies it believes: the variables of the role that all sites depend on."""

    listen: Sequence[str]
    listen_tls: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()
    proxy_protocol: bool = False


@dataclass(frozen=True)
class Part:
    """What one upstream has of a site: all below ``prefix``. ``static`` and ``paths`` are addresses by their keys."""

    origin: str
    prefix: str
    static: Mapping[str, str]
    paths: Mapping[str, str]

    @property
    def places(self) -> dict[str, str]:
        """All addresses by their keys."""
        return {**self.static, **self.paths}


def size_in_bytes(size: str) -> int:
    """Return the bytes of a size such as ``50m``."""
    return int(size.rstrip("kmg")) << {"k": 10, "m": 20, "g": 30}.get(size[-1], 0)


def site_files(
    sites: Mapping[str, object], upstreams: Mapping[str, object], *, name: str, addresses: Addresses
) -> dict[str, dict[str, Any]]:
    """Return the ``files`` of funnel.tornado.file_set that a set of sites takes, below nginx's directory.

    ``name`` is the set's: every file's name begins with it and a dot.

    :raises InvalidDataError: with every mistake of all sites and upstreams.
    """
    problems: list[str] = []
    if _NAME.violation(name):
        problems.append(f"nginx_set: must be {_NAME.expected}; found {name!r}")
    for i, proxy in enumerate(addresses.trusted_proxies):
        if violation := Network().violation(proxy):
            problems.append(f"nginx_trusted_proxies[{i}]: {violation}; found {proxy!r}")
    parsed_upstreams = parse_each(Upstream, upstreams, "nginx_upstreams", problems, _NAME)
    parsed_sites = parse_each(Site, sites, "nginx_sites", problems, _NAME)
    problems.extend(_cross_problems(parsed_sites, parsed_upstreams, addresses))
    if problems:
        raise InvalidDataError(problems)
    files: dict[str, dict[str, Any]] = {}
    for key, site in parsed_sites.items():
        files |= _SiteFiles(f"{name}.{key}", key, site, addresses).files()
    if parsed_upstreams:
        shared = [_upstream_variables(key, upstream) for key, upstream in parsed_upstreams.items()]
        files[f"sites-enabled/{name}.conf"] = {
            "template": "upstreams.conf.j2",
            "vars": {"upstreams": shared},
            "label": "nginx_upstreams",
        }
    return files


def site_problems(site: SiteOptions, path: str) -> Iterator[str]:
    """Yield what is wrong between the keys of a site or an app, which stands at ``path``."""
    names = [*site.domains, *site.aliases]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path}.{'aliases' if name in site.aliases else 'domains'}: {name} is named twice"
    if site.aliases and (not site.domains or site.domains[0].startswith("*.")):
        yield f"{path}.aliases: are redirected to the first of domains, which has to be a name without *"
    for name in site.headers:
        if not HEADER_NAME.fullmatch(name):
            yield f"{path}.headers.{name}: a header's name is letters, digits and -"
    for user in site.basic_auth:
        if not re.fullmatch(r"[^\s:]+", user):
            yield f"{path}.basic_auth.{user}: a user's name has no colons and blanks"
    yield from _limit_problems(site.limits, f"{path}.limits")
    yield from _path_problems(site.paths, f"{path}.paths")


def _path_problems(paths: Mapping[str, Path], path: str) -> Iterator[str]:
    for url, one in paths.items():
        if not _LOCATION.fullmatch(url):
            yield f"{path}.{url}: must be a path of letters, digits and . _ ~ - that starts with /, without // and /../"
        yield from _limit_problems(one.limits, f"{path}.{url}.limits")


def is_reserved(url: str) -> bool:
    """Say whether a path is the role's own, on every site."""
    return url.startswith((CHALLENGE_URL, _OWN_URL))


def part_problems(part: Part) -> Iterator[str]:
    """Yield which addresses are not below the part's prefix, where all of them have to be, or are taken."""
    taken: set[str] = {"/favicon.ico", "/robots.txt"} if part.static and part.prefix == "/" else set()
    for key, url in part.places.items():
        if not url.startswith(part.prefix):
            yield f"{key}: must begin with {part.prefix}, below which it is served; found {url!r}"
        elif url == part.prefix:
            yield f"{key}: must be a place below {url}; what holds for all of it is in {part.origin} itself"
        elif url in taken or is_reserved(url):
            yield f"{key}: {url} has settings of its own already; choose another"
        taken.add(url)


def overlap_problems(parts: Collection[Part]) -> Iterator[str]:
    """Yield which addresses of a part of a site lie in another one, which nginx and the sign of maintenance take them for."""
    for part in parts:
        for key, url in part.places.items():
            inner = [other for other in parts if len(other.prefix) > len(part.prefix) and url.startswith(other.prefix)]
            if inner:
                other = max(inner, key=lambda one: len(one.prefix))
                yield f"{key}: {url} lies in {other.prefix}, the part of {other.origin}; move it there, or choose another"


def _part(origin: str, prefix: str, one: Site | Mount) -> Part:
    static = {f"{origin}.static[{i}].url": files.url for i, files in enumerate(one.static)}
    return Part(origin, prefix, static, {f"{origin}.paths.{url}": url for url in one.paths})


def _place_problems(site: Site, path: str) -> Iterator[str]:
    mounts = [_part(mount.origin or f"{path}.mounts.{url}", url, mount) for url, mount in site.mounts.items()]
    parts = [_part(path, "/", site), *mounts]
    for part in parts:
        yield from part_problems(part)
    yield from overlap_problems(parts)


def _mount_problems(site: Site, path: str, upstreams: Mapping[str, Upstream]) -> Iterator[str]:
    for url, mount in site.mounts.items():
        here = mount.origin or f"{path}.mounts.{url}"
        if violation := MOUNT_URL.violation(url):
            yield f"{here}: {violation}"
        elif is_reserved(url):
            yield f"{here}: {url} is kept for the site itself; choose another"
        yield from _upstream_problems(mount.upstream, here, upstreams)
        yield from _limit_problems(mount.limits, f"{here}.limits")
        yield from _path_problems(mount.paths, f"{here}.paths")
        if mount.maintenance_file and not site.maintenance.file:
            yield f"{here}.maintenance_file: goes with the site's maintenance.file"


def _upstream_problems(upstream: str | Upstream, path: str, upstreams: Mapping[str, Upstream]) -> Iterator[str]:
    if isinstance(upstream, str) and upstream not in upstreams:
        near = closest_match(upstream, upstreams)
        yield f"{path}.upstream: nginx_upstreams has no {upstream}" + (f"; did you mean {near}?" if near else "")


def _limit_problems(limits: Limits, path: str) -> Iterator[str]:
    if limits.burst is not None and limits.requests is None:
        yield f"{path}.burst: goes with requests"


def _cross_problems(sites: Mapping[str, Site], upstreams: Mapping[str, Upstream], addresses: Addresses) -> Iterator[str]:
    owners: dict[str, str] = {}
    for key, site in sites.items():
        path = site.origin or f"nginx_sites.{key}"
        yield from _upstream_problems(site.upstream, path, upstreams)
        yield from _mount_problems(site, path, upstreams)
        if isinstance(site.upstream, Upstream) and key in upstreams:
            yield f"{path}.upstream: nginx_upstreams has a {key}, too; name that instead, or rename one of them"
        yield from site_problems(site, path)
        yield from _place_problems(site, path)
        yield from _listen_problems(site, path, addresses)
        for domain in [*site.domains, *site.aliases] or [""]:
            owner = owners.setdefault(domain, key)
            if owner != key:
                what = f"{domain} is {owner}'s, too" if domain else f"{owner} answers to all other names, too"
                yield f"{path}.{'aliases' if domain in site.aliases else 'domains'}: {what}; each site needs names of its own"


def _listen_problems(site: Site, path: str, addresses: Addresses) -> Iterator[str]:
    known = [*addresses.listen, *(addresses.listen_tls if site.tls else ())]
    for address in site.listen:
        if address not in known:
            yield f"{path}.listen: {address} is not in nginx_listen ({', '.join(known)}); add it there"
    if site.tls and not set(site.listen or known) & set(addresses.listen_tls):
        yield f"{path}.tls: needs an address to listen on, such as nginx_listen_tls: ['443', '[::]:443']"
    if site.tls and not site.domains:
        yield f"{path}.tls: needs domains, which the certificate is for"


@dataclass(frozen=True)
class _Place:
    """A location of a site other than its root: what holds there, and the variable that says so.

    ``name`` is that of what belongs to it: files, zones, a named location. What it does not say itself holds as in the place
    ``above`` it, the nearest one that it lies in; but a mount has only the guards from there, as the rest is of another upstream.
    """

    name: str
    url: str
    one: Path
    upstream: str
    origin: str
    above: _Place | None = None

    @property
    def buffering(self) -> bool | None:
        """Whether answers are collected; None is all but events."""
        if self.one.buffering is None and self.above and not isinstance(self.one, Mount):
            return self.above.buffering
        return self.one.buffering

    @property
    def zones(self) -> list[str]:
        """The lines that define the zones of its own limits."""
        return _zones(self.one.limits, self.name)

    @property
    def settings(self) -> dict[str, list[str]]:
        """The lines of its location, by what they are about."""
        found: dict[str, list[str]] = {}
        if self.above:
            found |= self.above.guards if isinstance(self.one, Mount) else self.above.settings
        found |= _limit_lines(self.one.limits, self.name)
        if self.one.allow or self.one.deny:
            found["access"] = _access(self.one.allow, self.one.deny)
        if self.one.upload_size:
            found["upload_size"] = [f"client_max_body_size {self.one.upload_size};"]
        if self.one.read_timeout:
            found["read_timeout"] = [f"proxy_read_timeout {self.one.read_timeout}s;"]
        if self.one.buffering is not None:
            found["buffering"] = [] if self.one.buffering else ["proxy_buffering off;", "proxy_request_buffering off;"]
        return found

    @property
    def guards(self) -> dict[str, list[str]]:
        """The lines that say who may ask, and how much: those for files as well."""
        return {about: lines for about, lines in self.settings.items() if about in ("requests", "connections", "access")}


@dataclass(frozen=True)
class _SiteFiles:
    """The files of one site: ``name`` is that of the files, ``key`` that of the site and of its own upstream."""

    name: str
    key: str
    site: Site
    addresses: Addresses

    @property
    def origin(self) -> str:
        """The variable that the site comes from."""
        return self.site.origin or f"nginx_sites.{self.key}"

    def files(self) -> dict[str, dict[str, Any]]:
        """Return the files by their paths.

        Snippets have files of their own: what nginx says of one then names its key, and no brace of it ends a block around it.
        """
        site = self.site
        found: dict[str, dict[str, Any]] = {
            self._path("conf"): {
                "template": "site.conf.j2",
                "vars": self._variables(),
                "mode": PRIVATE,
                "label": self.origin,
                "needs": [site.tls.certificate, site.tls.key] if site.tls else [],
            }
        }
        snippets = {self._path("extra"): (site.extra, self.origin)}
        snippets |= {_snippet(place): (place.one.extra, place.origin) for place in self._places()}
        for path, (text, origin) in snippets.items():
            if text:
                found[path] = {"content": f"{text.rstrip()}\n", "mode": PRIVATE, "label": f"{origin}.extra"}
        if site.maintenance.file:
            page = {"content": site.maintenance.page} if site.maintenance.page else {"template": "maintenance.html.j2"}
            found[self._path("html")] = {**page, "label": f"{self.origin}.maintenance.page"}
        if site.basic_auth:
            lines = "".join(f"{user}:{password}\n" for user, password in site.basic_auth.items())
            found[self._path("htpasswd")] = {"content": lines, "mode": "0640", "group": "www-data", "secret": True}
        return found

    def _path(self, suffix: str) -> str:
        return f"sites-enabled/{self.name}.{suffix}"

    def _places(self) -> list[_Place]:
        """Return all locations but the root's, numbered, each after those that it lies in."""
        wanted: dict[str, tuple[Path, str, str]] = {}
        for url, one in self.site.paths.items():
            wanted[url] = one, self._upstream_name, f"{self.origin}.paths.{url}"
        for number, (prefix, mount) in enumerate(self.site.mounts.items()):
            upstream = mount.upstream if isinstance(mount.upstream, str) else f"{self.key}.{number}"
            origin = mount.origin or f"{self.origin}.mounts.{prefix}"
            wanted[prefix] = mount, upstream, origin
            for url, one in mount.paths.items():
                wanted[url] = one, upstream, f"{origin}.paths.{url}"
        found: list[_Place] = []
        for number, url in enumerate(sorted(wanted)):
            found.append(_Place(f"{self.name}.{number}", url, *wanted[url], _nearest_above(url, found)))
        return found

    @property
    def _upstream_name(self) -> str:
        return self.site.upstream if isinstance(self.site.upstream, str) else self.key

    def _upstreams(self, mounts: Sequence[tuple[_Place, Mount]]) -> Iterator[dict[str, Any]]:
        """Yield what the template takes of the upstreams that are the site's own."""
        for name, one in [(self.key, self.site.upstream), *((place.upstream, mount.upstream) for place, mount in mounts)]:
            if isinstance(one, Upstream):
                yield _upstream_variables(name, one)

    def _static(self, places: Sequence[_Place]) -> Iterator[dict[str, Any]]:
        """Yield what the template takes of all static files; ``lines`` are those of its location."""
        for one in [*self.site.static, *(one for mount in self.site.mounts.values() for one in mount.static)]:
            above = _nearest_above(one.url, places)
            yield {**dataclasses.asdict(one), "lines": _flat(above.guards) if above else []}

    def _icons(self) -> str:
        """Return the directory of favicon.ico and robots.txt; nothing without static files."""
        if not self.site.static:
            return ""
        first = self.site.static[0]
        return f"{first.live}/release/public{first.url}" if first.live else str(first.path)

    def _variables(self) -> dict[str, Any]:
        site, places = self.site, self._places()
        mounts = [(place, place.one) for place in places if isinstance(place.one, Mount)]
        signs = {url: mount.maintenance_file for url, mount in site.mounts.items() if mount.maintenance_file}
        return {
            **dataclasses.asdict(site),
            "listen": list(self._listen()),
            # To no name at all, and by a regular expression, to which nginx prefers every name proper, to any.
            "names": site.domains or ['""', "~^"],
            "realm": site.domains[0] if site.domains else self.key,
            "upstream": self._upstream_name,
            "upstreams": list(self._upstreams(mounts)),
            "zones": [*_zones(site.limits, self.name), *(zone for place in places for zone in place.zones)],
            "guards": [*_flat(_limit_lines(site.limits, self.name)), *_access(site.allow, site.deny)],
            "paths": [
                {"location": "/", "lines": [], "extra": "", "events": "@events", "upstream": self._upstream_name},
                *map(self._path_variables, places),
            ],
            "static": list(self._static(places)),
            "icons": self._icons(),
            "headers": list(self._headers()),
            "password_file": self._path("htpasswd") if site.basic_auth else "",
            "page": f"{DIRECTORY}/{self._path('html')}",
            "maintained": self._variable("maintained"),
            "sign": self._variable("sign") if signs else site.maintenance.file,
            # The first that matches counts.
            "signs": [{"pattern": f"~^{re.escape(url)}", "file": signs[url]} for url in sorted(signs, key=len, reverse=True)],
            "challenge_url": CHALLENGE_URL,
            "claims": CLAIMS,
            "health_url": HEALTH_URL,
            "balancers": list(self.addresses.trusted_proxies),
            "extra": self._path("extra") if site.extra else "",
        }

    def _path_variables(self, place: _Place) -> dict[str, Any]:
        return {
            "location": f"^~ {place.url}" if place.url.endswith("/") else f"= {place.url}",
            "lines": _flat(place.settings),
            "extra": place.one.extra and _snippet(place),
            # Where requests for events go on: proxy_buffering takes no variable.
            "events": f"@events{place.name.removeprefix(self.name)}" if place.buffering is None else "",
            "upstream": place.upstream,
        }

    def _variable(self, word: str) -> str:
        """Return the name of a variable that no other site has: what may not be in one becomes its number."""
        escaped = (re.sub(r"[^a-z0-9]", lambda found: f"_{ord(found[0]):x}", part) for part in self.name.split("."))
        return f"$funnel_{'__'.join(escaped)}__{word}"

    def _listen(self) -> Iterator[str]:
        site, addresses = self.site, self.addresses
        proxy = " proxy_protocol" if addresses.proxy_protocol else ""
        yield from (f"{address}{proxy}" for address in addresses.listen if not site.listen or address in site.listen)
        if site.tls:
            yield from (f"{address} ssl{proxy}" for address in addresses.listen_tls if not site.listen or address in site.listen)

    def _headers(self) -> Iterator[dict[str, str]]:
        """Yield the headers: each is made by a map, which is empty when the answer has one of that name by then."""
        site = self.site
        own = {name.lower() for name in site.headers}
        wanted = {name: value for name, value in HEADERS.items() if name.lower() not in own} | site.headers
        for name, value in wanted.items():
            if value:
                yield self._header(name, value, f"$sent_http_{_word(name)}", '""')
        if site.tls and site.tls.hsts and "strict-transport-security" not in own:
            name = "Strict-Transport-Security"
            yield self._header(name, f"max-age={site.tls.hsts}", f"$funnel_scheme$sent_http_{_word(name)}", "https")

    def _header(self, name: str, value: str, source: str, match: str) -> dict[str, str]:
        return {"name": name, "value": value, "source": source, "match": match, "variable": self._variable(_word(name))}


def _nearest_above(url: str, places: Iterable[_Place]) -> _Place | None:
    """Return the smallest of ``places`` that an address lies in: one without / at its end has nothing below it."""
    around = [place for place in places if place.url.endswith("/") and url.startswith(place.url)]
    return max(around, key=lambda place: len(place.url), default=None)


def _snippet(place: _Place) -> str:
    """Return the file of a place's own lines, below nginx's directory."""
    return f"sites-enabled/{place.name}.extra"


def _zones(limits: Limits, name: str) -> list[str]:
    """Return the lines that define the zones of limits."""
    zones = []
    if limits.requests is not None:
        zones.append(f"limit_req_zone $funnel_client zone={name}.requests:10m rate={limits.requests}r/s;")
    if limits.connections is not None:
        zones.append(f"limit_conn_zone $funnel_client zone={name}.connections:10m;")
    return zones


def _limit_lines(limits: Limits, name: str) -> dict[str, list[str]]:
    """Return the lines that apply limits, by what they limit."""
    lines = {}
    if limits.requests is not None:
        burst = limits.requests if limits.burst is None else limits.burst
        lines["requests"] = [f"limit_req zone={name}.requests{f' burst={burst} nodelay' if burst else ''};"]
    if limits.connections is not None:
        lines["connections"] = [f"limit_conn {name}.connections {limits.connections};"]
    return lines


def _flat(lines: Mapping[str, Sequence[str]]) -> list[str]:
    return [line for about in lines.values() for line in about]


def _access(allow: Sequence[str], deny: Sequence[str]) -> list[str]:
    """Return the lines that let in who may come in; nginx stops at the first one that is about a client."""
    lines = [*(f"deny {network};" for network in deny), *(f"allow {network};" for network in allow)]
    return [*lines, "deny all;"] if allow else lines


def _word(header: str) -> str:
    """Return a header's name as it stands in the names of nginx's variables."""
    return header.lower().replace("-", "_")


def _upstream_variables(name: str, upstream: Upstream) -> dict[str, Any]:
    servers = [Server(address=one) if isinstance(one, str) else one for one in upstream.servers]
    lines = [server_line(one.address, one.weight, backup=one.backup) for one in servers]
    variables = {**dataclasses.asdict(upstream), "name": name, "lines": lines}
    if upstream.include:
        # As a mask, because nginx does not mind one that matches nothing: an upstream that is not there yet must not
        # keep nginx from starting and serving the other sites.
        variables["include"] = f"{upstream.include[:-1]}[{upstream.include[-1]}]"
    return variables
