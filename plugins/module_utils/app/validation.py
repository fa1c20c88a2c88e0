"""Parsing and validation of ``tornado_apps``: the rules within an app, between apps, and between apps and a host."""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, Tls, certificate_requests, site_owner
from ansible_collections.funnel.tornado.plugins.module_utils.app.program import PROCESS_TYPE, Build, Health, Hooks, Run
from ansible_collections.funnel.tornado.plugins.module_utils.app.shared import shared_problems
from ansible_collections.funnel.tornado.plugins.module_utils.app.source import Source
from ansible_collections.funnel.tornado.plugins.module_utils.backing.bindings import service_problems
from ansible_collections.funnel.tornado.plugins.module_utils.core import status_codes
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    InvalidDataError,
    InvalidKeyError,
    closest_match,
    parse,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.validation import (
    SitePart,
    domain_conflicts,
    is_reserved,
    overlap_problems,
    part_problems,
    site_problems,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import is_covered, request_problems

#: Name of an app, and also of its user, its directories and its supervisord group.
APP_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")

#: Names reserved for the collection's own services, including those that a host may get later.
RESERVED_NAMES = frozenset({"etcd", "fleet", "git", "haproxy", "keepalived", "mongodb", "nginx", "supervisor"})

ENV_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
VARIABLE_RULE = "a variable name must consist of letters, digits and _, and must not begin with a digit"

#: Environment variables that the build itself sets.
BUILD_VARIABLES = frozenset({"HOME", "LANG", "PATH", "PYTHONPATH", "USER", "VIRTUAL_ENV", "UV_CACHE_DIR", "UV_LINK_MODE"})

#: Placeholders in a command, which the launcher replaces.
PLACEHOLDERS = ("port", "process", "socket")

#: Keys of a source that are valid for some kinds of it only.
SOURCE_KEYS = {
    "version": ("git", "package"),
    "checksum": ("archive",),
    "requirements": ("package",),
    "subdirectory": ("git", "push", "archive"),
    "deploy_key": ("git",),
    "host_key": ("git",),
    "keys": ("push",),
}

#: Keys of a site as a whole. An app with a prefix shares the site of another app, whose entry sets them.
SERVER_KEYS = ("aliases", "balance", "basic_auth", "headers", "maintenance", "tls")


#: Bytes of memory that a process does not share with others, if nothing is known of the app.
PROCESS_MEMORY = 24 << 20


@dataclass(frozen=True)
class HostFacts:
    """The properties of a host that apps are validated against.

    ``open_files`` is the highest limit that a process can get; ``taken_names`` are users and directories that do not belong to
    an app; ``unavailable_packages`` are those that no package source of the host has; ``balanced`` is whether load balancers
    distribute requests to several hosts.
    """

    cpus: int
    open_files: int
    taken_names: frozenset[str] = frozenset()
    unavailable_packages: frozenset[str] = frozenset()
    balanced: bool = False


def load(entries: object, *, complete: bool = True) -> dict[str, App]:
    """Parse and validate ``entries`` of ``tornado_apps``; return the apps by name.

    :arg complete: whether ``entries`` contains every app; if not, the rules between apps are skipped.
    :raises InvalidDataError: listing every mistake in all entries, with the apps whose keys are valid.
    """
    if not isinstance(entries, Mapping):
        raise InvalidDataError([f"{VARIABLE}: must be a dict of apps by name; found {type(entries).__name__}"])
    problems: list[str] = []
    apps: dict[str, App] = {}
    for name, entry in entries.items():
        path = f"{VARIABLE}.{name}"
        if problem := name_problem(name, path):
            problems.append(problem)
        elif name in RESERVED_NAMES:
            problems.append(f"{path}: the name {name} is reserved for a service of this collection; choose another")
        app, mistakes = _parse_app(str(name), entry, path)
        problems.extend(mistakes)
        if app is not None:
            apps[app.name] = app
    if complete:
        problems.extend(domain_conflicts((f"{VARIABLE}.{app.name}", app) for app in apps.values() if app.prefix is None))
        if len(apps) == len(entries):  # otherwise the site's owner may be an app that failed to parse
            problems.extend(_prefix_problems(apps))
            problems.extend(_dependency_problems(apps))
    if problems:
        raise InvalidDataError(problems, apps)
    return apps


def _parse_app(name: str, entry: object, path: str) -> tuple[App | None, list[str]]:
    """Return the app of an entry and its problems; no app if a key is invalid, but also the problems between the valid keys."""
    try:
        app = parse(App, entry, path, name=name)
    except InvalidDataError as error:
        between = _app_problems(error.partial, path) if isinstance(error.partial, App) else ()
        return None, [*error.problems, *between]
    return app, list(_app_problems(app, path))


def name_problem(name: object, path: str = "") -> str:
    """Return why ``name``, found at ``path``, is not a valid app name; an empty string if it is valid."""
    if APP_NAME.fullmatch(str(name)):
        return ""
    return f"{path or name}: an app name must be a lowercase letter followed by up to 30 of a-z 0-9 _ -"


def _app_problems(app: App, path: str) -> Iterator[str]:
    """Yield the problems between the keys of one app. A rule ends where it reads an invalid key, which is reported already."""
    for rule in RULES:
        with contextlib.suppress(InvalidKeyError):
            yield from rule(app, path)


def _prefix_problem(app: App, path: str) -> Iterator[str]:
    if app.prefix is not None and is_reserved(app.prefix):
        yield f"{path}.prefix: {app.prefix} is reserved for the site itself; choose another path"


def _environment_problems(app: App, path: str) -> Iterator[str]:
    """Yield the environment variables with invalid names, or that the collection sets itself."""
    for key in [*app.env, *app.secrets]:
        where = "secrets" if key in app.secrets else "env"
        if not ENV_VARIABLE.fullmatch(key):
            yield f"{path}.{where}.{key}: {VARIABLE_RULE}"
        elif key == "PORT" or key.startswith("TORNADO_"):
            yield f"{path}.{where}.{key}: is set by the launcher; choose another name"
    for key in sorted(app.env.keys() & app.secrets.keys()):
        yield f"{path}.secrets.{key}: is also in env; keep one of them"
    if any(service_problems(app.services, path)):
        return
    for key in app.services.environment | app.services.secret_environment:
        for where, variables in (("env", app.env), ("secrets", app.secrets)):
            if key in variables:
                yield f"{path}.{where}.{key}: is set by services; remove it here"


def _debug_problems(app: App, path: str) -> Iterator[str]:
    """Yield the conflicts with debug, in which a process reloads when code changes."""
    if app.watch and not app.debug:
        yield f"{path}.watch: requires debug: true"
    if app.source.directory is not None and not app.debug:
        yield f"{path}.source.directory: runs in place, for development only, and requires debug: true; deploy path or git"
    if app.source.directory is not None and app.shared:
        yield f"{path}.shared: requires releases; source.directory, which runs in place, keeps its own files. Remove it"
    if app.debug and app.run.target is None:
        yield f"{path}.debug: requires run.app, run.wsgi or run.asgi, which the collection's runner serves"
    if app.debug and app.processes not in ("auto", 1):
        yield f"{path}.processes: must be 1 with debug, because only a single process can reload; found {app.processes}"


#: The rules between the keys of one app.
RULES: tuple[Callable[[App, str], Iterable[str]], ...] = (
    lambda app, path: _source_problems(app.source, f"{path}.source"),
    lambda app, path: _run_problems(app, f"{path}.run"),
    lambda app, path: _worker_problems(app, f"{path}.workers"),
    _debug_problems,
    lambda app, path: _hook_problems(app.hooks, f"{path}.hooks"),
    lambda app, path: _health_problems(app.health, f"{path}.health"),
    lambda app, path: _tls_problems(app, f"{path}.tls"),
    lambda app, path: shared_problems(app.shared, app.static.path if app.static else None, f"{path}.shared"),
    site_problems,
    lambda app, _path: part_problems(_part(app)),
    _prefix_problem,
    lambda app, path: service_problems(app.services, f"{path}.services"),
    lambda app, path: _build_problems(app.build, f"{path}.build.env"),
    _environment_problems,
)


def _source_problems(source: Source, path: str) -> Iterator[str]:
    """Yield the keys that the kind of source does not support, and those that it lacks."""
    [kind] = (name for name in Source.EXACTLY_ONE if getattr(source, name) is not None)
    for key, kinds in SOURCE_KEYS.items():
        if getattr(source, key) is not None and kind not in kinds:
            yield f"{path}.{key}: requires {' or '.join(f'source.{name}' for name in kinds)}; this is source.{kind}"
    if source.git is not None and re.match(r"https?://[^/]*@", source.git):
        yield f"{path}.git: contains credentials, which the process list would show to all users of the host; use deploy_key"
    if source.package is not None and source.version is None:
        yield f"{path}.version: is missing; without it the same entry could build a different release later"
    if source.archive is not None and source.archive_is_url and source.checksum is None:
        yield f"{path}.checksum: is missing; it verifies the download from a URL"
    if source.push is not None and source.keys is None:
        yield f"{path}.keys: is missing; list the SSH public keys that may push"
    for number, key in enumerate(source.keys or ()):
        if not _is_complete_key(key):
            yield f"{path}.keys[{number}]: is not a complete key; copy the line of the .pub file again"


def _is_complete_key(key: str) -> bool:
    """Return whether the base64 part of a public key begins with the type of the key (RFC 4253, 6.6)."""
    key_type, blob = key.split()[:2]
    try:
        return base64.b64decode(blob).startswith(len(key_type).to_bytes(4, "big") + key_type.encode())
    except ValueError:
        return False


def _server_problems(run: Run, path: str) -> Iterator[str]:
    """Yield the options of the collection's runner that have no effect."""
    if run.threads is not None and run.wsgi is None:
        yield f"{path}.threads: requires run.wsgi"
    if run.loop is not None and run.target is None:
        yield f"{path}.loop: requires run.app, run.wsgi or run.asgi, which the collection's runner serves"


def _run_problems(app: App, path: str) -> Iterator[str]:
    run = app.run
    if run.command is not None:
        yield from _command_problems(app, run.command, f"{path}.command")
    yield from _server_problems(run, path)
    if run.procfile is None:
        return
    if app.port is None:
        yield f"{path}.procfile: requires a port, such as port: 8000, because its processes listen on $PORT"
    if app.source.package is not None:
        yield f"{path}.procfile: requires a source with a Procfile; source.package has none"


def _worker_problems(app: App, path: str) -> Iterator[str]:
    for name, worker in app.workers.items():
        if not re.fullmatch(PROCESS_TYPE, name):
            yield f"{path}.{name}: a worker's name must have up to 30 letters, digits, _ and -"
        elif name == app.run.procfile:
            yield f"{path}.{name}: is the process type that serves requests; set processes instead"
        elif worker.command is not None:
            yield from _template_problems(worker.command, ("process",), f"{path}.{name}.command")
        elif app.run.procfile is None:
            yield f"{path}.{name}.command: is missing; only the workers of a Procfile have one there"
        if worker.singleton and worker.count > 1:
            yield f"{path}.{name}.count: must be at most 1 for a singleton; found {worker.count}"


def _hook_problems(hooks: Hooks, path: str) -> Iterator[str]:
    for step, command in hooks.commands().items():
        try:
            words = shlex.split(command)
        except ValueError as error:
            yield f"{path}.{step}: {str(error).lower()}; found {command!r}"
        else:
            if not words:
                yield f"{path}.{step}: must be a program and its arguments; found {command!r}"


def _build_problems(build: Build, path: str) -> Iterator[str]:
    for key in build.env:
        if not ENV_VARIABLE.fullmatch(key):
            yield f"{path}.{key}: {VARIABLE_RULE}"
        elif key in BUILD_VARIABLES or key.startswith("TORNADO_"):
            yield f"{path}.{key}: is set by the build; remove it"


def _health_problems(health: Health, path: str) -> Iterator[str]:
    """Yield the impossible status codes and the headers that the check itself sets."""
    if not health.status:
        yield f"{path}.status: is empty; list the codes of a healthy process, or remove it for 200-399"
    for i, accepted in enumerate(map(str, health.status)):
        first, last = status_codes.bounds(accepted)
        if first > last:
            yield f"{path}.status[{i}]: must begin with the lower code: {last}-{first}; found {accepted!r}"
    for name, value in health.headers.items():
        if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name):
            yield f"{path}.headers.{name}: a header name must consist of letters, digits and -"
        elif name.lower() in ("accept-encoding", "connection", "content-length", "transfer-encoding"):
            yield f"{path}.headers.{name}: is set by the health check; remove it"
        elif name.lower() == "host" and not re.fullmatch(r"[A-Za-z0-9.:\[\]-]{1,200}", value):
            yield f"{path}.headers.{name}: must be a host name or address, with or without port; found {value!r}"


