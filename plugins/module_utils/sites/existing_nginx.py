"""The nginx of a host as the collection found it: the lines of nginx.conf to keep, and the servers of others."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx import DIRECTORY, PRIVATE_MODE, SITES
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx_config import (
    Directive,
    Listen,
    NginxSyntaxError,
    ServerBlock,
    block_directives,
    dumped_files,
    error_text,
    parse,
    servers,
)

NGINX = Path(DIRECTORY)

#: Directory of the default site of the package, and what the package installs there.
PAGES, _PACKAGED_PAGES = Path("/var/www/html"), frozenset({"index.nginx-debian.html"})

#: The welcome page of nginx.org's package, and its user, which www-data replaces.
_VENDOR_SITE, _VENDOR_USER = "conf.d/default.conf", "nginx"

#: Directory of the sites of earlier versions of the collection.
EARLIER_SITES = "sites-enabled"

#: The kept lines of nginx.conf outside and inside its http block.
KEPT_MAIN, KEPT_HTTP = "funnel.main.conf", "funnel.http.conf"

#: First line of the files that the collection renders.
MANAGED = "# Ansible managed"

#: What identifies a nginx.conf of the collection.
_OWN = re.compile(r"^\s*log_format funnel ", re.MULTILINE)

#: A path of the live release of an app.
_LIVE = re.compile(r"/srv/([a-z][\w-]*)/live/")

#: Directives of the packages of Debian, Ubuntu and nginx.org, which the collection's nginx.conf replaces.
_PACKAGED = frozenset(
    {
        "user www-data",
        "user nginx",
        "worker_processes auto",
        "worker_cpu_affinity auto",
        "pid /run/nginx.pid",
        "pid /var/run/nginx.pid",
        "error_log /var/log/nginx/error.log",
        "error_log /var/log/nginx/error.log notice",
        "error_log /var/log/nginx/error.log warn",
        "include /etc/nginx/modules-enabled/*.conf",
        "worker_connections 768",
        "worker_connections 1024",
        "sendfile on",
        "tcp_nopush on",
        "tcp_nodelay on",
        "keepalive_timeout 65",
        "types_hash_max_size 2048",
        "server_tokens build",
        "server_tokens off",
        "include /etc/nginx/mime.types",
        "default_type application/octet-stream",
        "ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3",
        "ssl_protocols TLSv1.2 TLSv1.3",
        "ssl_prefer_server_ciphers on",
        "ssl_prefer_server_ciphers off",
        "access_log /var/log/nginx/access.log",
        "access_log /var/log/nginx/access.log main",
        "gzip on",
        "include /etc/nginx/conf.d/*.conf",
        "include /etc/nginx/sites-enabled/*",
        "include /etc/nginx/sites-enabled/*.conf",
    }
)

#: Directives outside the http block that only the collection's nginx.conf sets.
_OWN_MAIN = frozenset({"daemon", "error_log", "events", "pcre_jit", "user", "worker_processes", "worker_rlimit_nofile"})

#: Directives that sites of apps depend on.
_OWN_HTTP = frozenset(
    {
        "absolute_redirect",
        "open_file_cache",
        "open_file_cache_valid",
        "server_names_hash_bucket_size",
        "variables_hash_bucket_size",
        "variables_hash_max_size",
    }
)

#: Directives that may occur several times in the http block; of any other, the host's replaces the collection's.
_REPEATABLE = frozenset({"access_log", "error_log", "include", "log_format", "set_real_ip_from"})


@dataclass(frozen=True)
class ExistingNginx:
    """What the role needs to know of the nginx of a host.

    ``kept`` are the files with the kept lines of nginx.conf, in the form of the module file_set; ``names`` are the directives
    in them, and in files that the host includes beside them, that replace those of the collection; ``replaced`` are the
    directives that are not kept. ``obsolete`` are files to remove: sites of earlier versions of the collection, and the welcome
    page. ``servers`` are those of others, and ``streams`` those outside HTTP; ``taken`` are the places of upstreams and shared
    memory zones of others by name. ``own`` are the names of the collection's sites by file, and ``apps`` the apps that each of
    them serves. ``ipv4_only`` are the addresses of IPv6 at whose ports others serve by IPv4 only: clients of names with both
    addresses, such as localhost, would no longer reach their sites if nginx listened there. ``refused`` is the reason why the
    configuration cannot be kept; ``error`` is that of nginx.
    """

    kept: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: Sequence[str] = ()
    replaced: Sequence[str] = ()
    obsolete: Sequence[str] = ()
    servers: Sequence[ServerBlock] = ()
    streams: Sequence[ServerBlock] = ()
    taken: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)
    apps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ipv6: bool = True
    ipv4_only: Sequence[str] = ()
    refused: str = ""
    error: str = ""

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ExistingNginx:
        """Return the properties that `to_data` has encoded."""
        blocks = {
            key: [
                ServerBlock(**{**server, "listen": [Listen(**listen) for listen in server["listen"]]})
                for server in data.get(key, ())
            ]
            for key in ("servers", "streams")
        }
        return cls(**{**data, **blocks})

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON-serializable data."""
        return asdict(self)


