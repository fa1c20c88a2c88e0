"""The site model: sites and upstreams of the nginx reverse proxy, with type, bounds, default and documentation of each key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import DOMAIN, Doc, Hidden, Network, Pattern, Range

NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a name of letters, digits, _ and -")

_PATH = Pattern(r"/[^\s;{}'\"\\$*?\[\]]*", "an absolute path, without blanks, quotes and any of ; { } $ * ? [ ]")
_ADDRESS = Pattern(r"unix:/[^\s;{}'\"\\$]+|[^\s;{}'\"\\$/]+", 'host:port, or a socket such as "unix:/run/shop/0.sock"')
HOST_PORT = Pattern(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", "host:port, an IPv6 address in [ ]")
_SIZE = Pattern(r"[1-9][0-9]*[kmg]?", 'a size, such as "50m"')
_SECONDS = Range(1, 86400)

_BETWEEN_SLASHES = r"/((?!\.{1,2}/)[A-Za-z0-9._~-]+/)+"
STATIC_URL = Pattern(_BETWEEN_SLASHES, 'a path between slashes, such as "/static/"')
MOUNT_URL = Pattern(_BETWEEN_SLASHES, 'a path between slashes, such as "/api/"')

#: Hashes that crypt(3) of Debian accepts: SHA-256 and SHA-512, bcrypt, yescrypt, and the MD5 of htpasswd.
_HASH = Pattern(
    r"\$(5|6|y|2[aby]|apr1)\$[^\s:]+", "a hash, as openssl passwd -6 or htpasswd -B prints it; never the password itself"
)

#: Path of ACME http-01 challenges. It stays reachable during maintenance and is exempt from redirects and access control.
CHALLENGE_URL = "/.well-known/acme-challenge/"

#: Files at the top of a site that its first directory of static files holds.
ICON_URLS = ("/favicon.ico", "/robots.txt")

#: Suffix of the name of an upstream or backend that consists of ACME clients.
CHALLENGES = ".challenges"

#: Prefix of the pages that the role serves itself.
OWN_URL = "/.funnel/"

#: Path of the health check that load balancers send to a site. That of an app is below it, by the name of the app, in the app's
#: site and at a host name that no site can have: load balancers reach it whatever the domains of the app are.
HEALTH_URL = f"{OWN_URL}health"
HEALTH_HOST = "funnel.invalid"

#: Response headers of an app's health check: whether the app is healthy, and the release that serves.
HEALTH_HEADER, HEALTHY = "X-Funnel-Health", "healthy"
RELEASE_HEADER = "X-Funnel-Release"

#: Request headers that some server or framework trusts for the client address, scheme, host or path. No proxy of this collection
#: sets them, so their content always comes from the client; the reverse proxies remove them.
UNTRUSTED_HEADERS = (
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

#: Response headers added by default: https://owasp.org/www-project-secure-headers/.
DEFAULT_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}


#: How a client stays with one server (session affinity).
Affinity = Literal["none", "cookie", "address"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of an upstream."""

    address: Annotated[str, Doc("C(host:port), or C(unix:) and the path of a socket."), _ADDRESS]
    weight: Annotated[int, Doc("Share of requests relative to the other servers."), Range(1, 1000)] = 1
    backup: Annotated[bool, Doc("Whether the server gets requests only when all others are unreachable.")] = False


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A group of servers that nginx proxies requests to."""

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
        Literal["least_conn", "round_robin", "ip_hash", "random"], Doc("Load balancing method that selects a server per request.")
    ] = "least_conn"
    affinity: Annotated[
        Affinity,
        Doc(
            "How a client stays with one server, instead of C(balance): C(cookie) by a cookie that nginx sets, C(address) by its "
            "IP address. If that server is unreachable, the client gets another."
        ),
    ] = "none"
    keepalive: Annotated[int, Doc("Maximum number of idle connections that each worker keeps."), Range(1, 10_000)] = 256
    keepalive_timeout: Annotated[int, Doc("Seconds that an idle connection is kept."), _SECONDS] = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Rate and connection limits per client address, or IPv6 network (/64); requests above them get 429."""

    requests: Annotated[int | None, Doc("Requests per second."), Range(1, 100_000)] = None
    burst: Annotated[
        int | None,
        Doc("Requests above the rate that are still served without delay; defaults to the value of C(requests)."),
        Range(0, 100_000),
    ] = None
    connections: Annotated[int | None, Doc("Connections with an in-flight request, websockets included."), Range(1, 100_000)] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """Options that differ for one path of a site."""

    read_timeout: Annotated[int | None, Doc("Overrides the site's C(read_timeout)."), _SECONDS] = None
    buffering: Annotated[
        bool | None,
        Doc(
            "Whether nginx buffers responses and whole request bodies before it passes them on. If unset, it buffers all but "
            "the event streams of a browser's EventSource."
        ),
    ] = None
    upload_size: Annotated[str | None, Doc("Overrides the site's C(upload_size)."), _SIZE] = None
    limits: Annotated[Limits, Doc("Limits per client address; each one overrides the site's.")] = field(default_factory=Limits)
    allow: Annotated[list[str], Doc("Replaces the site's C(allow) and C(deny)."), Network()] = field(default_factory=list)
    deny: Annotated[list[str], Doc("Replaces the site's C(allow) and C(deny)."), Network()] = field(default_factory=list)
    extra: Annotated[
        str,
        Doc(
            "Lines for the location block. C(proxy_set_header) adds to the request headers that the site sends, C(add_header) "
            "replaces the site's response header of that name. C(location) or C(alias) requires C(buffering) to be set."
        ),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class Maintenance:
    """The response of a site in maintenance mode."""

    page: Annotated[str, Doc("HTML of the maintenance page; a plain default page if empty.")] = ""
    retry_after: Annotated[int, Doc("Seconds after which clients should retry (C(Retry-After))."), _SECONDS] = 300
    allow: Annotated[list[str], Doc("Addresses and networks that still reach the app."), Network()] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Domains:
    """The domain names of a site of nginx, an app or a HAProxy backend."""

    domains: Annotated[
        list[str],
        Doc("Domain names of the site. Without any, it is the default site, which accepts all names that no other site has."),
        DOMAIN,
    ] = field(default_factory=list)
    aliases: Annotated[list[str], Doc("Domain names that redirect to the first of C(domains)."), DOMAIN] = field(
        default_factory=list
    )


@dataclass(frozen=True, kw_only=True)
class SiteOptions(Domains):
    """The options that a site of the nginx role and an app share."""

    upload_size: Annotated[str, Doc("Maximum size of a request body, for nginx and the runner."), _SIZE] = "50m"
    read_timeout: Annotated[
        int, Doc("Seconds without data from the app until the connection is closed, websockets included."), _SECONDS
    ] = 200
    paths: Annotated[
        dict[str, PathOptions],
        Doc(
            "Options by path, such as C({/live/: {read_timeout: 3600}}). A path that ends with / covers itself without the / and "
            "all below it, any other is exact. It inherits unset options, except C(extra), from the nearest path around it."
        ),
    ] = field(default_factory=dict)
    headers: Annotated[
        dict[str, str],
        Doc(
            "Headers added to every response that lacks them. X-Content-Type-Options, X-Frame-Options and Referrer-Policy are "
            "added by default; an empty value disables one."
        ),
        Pattern(r'[^"\\\n]*', "one line without double quotes and backslashes"),
    ] = field(default_factory=dict)
    allow: Annotated[list[str], Doc("Addresses and networks that may access the site; all if empty."), Network()] = field(
        default_factory=list
    )
    deny: Annotated[list[str], Doc("Addresses and networks that are denied access, even if C(allow) has them."), Network()] = (
        field(default_factory=list)
    )
    basic_auth: Annotated[
        dict[str, str],
        Doc("Users of HTTP basic authentication: password hashes by user name, as C(openssl passwd -6) prints them."),
        _HASH,
        Hidden,
    ] = field(default_factory=dict)
    limits: Annotated[
        Limits, Doc("Rate and connection limits per client address, or IPv6 network (/64); requests above them get 429.")
    ] = field(default_factory=Limits)
    maintenance: Annotated[Maintenance, Doc("The response in maintenance mode.")] = field(default_factory=Maintenance)
    extra: Annotated[
        str,
        Doc(
            "Lines for the site's server block, validated by nginx before they take effect. A C(location) in it with a "
            "C(proxy_set_header) or C(add_header) inherits none of the site's headers and must repeat them."
        ),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class Static:
    """A directory of static files that nginx serves."""

    EXACTLY_ONE: ClassVar = ("path", "live")

    url: Annotated[str, Doc("URL prefix of the files."), STATIC_URL]
    path: Annotated[str | None, Doc("Directory of the files on the host."), _PATH] = None
    live: Annotated[
        str | None,
        Doc(
            "Link that each release moves. Below it, C(release/public) has the files by full URL path, C(release/versions) by "
            "content hash, and C(before) has both for the previous release."
        ),
        _PATH,
    ] = None
    untrusted: Annotated[
        str | None,
        Doc(
            "Directory of root above a C(path) that an app writes, such as uploads: nginx follows no links below it, and "
            "browsers run no scripts of the files."
        ),
        _PATH,
    ] = None


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The certificate of a site and its HTTPS options."""

    certificate: Annotated[str, Doc("PEM file on the host: the site's certificate and its chain."), _PATH]
    key: Annotated[str, Doc("PEM file on the host: the private key."), _PATH]
    redirect: Annotated[bool, Doc("Whether HTTP requests are redirected to HTTPS.")] = True
    hsts: Annotated[
        int, Doc("Seconds that browsers must use HTTPS only (C(Strict-Transport-Security))."), Range(0, 126_144_000)
    ] = 0
    acme_clients: Annotated[
        list[str],
        Doc(
            "Addresses, C(host:port), of ACME clients, one of which answers each http-01 challenge for the site: that of this "
            "host, C(127.0.0.1:402) with the role certificates, then those of other hosts with the same names."
        ),
        HOST_PORT,
    ] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SiteMaintenance(Maintenance):
    """Maintenance mode of a site, switched by a file."""

    file: Annotated[
        str | None, Doc("File that puts the site in maintenance mode while it exists; without it there is no such mode."), _PATH
    ] = None


@dataclass(frozen=True, kw_only=True)
class Served:
    """The app that a site or a mount serves."""

    app: Annotated[
        str | None,
        Doc("Name of the app whose live release is served; C(/.funnel/health/<app>) is the health check of that release."),
        NAME,
    ] = None
    options: Annotated[
        str,
        Doc("Text with the options that belong to the release of C(app), which a rollback reads from a file beside the site."),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class Mount(PathOptions, Served):
    """Another upstream below a path of a site; limits and access control are inherited from the path around it."""

    upstream: Annotated[str | Upstream, Doc("Name of a shared upstream, or a dict with the mount's own."), NAME]
    paths: Annotated[
        dict[str, PathOptions], Doc("Options by full path below the mount; unset options are inherited from the mount.")
    ] = field(default_factory=dict)
    static: Annotated[list[Static], Doc("Directories of static files below the mount that nginx serves.")] = field(
        default_factory=list
    )
    maintenance_file: Annotated[
        str | None,
        Doc("File that puts the mount in maintenance mode while it exists, in place of the site's file."),
        _PATH,
    ] = None
    origin: Annotated[str, Doc("Variable that the mount was derived from, for error messages.")] = ""


@dataclass(frozen=True, kw_only=True)
class Site(SiteOptions, Served):
    """A site: domain names, the upstream behind them, and how nginx proxies to it."""

    upstream: Annotated[str | Upstream, Doc("Name of a shared upstream, or a dict with the site's own."), NAME]
    listen: Annotated[list[str], Doc("Subset of the role's listen addresses; all of them if empty.")] = field(
        default_factory=list
    )
    tls: Annotated[Tls | None, Doc("The certificate; without it the site is HTTP only.")] = None
    health: Annotated[
        str | None,
        Doc("Path of the upstream that C(/.funnel/health) proxies to, for health checks from C(nginx_trusted_proxies)."),
        _PATH,
    ] = None
    mounts: Annotated[dict[str, Mount], Doc("Other upstreams by path prefix; the longest prefix wins.")] = field(
        default_factory=dict
    )
    websocket: Annotated[bool, Doc("Whether websocket upgrades are proxied.")] = True
    static: Annotated[
        list[Static],
        Doc(
            "Directories of static files that nginx serves; the first without C(untrusted) also holds favicon.ico and robots.txt."
        ),
    ] = field(default_factory=list)
    maintenance: Annotated[SiteMaintenance, Doc("The response in maintenance mode.")] = field(default_factory=SiteMaintenance)
    origin: Annotated[str, Doc("Variable that the site was derived from, for error messages.")] = ""


@dataclass(frozen=True)
class NginxOptions:
    """Listen addresses and trusted proxies of nginx: the role variables that every site depends on."""

    listen: Sequence[str]
    listen_tls: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()
    proxy_protocol: bool = False


def size_in_bytes(size: str) -> int:
    """Return a size such as ``50m`` in bytes."""
    return int(size.rstrip("kmg")) << {"k": 10, "m": 20, "g": 30}.get(size[-1], 0)