def _tls_problems(app: App, path: str) -> Iterator[str]:
    """Yield the keys that conflict with the provider of the certificate."""
    tls = app.tls
    for request in certificate_requests([app]).values():
        yield from request_problems(request, path)
    if tls.provider == "off":
        for key, provider in (("certificate", "files"), ("key", "files"), ("challenge", "acme"), ("names", "acme")):
            if getattr(tls, key) != getattr(Tls(), key):
                yield f"{path}.{key}: requires provider: {provider}; found off"
    if missing := [domain for domain in app.all_domains if tls.names and not is_covered(domain, tls.names)]:
        yield f"{path}.names: must cover all domains of the site; {', '.join(missing)} is missing"
    if tls.hsts and tls.provider == "off":
        yield f"{path}.hsts: requires a provider; browsers accept HSTS over HTTPS only"


def _template_problems(command: str, valid: Collection[str], path: str) -> Iterator[str]:
    """Yield the syntax errors of a command, and its placeholders other than ``valid`` ones."""
    try:
        words = shlex.split(command)
        placeholders = _placeholders(command)
    except ValueError as error:
        yield f"{path}: {str(error).lower()}; found {command!r}. Write a literal brace twice"
        return
    if not words:
        yield f"{path}: must be a program and its arguments; found {command!r}"
    for name in sorted(placeholders - set(valid)):
        names = ", ".join(f"{{{placeholder}}}" for placeholder in valid)
        yield f"{path}: unknown placeholder {{{name}}}; use {names}. Write a literal brace twice"