def existing_nginx(
    root: Path = NGINX,
    *,
    pages: Path = PAGES,
    files: Mapping[str, str] | None = None,
) -> ExistingNginx:
    """Return the properties of the nginx of this host, without changes. ``files`` are by default those that nginx reads."""
    found = _split(root)
    files, error = (files, "") if files is not None else _dump(root)
    main = str(root / "nginx.conf")
    try:
        http, stream = (list(block_directives(files, main, name)) for name in ("http", "stream"))
    except NginxSyntaxError as problem:
        http, stream, error = [], [], error or str(problem)
    earlier = list(_earlier_sites(root))
    sites = {str(root / SITES), *(str(root / path) for path in earlier)}
    own: dict[str, list[str]] = {}
    others = []
    for file, directive in http:
        if str(Path(file).parent) in sites or file in sites:
            for block in servers([(file, directive)]):
                own.setdefault(Path(file).name.removesuffix(".conf"), []).extend(block.names)
        elif not (file == main and found.managed):
            others.append((file, directive))
    beside = [(file, directive) for file, directive in others if file != main]
    blocks = [block for block in servers(others) if block.file not in {str(root / path) for path in earlier}]
    obsolete = [*earlier, *_welcome_page(root, blocks, pages)]
    return ExistingNginx(
        kept={name: {"content": text, "mode": PRIVATE_MODE} for name, text in found.kept.items()},
        names=sorted({*found.names, *_replacing(directive for _file, directive in beside)}),
        replaced=found.replaced,
        obsolete=obsolete,
        servers=[block for block in blocks if block.file not in {str(root / path) for path in obsolete}],
        streams=list(servers(stream)),
        taken={name: f"{file}:{each.line}" for file, each in others for name in _shared_names(each)},
        own=own,
        apps={
            Path(file).name.removesuffix(".conf"): sorted({*_LIVE.findall(text)})
            for file, text in files.items()
            if str(Path(file).parent) in sites or file in sites
        },
        ipv6=socket.has_dualstack_ipv6(),
        ipv4_only=_ipv4_only(blocks, servers(http)),
        refused=found.refused
        or (found.vendor if error or not all(_is_welcome_page(root, block) for block in blocks) else "")
        or "; ".join(_unusable(beside)),
        error=error,
    )


@dataclass(frozen=True)
class _Split:
    managed: bool = True
    kept: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    replaced: Sequence[str] = ()
    refused: str = ""
    vendor: str = ""  # why the user of nginx.org's package cannot be kept, if anything is served but the welcome page


def _split(root: Path) -> _Split:
    """Return the lines of nginx.conf to keep, or those that an earlier run has kept."""
    path = root / "nginx.conf"
    text = _read(path)
    kept = {name: content for name in (KEPT_MAIN, KEPT_HTTP) if (content := _read(root / name))}
    try:
        if not text or _OWN.search(text):
            return _Split(managed=True, kept=kept, names=_replacing(parse(kept.get(KEPT_HTTP, ""))))
        return split(parse(text))
    except NginxSyntaxError as error:
        return _Split(managed=False, refused=f"{path} cannot be parsed: {error}; correct it")


def split(directives: Sequence[Directive]) -> _Split:
    """Return the lines of a nginx.conf to keep, and those that the collection replaces."""
    main: list[Directive] = []
    http: list[Directive] = []
    replaced: list[Directive] = []
    vendor = ""
    for directive in directives:
        if directive.name == "user" and directive.arguments[:1] == (_VENDOR_USER,):
            vendor = _other_user(directive)
        elif directive.name == "user" and directive.arguments[:1] != ("www-data",):
            return _Split(managed=False, refused=_other_user(directive))
        if directive.name in {"http", "events"}:
            for inner in directive.block or ():
                if _is_custom(inner):
                    own = directive.name == "events" or inner.name in _OWN_HTTP or _is_access_log(inner)
                    (replaced if own else http).append(inner)
        elif _is_custom(directive):
            (replaced if directive.name in _OWN_MAIN else main).append(directive)
    files = {KEPT_MAIN: main, KEPT_HTTP: http}
    return _Split(
        managed=False,
        kept={name: _kept_text(lines) for name, lines in files.items() if lines},
        names=_replacing(http),
        replaced=[directive.normalized for directive in replaced],
        vendor=vendor,
    )


def _other_user(directive: Directive) -> str:
    """Return why nginx cannot keep its user."""
    refused = f"nginx runs as {' '.join(directive.arguments)}, but the sockets of apps are for www-data"
    cure = "make what it serves readable for www-data, and set user www-data"
    return f"{NGINX}/nginx.conf:{directive.line}: {refused}; {cure}"


