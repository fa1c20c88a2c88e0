"""Conflicts of the apps with what else a host serves: ports, sites, and apps that the inventory does not contain."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.listeners import Listener, port_conflicts
from ansible_collections.funnel.tornado.plugins.module_utils.sites.existing_nginx import ExistingNginx
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx_config import ServerBlock, normalize_address
from ansible_collections.funnel.tornado.plugins.module_utils.system.existing_programs import OTHER, SOCKET, ExistingPrograms
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import masked_problem
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import APP_SET

#: Names of a server that is meant for requests without a name of their own.
_CATCH_ALL = frozenset({"", "_"})


@dataclass(frozen=True)
class Others:
    """What a host serves besides the apps of the inventory.

    ``live`` are the apps on the host, and ``users`` the ids of their users. ``balanced`` are the backends of its HAProxy;
    ``masked`` are services of the collection that the administrator has masked. ``unprivileged_port`` is the first port that
    requires no capability.
    """

    nginx: ExistingNginx
    listeners: Sequence[Listener] = ()
    live: Sequence[str] = ()
    users: Mapping[str, int] = field(default_factory=dict)
    programs: ExistingPrograms = field(default_factory=ExistingPrograms)
    balanced: Sequence[str] = ()
    masked: Sequence[str] = ()
    unprivileged_port: int = 1024


@dataclass(frozen=True)
class Proxy:
    """The reverse proxy of the apps: ``nginx`` or ``haproxy``, and the addresses that it listens on, by variable."""

    name: str
    listen: Mapping[str, Sequence[str]]

    @property
    def addresses(self) -> list[str]:
        """All addresses, in one form."""
        return [normalize_address(address) for addresses in self.listen.values() for address in addresses]


def coexistence_problems(
    apps: Mapping[str, App], others: Others, proxy: Proxy, cpus: int, *, unrestricted: Collection[str] = ()
) -> Iterator[str]:
    """Yield the conflicts of the apps with what else the host serves, with the remedy.

    ``unrestricted`` are the restrictions of supervisord that ``supervisor_hardening_except`` removes.
    """
    yield from _port_problems(apps, others, proxy, cpus)
    if "CapabilityBoundingSet" not in unrestricted:
        yield from _privileged_port_problems(others)
    yield from (masked_problem(name) for name in (proxy.name, "supervisor") if name in others.masked)
    yield from _program_problems(apps, others.programs)
    if proxy.name != "nginx":
        for name in sorted({*others.balanced}.intersection(unlisted(apps, others))):
            yield f"{_unlisted(name)}, and this run would remove it from {proxy.name}; {_cure(name)}"
        return
    if others.nginx.refused:
        yield others.nginx.refused
    yield from _stream_problems(others.nginx.streams, proxy)
    for app in apps.values():
        if place := others.nginx.taken.get(app.name):
            yield f"{VARIABLE}.{app.name}: {place} has an upstream or a zone of this name; rename it"
        if app.prefix is None:
            yield from _name_problems(app, others.nginx.servers, proxy)
    sites = [f"{APP_SET}.{name}" for name in apps]
    mounted = {name for site in sites for name in others.nginx.apps.get(site, ())}
    for name in mounted.intersection(unlisted(apps, others)):
        yield f"{_unlisted(name)} in the site of another app; {_cure(name)}"


def _port_problems(apps: Mapping[str, App], others: Others, proxy: Proxy, cpus: int) -> Iterator[str]:
    listeners: dict[int, list[Listener]] = {}
    for listener in others.listeners:
        listeners.setdefault(listener.port, []).append(listener)
    has_tls = any(app.tls.provider != "off" for app in apps.values())
    for variable, addresses in proxy.listen.items():
        unneeded = variable.endswith("_listen_tls") and not has_tls
        remedy = f"; no app has tls, so {variable}: [] leaves the port to it" if unneeded else ""
        for conflict in port_conflicts(others.listeners, {variable: addresses}, proxy.name):
            yield f"{conflict}{remedy}"
    for app in apps.values():
        for port in app.ports(cpus):
            found = listeners.get(port, ())
            if found and others.users.get(app.name) not in {listener.user for listener in found}:
                yield f"{VARIABLE}.{app.name}.port: port {port} is in use by {found[0]}; choose another, or stop it"


def _privileged_port_problems(others: Others) -> Iterator[str]:
    """Yield the programs of supervisord that could not listen after its next start."""
    cure = "add CapabilityBoundingSet to supervisor_hardening_except"
    restricted = [listener for listener in others.listeners if listener.unit == "supervisor.service"]
    for port, listener in {listener.port: listener for listener in restricted}.items():
        if port < others.unprivileged_port:
            yield f"port {port} is in use by {listener}, which requires the capability CAP_NET_BIND_SERVICE; {cure}"


def _stream_problems(streams: Sequence[ServerBlock], proxy: Proxy) -> Iterator[str]:
    """Yield the addresses at which nginx passes on connections, and so cannot serve HTTP."""
    for variable, addresses in proxy.listen.items():
        wanted = {normalize_address(address) for address in addresses}
        for server in streams:
            for address in sorted(wanted & {listen.address for listen in server.listen}):
                yield f"{variable}: {address} is in use by the stream at {server.place}; choose other addresses in {variable}"


def _program_problems(apps: Mapping[str, App], programs: ExistingPrograms) -> Iterator[str]:
    if programs.other_socket == str(SOCKET) and not programs.managed:
        cure = "choose another file in its [unix_http_server], and restart it"
        yield f"{OTHER} has the socket {SOCKET}, which the supervisord of the apps needs; {cure}"
    for name, file in programs.groups.items():
        app = re.fullmatch(r"(.+)-[ab](?:\..*)?", name)
        if app and app[1] in apps:
            yield f"{VARIABLE}.{app[1]}: {file} has a program {name}, the name of a slot of this app; rename one of them"
    for line in programs.lost:
        cure = (
            "link its files in /etc/supervisor/conf.d, as *.conf" if line.startswith("[include]") else "move it to a file there"
        )
        yield f"/etc/supervisor/supervisord.conf has {line}, but includes only /etc/supervisor/conf.d/*.conf in future; {cure}"


def _name_problems(app: App, servers: Sequence[ServerBlock], proxy: Proxy) -> Iterator[str]:
    """Yield the names that another site of the host serves at the same addresses."""
    for server in servers:
        shared = [listen for listen in server.listen if listen.address in proxy.addresses]
        if not shared:
            continue
        for name in app.all_domains:
            if name in server.names:
                key = "aliases" if name in app.aliases else "domains"
                yield f"{VARIABLE}.{app.name}.{key}: {name} is already served by {server.place}; remove it in one of them"
        if not app.all_domains and ({*server.names} <= _CATCH_ALL or any(listen.default for listen in shared)):
            cure = "set domains, or remove that server"
            yield f"{VARIABLE}.{app.name}.domains: is missing, and {server.place} already serves all other names; {cure}"


def unlisted(apps: Mapping[str, App], others: Others) -> list[str]:
    """Return the apps that are live on the host and not in the inventory."""
    return sorted({*others.live} - apps.keys())


def kept_sites(apps: Mapping[str, App], others: Others) -> list[str]:
    """Return the apps outside the inventory whose sites stay, as no app of the inventory has their names."""
    taken = {name for app in apps.values() if app.prefix is None for name in app.all_domains or [""]}
    own = others.nginx.own
    return [name for name in unlisted(apps, others) if not _names(own.get(f"{APP_SET}.{name}", ())) & taken]


def _names(names: Sequence[str]) -> set[str]:
    """Return the names of a site, with the empty one for the site of all other names."""
    return {"" if name == "~^" else name for name in names}


def unlisted_warnings(apps: Mapping[str, App], others: Others, host: str) -> Iterator[str]:
    """Yield a message about each app that is live on ``host`` and not in the inventory."""
    kept = kept_sites(apps, others)
    for name in unlisted(apps, others):
        then = "it stays as it is" if name in kept else "an app of the inventory takes its domains"
        yield f"{VARIABLE} has no app {name}, which is live on {host}; {then}; run remove.yml -e app={name} to remove it"


def nginx_warnings(nginx: ExistingNginx, proxy: Proxy, host: str) -> Iterator[str]:
    """Yield the settings that are not kept, addresses on which it does not listen, and why nginx refuses its configuration."""
    if nginx.ipv6 and (skipped := sorted({*nginx.ipv4_only}.intersection(proxy.addresses))):
        addresses = " and ".join(skipped)
        yield (
            f"{host}: nginx does not listen on {addresses}, because its other sites listen at that port by IPv4 only, and would "
            f"not answer there; add a listen directive for {addresses} to these sites to have all sites and apps there"
        )
    if nginx.replaced:
        yield f"{host}: these lines of nginx.conf are replaced: {'; '.join(nginx.replaced)}; set nginx_* variables instead"
    if nginx.error:
        yield f"{host}: nginx refuses its present configuration: {nginx.error}"


def supervisor_warnings(programs: ExistingPrograms, host: str) -> Iterator[str]:
    """Yield warnings about programs of others that supervisord will restrict, and about another supervisord."""
    if programs.other_socket is not None:
        yield (
            f"{host}: supervisorctl controls the supervisord of {OTHER}; for that of the apps, use "
            "supervisorctl -c /etc/supervisor/supervisord.conf"
        )
    if programs.groups and not programs.managed:
        names = ", ".join(sorted(programs.groups))
        yield (
            f"{host}: from its next start, supervisord runs {names} without the privileges that apps do not need, such as sudo; "
            "add what they need to supervisor_hardening_except"
        )


def _unlisted(name: str) -> str:
    return f"{VARIABLE} has no app {name}, which is live on this host"


def _cure(name: str) -> str:
    return f"add its entry, or run remove.yml -e app={name}"