def _placeholders(command: str) -> set[str]:
    """Return the names of the placeholders in a command.

    :raises ValueError: when its braces do not match.
    """
    return {name for _text, name, _spec, _conversion in string.Formatter().parse(command) if name is not None}


def _command_problems(app: App, command: str, path: str) -> Iterator[str]:
    problems = list(_template_problems(command, PLACEHOLDERS, path))
    yield from problems
    if problems:
        return
    placeholders = _placeholders(command)
    if "socket" in placeholders and app.port is not None:
        yield f"{path}: listens on {{socket}}, but the app has a port; remove one of them"
    if "socket" not in placeholders and app.port is None:
        yield f"{path}: must listen on {{socket}}, or the app must have a port, such as port: 8000"


def _prefix_problems(apps: Mapping[str, App]) -> Iterator[str]:
    """Yield the problems of apps with a prefix, which share the site of another app."""
    owners: dict[tuple[frozenset[str], str], str] = {}
    parts: dict[frozenset[str], list[SitePart]] = {}
    for app in apps.values():
        parts.setdefault(frozenset(app.domains), []).append(_part(app))
        if app.prefix is None:
            continue
        path = f"{VARIABLE}.{app.name}"
        site = f"the site of {', '.join(app.domains)}" if app.domains else "the default site"
        owner = site_owner(app, apps.values())
        if owner is None:
            yield f"{path}.prefix: {site} requires an app without a prefix and with the same domains; add one"
            continue
        first = owners.setdefault((frozenset(app.domains), app.prefix), app.name)
        if first != app.name:
            yield f"{path}.prefix: {app.prefix} of {site} already belongs to {VARIABLE}.{first}; choose another"
        default = App(source=app.source, run=app.run)
        for key in SERVER_KEYS:
            if getattr(app, key) != getattr(default, key):
                yield f"{path}.{key}: is an option of the whole site; set it in {VARIABLE}.{owner.name}.{key}"
    for site_parts in parts.values():
        yield from overlap_problems(site_parts)