def _is_welcome_page(root: Path, block: ServerBlock) -> bool:
    """Return whether a server is the unchanged one of nginx.org's package, whose files are readable for everybody."""
    site = root / _VENDOR_SITE
    return block.file == str(site) and _is_packaged(site)


def _ipv4_only(others: Iterable[ServerBlock], current: Iterable[ServerBlock]) -> list[str]:
    """Return the addresses of IPv6 at whose ports ``others`` listen, while no ``current`` server listens there."""
    listened = {listen.address for block in current for listen in block.listen}
    six = {address.rpartition(":")[2] for address in listened if address.startswith("[")}
    used = {listen.address for block in others for listen in block.listen if not listen.address.startswith(("[", "unix:"))}
    return sorted(f"[::]:{port}" for port in {address.rpartition(":")[2] for address in used} - six)


def _is_custom(directive: Directive) -> bool:
    """Return whether a directive differs from those of the package; the path of an include may be relative."""
    absolute = [re.sub(r"^(?=[^/])", f"{NGINX}/", directive.arguments[0])] if directive.name == "include" else directive.arguments
    return " ".join([directive.name, *absolute]) not in _PACKAGED


def _is_access_log(directive: Directive) -> bool:
    """Return whether a directive writes the access log, whose format the collection reads."""
    return directive.name == "access_log" and directive.arguments[:1] in [("/var/log/nginx/access.log",), ("off",)]


def _unusable(directives: Iterable[tuple[str, Directive]]) -> Iterator[str]:
    """Yield the directives in files of the host that apps cannot be served with."""
    for file, directive in directives:
        if directive.name in _OWN_HTTP or _is_access_log(directive):
            yield f"{file}:{directive.line}: {directive.normalized} would apply to all apps; remove it, or move it into a server"


def _shared_names(directive: Directive) -> Iterator[str]:
    """Yield the names of an upstream and of shared memory zones, which exist once."""
    if directive.name == "upstream":
        yield from directive.arguments[:1]
        yield from (inner.arguments[0] for inner in directive.block or () if inner.name == "zone" and inner.arguments)
    for argument in directive.arguments:
        yield from re.findall(r"^(?:(?:keys_)?zone=|shared:)([^:]+)", argument)


def _replacing(directives: Iterable[Directive]) -> list[str]:
    """Return the names of the simple directives that replace those of the collection."""
    return sorted({directive.name for directive in directives if directive.block is None and directive.name not in _REPEATABLE})


def _kept_text(directives: Sequence[Directive]) -> str:
    head = "# These lines of the host's own nginx.conf were kept when the collection replaced it. Edit them here.\n"
    return head + "".join(f"{directive.text}\n" for directive in directives)


def _dump(root: Path) -> tuple[Mapping[str, str], str]:
    """Return the configuration files that nginx reads, and the reason why it refuses them."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None or not (root / "nginx.conf").exists():
        return {}, ""
    try:
        tested = run([program, "-T", "-q", "-c", str(root / "nginx.conf")], check=False)
    except CommandError as error:
        return {}, str(error)
    return (dumped_files(tested.output), "") if tested.status == 0 else ({}, error_text(tested.output))


def _earlier_sites(root: Path) -> Iterator[str]:
    """Yield the files of sites that earlier versions of the collection wrote among those of the host."""
    directory = root / EARLIER_SITES
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    for site in (name for name in names if name.endswith(".conf") and not (directory / name).is_symlink()):
        if (text := _read(directory / site)).startswith(MANAGED) and "funnel" in text:
            stem = re.escape(site.removesuffix(".conf"))
            belongs = re.compile(rf"{stem}\.(conf|([0-9]+\.)?extra|htpasswd|html)")
            yield from (f"{EARLIER_SITES}/{name}" for name in names if belongs.fullmatch(name))


def _welcome_page(root: Path, blocks: Sequence[ServerBlock], pages: Path) -> Iterator[str]:
    """Yield the default site of the package, which may be installed later, if all that it serves is the welcome page.

    It stays if it was edited or has other pages, and if the host has other sites: one of them would answer in its place.
    """
    site = root / EARLIER_SITES / "default"
    if os.path.lexists(site):
        if not site.is_symlink() or not _is_packaged(site) or any(block.file != str(site) for block in blocks):
            return
        if pages.is_dir() and not {path.name for path in pages.iterdir()} <= _PACKAGED_PAGES:
            return
    yield f"{EARLIER_SITES}/default"


def _is_packaged(site: Path) -> bool:
    """Return whether a file, or that which a link points to, is as dpkg has installed it."""
    digest = hashlib.md5(_read(site).encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()
    listed = run(["dpkg-query", "--show", "--showformat=${Conffiles}\n", "nginx-common", "nginx"], check=False).output
    return digest in re.findall(rf"^ {re.escape(str(site.resolve()))} (\w+)", listed, re.MULTILINE)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return ""