def _dependency_problems(apps: Mapping[str, App]) -> Iterator[str]:
    """Yield the dependencies on apps that do not exist, and a cycle of dependencies."""
    for app in apps.values():
        for number, name in enumerate(app.depends_on):
            if name not in apps:
                near = closest_match(name, apps)
                hint = f"did you mean {near}?" if near else f"the apps are {', '.join(apps)}"
                yield f"{VARIABLE}.{app.name}.depends_on[{number}]: no such app {name}; {hint}"
    try:
        TopologicalSorter({app.name: app.depends_on for app in apps.values()}).prepare()
    except CycleError as error:
        cycle = error.args[1]
        names = " -> ".join(reversed(cycle))
        yield f"{VARIABLE}.{cycle[-1]}.depends_on: the apps depend on each other: {names}; remove one dependency"


def _part(app: App) -> SitePart:
    """Return the paths that ``app`` serves in its site."""
    path = f"{VARIABLE}.{app.name}"
    static = {f"{path}.static.url": app.static.url} if app.static else {}
    shared = {f"{path}.shared.{name}.url": shared.url for name, shared in app.shared_paths.items() if shared.url}
    return SitePart(path, app.prefix or "/", static, {f"{path}.paths.{url}": url for url in app.paths} | shared)


def memory_warnings(apps: Iterable[App], available: int, used: Mapping[str, int], host: HostFacts, name: str) -> Iterator[str]:
    """Yield the apps that a deploy would start in a second slot of ``name`` although it does not fit into the memory.

    :arg used: bytes by live app; for others, a process of Tornado without content is assumed.
    """
    for app in apps:
        required = used.get(app.name) or app.process_count(host.cpus) * PROCESS_MEMORY
        if required > available:
            sizes = f"{required >> 20} MiB beside its present ones, and {available >> 20} MiB of memory and swap are available"
            yield f"{name}: the new processes of {app.name} require about {sizes}; reduce its processes, or add memory or swap"


def host_problems(apps: Mapping[str, App], host: HostFacts) -> Iterator[str]:
    """Yield the conflicts of apps with the host, including overlapping ports, whose number can depend on the CPUs."""
    taken: dict[int, str] = {}
    for app in apps.values():
        path = f"{VARIABLE}.{app.name}"
        ports = app.ports(host.cpus)
        if ports and ports[-1] > 65535:
            yield f"{path}.port: uses ports up to {ports[-1]}; the highest port is 65535"
        others = {taken[port] for port in ports if port in taken}
        for other in sorted(others):
            yield f"{path}.port: uses ports {ports[0]} to {ports[-1]}, which overlap with those of {other}; change one of them"
        taken.update(dict.fromkeys(ports, app.name))
        if app.name in host.taken_names:
            yield f"{path}: the host already has a user, a group or a directory of that name in /srv or /var/log; choose another"
        if app.affinity != "none" and app.processes == 1 and not host.balanced:
            yield f"{path}.affinity: has no effect with processes: 1 and no load balancers; remove it, or set more processes"
        for package in app.packages:
            if package in host.unavailable_packages:
                yield (
                    f"{path}.packages: no package source of this host has {package}; correct the name, or add a source that "
                    "has it"
                )
        if app.open_files is not None and app.open_files > host.open_files:
            yield f"{path}.open_files: must be at most {host.open_files}, the limit of this host; found {app.open_files}"
