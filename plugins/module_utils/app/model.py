"""What an app is: one entry of ``tornado_apps``, its keys, types, defaults, bounds and cross-checks.

The filter, the modules, the argument specs and the documentation all take it from here, and nothing else describes it.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.backing.bindings import Services, service_problems
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import MAX_PROCESSES, VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import (
    Doc,
    Hidden,
    InvalidDataError,
    Pattern,
    Range,
    parse,
)
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import MOUNT_URL, STATIC_URL, SiteOptions, size_in_bytes
from ansible_collections.funnel.tornado.plugins.module_utils.sites.validation import (
    SitePart,
    domain_conflicts,
    is_reserved,
    overlap_problems,
    part_problems,
    site_problems,
)
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import request_problems

#: An app's name is also its user's, its directories' and its supervisord group's.
NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")

#: Names that the collection's own services take on a host, maybe later than the app does.
RESERVED_NAMES = frozenset({"etcd", "fleet", "git", "haproxy", "keepalived", "mongodb", "nginx", "supervisor"})

RELATIVE_PATH = r"(?!.*(^|/)\.\.(/|$))[^/].*"
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

ATTRIBUTE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
PROCESS_TYPE = r"[A-Za-z0-9_-]{1,30}"

#: What a command may name in braces, and what the launcher puts there.
PLACEHOLDERS = ("port", "process", "socket")

#: Keys of a source that not every kind of it has.
SOURCE_KEYS = {
    "version": ("git", "package"),
    "checksum": ("archive",),
    "deploy_key": ("git",),
    "host_key": ("git",),
    "keys": ("push",),
}

#: Kinds of SSH keys; those of hardware begin with sk-.
KEY_KIND = r"ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com"
#: A line of a public key: its kind, itself in base64, and whose it is. No options stand before it.
PUBLIC_KEY = rf"({KEY_KIND}) +[A-Za-z0-9+/]+=*( [^\n]*)?\n?"

#: Keys of the server that a site is: those of an app with a prefix are in the entry of the app whose site it is a part of.
SERVER_KEYS = ("aliases", "balance", "basic_auth", "headers", "maintenance", "tls")

#: Characters of a text that is worth hiding.
SHORTEST_SECRET = 6


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the code comes from."""

    EXACTLY_ONE: ClassVar = ("path", "git", "archive", "package", "push", "directory")

    path: Annotated[
        str | None,
        Doc("Directory on the controller. What its git ignores stays out. A relative path starts where ansible-playbook does."),
    ] = None
    git: Annotated[str | None, Doc("URL of a git repository, as the host reaches it. Submodules come with it.")] = None
    archive: Annotated[
        str | None,
        Doc(
            "URL that the host fetches, or file on the controller: tar, compressed or not, or zip. One top directory is dropped."
        ),
    ] = None
    package: Annotated[
        str | None,
        Doc("Name of a Python package, extras too, that is installed into the environment; there is no other code."),
        Pattern(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?", 'the name of a package, such as "shop" or "shop[redis]"'),
    ] = None
    push: Annotated[
        str | None,
        Doc("Branch that is built and served when it is pushed: C(git push git@host:<app> <branch>). Without submodules."),
        Pattern(r"(?!.*(\.\.|//|\.lock$|[./]$))[A-Za-z0-9][\w./-]{0,99}", 'the name of a branch, such as "main"'),
    ] = None
    keys: Annotated[
        list[str] | None,
        Doc("SSH public keys that may C(push), each with whose it is: C(ssh-ed25519 AAAA... alice). Required for it."),
        Pattern(PUBLIC_KEY, 'a line of an SSH public key, such as "ssh-ed25519 AAAA... alice"'),
    ] = None
    directory: Annotated[
        str | None,
        Doc(
            "Directory on the host that is run where it lies, for development: needs C(debug). A release of it is environment "
            "and settings only; C(static) is left to the app. The app's user, named as the app, and C(_<app>), which "
            "builds, have to be able to read it."
        ),
        Pattern(r"/.*", "the absolute path of a directory on the host"),
    ] = None
    version: Annotated[
        str | None,
        Doc("Branch, tag or commit of C(git), its default branch if unset. The version of C(package), required."),
        Pattern(r"(?!-)[^\s~^:?*\[\\]+", "the name of a branch or tag, a commit, or a version"),
    ] = None
    checksum: Annotated[
        str | None,
        Doc("What C(archive) has to hash to; required for a URL."),
        Pattern(r"sha256:[0-9a-f]{64}", '"sha256:" and 64 hexadecimal digits'),
    ] = None
    deploy_key: Annotated[str | None, Doc("Private SSH key that may read C(git), never shown or logged."), Hidden] = None
    host_key: Annotated[
        str | None,
        Doc("The git server's lines of known_hosts. If unset, the key of the first fetch is remembered and has to stay."),
    ] = None

    @property
    def reference(self) -> str | None:
        """The branch, tag or commit of C(git) that is meant; None for the default branch."""
        return None if self.version == "HEAD" else self.version

    @property
    def remote(self) -> bool:
        """Whether C(archive) is a URL; a file of the controller otherwise."""
        return self.archive is not None and "://" in self.archive


@dataclass(frozen=True, kw_only=True)
class Python:
    """What the environment is made of."""

    version: Annotated[
        str,
        Doc("C(system) is the distribution's, whose security updates reach every app. A version is installed by uv."),
        Pattern(r"system|3\.\d{1,2}(\.\d{1,2})?", '"system" or a version, such as "3.13"'),
    ] = "system"


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a process is started, in the source's directory."""

    EXACTLY_ONE: ClassVar = ("app", "wsgi", "command", "procfile")

    app: Annotated[
        str | None,
        Doc("An Application, or a factory of one (sync or async), that the collection's runner serves."),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.web:make_app"'),
    ] = None
    wsgi: Annotated[
        str | None,
        Doc("A WSGI callable, such as Flask's or Django's, that the collection's runner serves from threads."),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.wsgi:application"'),
    ] = None
    threads: Annotated[
        int | None, Doc("Requests of C(wsgi) that one process works on at a time; 10 if unset."), Range(1, 1000)
    ] = None
    command: Annotated[
        str | None,
        Doc(
            "Any program, started without a shell. C({socket}), C({port}) and C({process}) are replaced; C(PORT) is in "
            "its environment. C(python) is the release's."
        ),
    ] = None
    procfile: Annotated[
        str | None,
        Doc("Process type of the source's Procfile that is served, such as C(web); a shell runs its line, with C(PORT) set."),
        Pattern(PROCESS_TYPE, "the name of a process type"),
    ] = None
    scale: Annotated[
        dict[str, int],
        Doc("Processes of each other type of the Procfile, such as C({worker: 2}); 1 of each if unset, none of C(release)."),
        Range(0, MAX_PROCESSES),
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A command of a release, and where it runs."""

    command: Annotated[str, Doc("A program and its arguments, started without a shell.")]
    once: Annotated[bool, Doc("Whether only the first host of the play runs it, before any other one switches.")] = False


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Commands that run at the steps of a deploy, in the source's directory, with the app's environment."""

    build: Annotated[
        str | None,
        Doc(
            "Runs while the release is built, and may write into the source. Its user, C(_<app>), owns nothing else, and neither "
            "reads nor writes C(/srv/<app>/shared). Its failure ends the build."
        ),
    ] = None
    before_switch: Annotated[
        str | Hook | None,
        Doc("Runs when the new processes are healthy, before they get traffic. Its failure ends the deploy. Not at a rollback."),
    ] = None
    after_switch: Annotated[str | None, Doc("Runs when the release has traffic. Its failure moves the traffic back.")] = None
    timeout: Annotated[int, Doc("Seconds that each may take."), Range(1, 86_400)] = 600

    def commands(self) -> dict[str, str]:
        """Return the command of each step that has one."""
        before = self.before_switch.command if isinstance(self.before_switch, Hook) else self.before_switch
        steps = {"build": self.build, "before_switch": before, "after_switch": self.after_switch}
        return {step: command for step, command in steps.items() if command is not None}

    @property
    def once(self) -> bool:
        """Whether C(before_switch) runs on one host of the play only."""
        return isinstance(self.before_switch, Hook) and self.before_switch.once


@dataclass(frozen=True, kw_only=True)
class Static:
    """Files that nginx serves itself."""

    url: Annotated[str, Doc("Prefix of their addresses."), STATIC_URL] = "/static/"
    path: Annotated[
        str,
        Doc("Their directory in the source."),
        Pattern(RELATIVE_PATH, "a directory inside the source, relative to it"),
    ] = "static"


@dataclass(frozen=True, kw_only=True)
class Health:
    """How a new process shows that it can serve."""

    path: Annotated[
        str, Doc("Asked of every new process; 2xx and 3xx are healthy."), Pattern(r"/\S*", "a path that starts with /")
    ] = "/"
    timeout: Annotated[int, Doc("Seconds that a new process may take until it is healthy."), Range(1, 600)] = 30


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The site's certificate, and what HTTPS comes with."""

    provider: Annotated[
        Literal["off", "self_signed", "files", "acme"],
        Doc("C(off) is no HTTPS; C(self_signed) is made on the host; C(acme) is issued by an ACME server such as Let's Encrypt."),
    ] = "off"
    certificate: Annotated[
        str | None,
        Doc(
            "PEM file on the controller, for C(files): the site's own certificate, then each the one that has signed the last. "
            "A relative path starts where ansible-playbook was started, then beside the playbook."
        ),
    ] = None
    key: Annotated[
        str | None,
        Doc("PEM file of its private key on the controller, found as C(certificate) is. Ansible Vault may have encrypted it."),
    ] = None
    redirect: Annotated[bool, Doc("Whether what comes by HTTP is sent to HTTPS.")] = True
    hsts: Annotated[
        int, Doc("Seconds that browsers are to use nothing but HTTPS; they cannot be told to forget."), Range(0, 126_144_000)
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How load balancers share requests among the hosts."""

    sticky: Annotated[bool, Doc("Whether a client stays with its host, which a cookie names, for as long as that serves.")] = (
        False
    )
    connections: Annotated[
        int | None, Doc("Requests and websockets that each host gets at a time; further ones wait."), Range(1, 1_000_000)
    ] = None
    queue: Annotated[int, Doc("Seconds that a request waits at most, before it is answered with 503."), Range(1, 86_400)] = 30


@dataclass(frozen=True, kw_only=True)
class App(SiteOptions):
    """One entry of ``tornado_apps``; ``name`` is its key there."""

    source: Annotated[
        Source,
        Doc("Where the code comes from: exactly one of C(path), C(git), C(archive), C(package), C(push) and C(directory)."),
    ]
    run: Annotated[Run, Doc("How a process is started: exactly one of C(app), C(wsgi), C(command) and C(procfile).")]
    python: Annotated[
        Python,
        Doc(
            "What the environment is made of, into which the first of these is installed: uv.lock, pylock.toml, requirements.txt."
        ),
    ] = field(default_factory=Python)
    processes: Annotated[int | Literal["auto"], Doc("Processes of a slot; C(auto) is one per CPU."), Range(1, MAX_PROCESSES)] = (
        "auto"
    )
    port: Annotated[
        int | None,
        Doc(
            "First port, for programs that cannot listen on a socket. Both slots together take two per process, on "
            "127.0.0.1, where every user of the host reaches them. A switch then needs a reload of nginx."
        ),
        Range(1024, 65535),
    ] = None
    debug: Annotated[
        bool,
        Doc(
            "For development: C(app) and C(wsgi) run in one process, which reloads on changed code and, if Tornado's, shows "
            "tracebacks to everybody."
        ),
    ] = False
    watch: Annotated[
        list[str],
        Doc("Files of the source on whose change C(debug) reloads as well, such as C([config.yml])."),
        Pattern(RELATIVE_PATH, "a file inside the source, relative to it"),
    ] = field(default_factory=list)
    env: Annotated[dict[str, str | int | float], Doc("Plain configuration: environment variables.")] = field(default_factory=dict)
    secrets: Annotated[dict[str, str | int | float], Doc("Environment variables that are never shown or logged."), Hidden] = (
        field(default_factory=dict)
    )
    services: Annotated[Services, Doc("What the app uses; its environment says where that is.")] = field(default_factory=Services)
    prefix: Annotated[
        str | None,
        Doc(
            "Part of a site that is the app's, by whole addresses; the rest of it is another app's, with the same C(domains) and "
            "no prefix, whose entry has C(aliases), C(balance), C(basic_auth), C(headers), C(maintenance) and C(tls) for both. "
            "C(extra) is for the location block here, without a C(location) in it; C(limits), C(allow) and C(deny) are the "
            "other's if unset, those of the path that this one lies in if it has such."
        ),
        MOUNT_URL,
    ] = None
    tls: Annotated[Tls, Doc("The site's certificate, and what HTTPS comes with.")] = field(default_factory=Tls)
    balance: Annotated[Balance, Doc("How load balancers, if there are any, share requests among the hosts.")] = field(
        default_factory=Balance
    )
    static: Annotated[Static | None, Doc("Files that nginx serves itself; none if unset.")] = None
    health: Annotated[Health, Doc("How a new process shows that it can serve, before it gets traffic.")] = field(
        default_factory=Health
    )
    drain: Annotated[int, Doc("Seconds that requests in progress may take at a switch or a stop."), Range(0, 3600)] = 30
    soak: Annotated[
        int,
        Doc("Seconds after a switch in which the new release is watched, and traffic goes back if it does badly."),
        Range(0, 3600),
    ] = 0
    soak_errors: Annotated[
        int, Doc("Percentage of answers that may be 5xx while it is watched, of 10 answers at least."), Range(0, 100)
    ] = 5
    hooks: Annotated[Hooks, Doc("Commands that run at the steps of a deploy.")] = field(default_factory=Hooks)
    open_files: Annotated[
        int | None, Doc("Open files of each process; supervisord's own limit if unset."), Range(64, 1_048_576)
    ] = None
    name: str = field(default="", metadata={"internal": True})

    @property
    def names(self) -> list[str]:
        """All names that the site answers to, and that its certificate has to be for."""
        return [*self.domains, *self.aliases]

    @property
    def largest_upload(self) -> str:
        """The largest request body of all paths, which the runner has to take; what is less elsewhere is nginx's to refuse."""
        sizes = [self.upload_size, *(path.upload_size for path in self.paths.values() if path.upload_size)]
        return max(sizes, key=size_in_bytes)

    @property
    def socket(self) -> bool:
        """Whether processes listen on unix sockets; on ports otherwise."""
        return self.port is None

    @property
    def environment(self) -> dict[str, str]:
        """Plain environment variables as text."""
        return {key: str(value) for key, value in self.env.items()} | self.services.environment

    @property
    def secret_environment(self) -> dict[str, str]:
        """Secret environment variables as text."""
        return {key: str(value) for key, value in self.secrets.items()} | self.services.secret_environment

    @property
    def hidden_texts(self) -> set[str]:
        """What is replaced wherever a program prints it; a shorter text is no secret, and stands in many words."""
        texts = {*self.secret_environment.values(), self.source.deploy_key or ""}
        return {text for text in texts if len(text) >= SHORTEST_SECRET}

    def process_count(self, cpus: int) -> int:
        """Return the number of processes of a slot on a host with ``cpus`` CPUs."""
        if self.processes == "auto":
            return 1 if self.debug else min(cpus, MAX_PROCESSES)
        return self.processes

    def ports(self, cpus: int) -> range:
        """Return all ports of both slots; slot a has the even places, slot b the odd ones."""
        return range(self.port, self.port + 2 * self.process_count(cpus)) if self.port else range(0)


@dataclass(frozen=True)
class Host:
    """What the checks need to know of a host.

    ``open_files`` is the most that one process may have; ``names`` are those of users and logs that are no app's.
    """

    cpus: int
    open_files: int
    names: frozenset[str] = frozenset()


def load(entries: object, host: Host | None = None) -> dict[str, App]:
    """Return the apps that ``entries``, the value of ``tornado_apps``, describes.

    :arg host: checks against what this host has, too; without one only what holds on every host is checked.
    :raises InvalidDataError: with every mistake of all entries.
    """
    if not isinstance(entries, Mapping):
        raise InvalidDataError([f"{VARIABLE}: must be a dict of apps by name; found {type(entries).__name__}"])
    problems: list[str] = []
    apps: dict[str, App] = {}
    for name, entry in entries.items():
        try:
            apps[str(name)] = _parse(str(name), entry, problems)
        except InvalidDataError as error:
            problems.extend(error.problems)
    problems.extend(domain_conflicts({f"{VARIABLE}.{app.name}": app for app in apps.values() if app.prefix is None}))
    if len(apps) == len(entries):  # or the app that is missed may be there, and have a mistake
        problems.extend(_prefix_problems(apps))
    if host:
        problems.extend(_host_problems(apps, host))
    if problems:
        raise InvalidDataError(problems)
    return apps


def load_one(name: str, entry: object) -> App:
    """Return one app without a look at the others, whom a host is not told of when it builds a release.

    :raises InvalidDataError: with every mistake of the entry.
    """
    problems: list[str] = []
    app = _parse(name, entry, problems)
    if problems:
        raise InvalidDataError(problems)
    return app


def _parse(name: str, entry: object, problems: list[str]) -> App:
    """Return the app, and add what is wrong between its keys to ``problems``.

    :raises InvalidDataError: when it cannot be read.
    """
    path = f"{VARIABLE}.{name}"
    problems.extend(_name_problems(name, path))
    app = dataclasses.replace(parse(App, entry, path), name=name)
    problems.extend(_app_problems(app, path))
    return app


def site_owner(app: App, apps: Iterable[App]) -> App | None:
    """Return the app whose site one with a prefix is a part of, if there is any."""
    return next((other for other in apps if other.prefix is None and set(other.domains) == set(app.domains)), None)


def name_problem(name: object, path: str = "") -> str:
    """Return what is wrong with the form of an app's name, which stands at ``path``; empty if nothing is."""
    return (
        "" if NAME.fullmatch(str(name)) else f"{path or name}: an app's name is a lower-case letter, then up to 30 of a-z 0-9 _ -"
    )


def _name_problems(name: str, path: str) -> Iterator[str]:
    if problem := name_problem(name, path):
        yield problem
    elif name in RESERVED_NAMES:
        yield f"{path}: the name {name} belongs to a service of this collection; choose another"


def _app_problems(app: App, path: str) -> Iterator[str]:
    """Yield what is wrong between the keys of one app."""
    yield from _source_problems(app.source, f"{path}.source")
    yield from _run_problems(app, f"{path}.run")
    yield from _debug_problems(app, path)
    yield from _hook_problems(app.hooks, f"{path}.hooks")
    yield from _tls_problems(app, f"{path}.tls")
    yield from site_problems(app, path)
    yield from part_problems(_part(app))
    if app.prefix is not None and is_reserved(app.prefix):
        yield f"{path}.prefix: {app.prefix} is kept for the site itself; choose another"
    mistakes = list(service_problems(app.services, f"{path}.services"))
    yield from mistakes
    service_variables = {} if mistakes else app.services.environment | app.services.secret_environment
    for key in [*app.env, *app.secrets]:
        where = "secrets" if key in app.secrets else "env"
        if not VARIABLE_NAME.fullmatch(key):
            yield f"{path}.{where}.{key}: a variable's name is letters, digits and _, and does not begin with a digit"
        elif key == "PORT" or key.startswith("TORNADO_"):
            yield f"{path}.{where}.{key}: is set by the launcher; choose another name"
        elif key in service_variables:
            yield f"{path}.{where}.{key}: is set by services; remove it here"
    for key in sorted(app.env.keys() & app.secrets.keys()):
        yield f"{path}.secrets.{key}: is in env, too; keep one"


def _source_problems(source: Source, path: str) -> Iterator[str]:
    """Yield the keys that do not go with the kind of source, and those that it lacks."""
    [kind] = (name for name in Source.EXACTLY_ONE if getattr(source, name) is not None)
    for key, kinds in SOURCE_KEYS.items():
        if getattr(source, key) is not None and kind not in kinds:
            yield f"{path}.{key}: goes with {' and '.join(f'source.{one}' for one in kinds)}; this is a source.{kind}"
    if source.git is not None and re.match(r"https?://[^/]*@", source.git):
        yield f"{path}.git: has a name or a password, which all users of a host could see among its processes; use deploy_key"
    if source.package is not None and source.version is None:
        yield f"{path}.version: is missing; without it the same entry would be another release tomorrow"
    if source.archive is not None and source.remote and source.checksum is None:
        yield f"{path}.checksum: is missing; what a URL has to give is known by it"
    if source.push is not None and source.keys is None:
        yield f"{path}.keys: is missing; it has the SSH public keys that may push"
    for number, key in enumerate(source.keys or ()):
        if not _is_whole(key):
            yield f"{path}.keys[{number}]: is not a whole key; copy the line of the .pub file anew"


def _is_whole(key: str) -> bool:
    """Say whether what a public key is in base64 begins as its kind does (RFC 4253, 6.6)."""
    kind, blob = key.split()[:2]
    try:
        return base64.b64decode(blob).startswith(len(kind).to_bytes(4, "big") + kind.encode())
    except ValueError:
        return False


def _run_problems(app: App, path: str) -> Iterator[str]:
    run = app.run
    if run.command is not None:
        yield from _command_problems(app, run.command, f"{path}.command")
    if run.threads is not None and run.wsgi is None:
        yield f"{path}.threads: goes with run.wsgi"
    if run.procfile is None:
        if run.scale:
            yield f"{path}.scale: goes with run.procfile"
        return
    if app.port is None:
        yield f"{path}.procfile: listens on $PORT, so the app needs a port, such as port: 8000"
    if app.source.package is not None:
        yield f"{path}.procfile: lies in the source, and a source.package has none"
    for name in run.scale:
        if not re.fullmatch(PROCESS_TYPE, name):
            yield f"{path}.scale.{name}: must be the name of a process type"
        elif name == run.procfile:
            yield f"{path}.scale.{name}: is what is served; processes says how many"


def _debug_problems(app: App, path: str) -> Iterator[str]:
    """Yield what goes against a process that reloads on changed files, and needs to."""
    if app.watch and not app.debug:
        yield f"{path}.watch: goes with debug: true"
    if app.source.directory is not None and not app.debug:
        yield f"{path}.source.directory: is run in place, for development only, and needs debug: true; serve source.path or git"
    if app.debug and app.run.app is None and app.run.wsgi is None:
        yield f"{path}.debug: goes with run.app and run.wsgi, which the collection's runner serves"
    if app.debug and app.processes not in ("auto", 1):
        yield f"{path}.processes: must be 1 with debug, as only one process can reload; found {app.processes}"


def _hook_problems(hooks: Hooks, path: str) -> Iterator[str]:
    for step, command in hooks.commands().items():
        try:
            words = shlex.split(command)
        except ValueError as error:
            yield f"{path}.{step}: {str(error).lower()}; found {command!r}"
        else:
            if not words:
                yield f"{path}.{step}: must be a program and its arguments; found {command!r}"


def _tls_problems(app: App, path: str) -> Iterator[str]:
    """Yield what goes against the provider of the certificate."""
    tls = app.tls
    yield from request_problems(tls.provider, app.names, tls.certificate, tls.key, path)
    if tls.hsts and tls.provider == "off":
        yield f"{path}.hsts: goes with a provider; browsers believe it over HTTPS only"


def _command_problems(app: App, command: str, path: str) -> Iterator[str]:
    try:
        words = shlex.split(command)
        named = {name for _text, name, _spec, _conversion in string.Formatter().parse(command) if name is not None}
    except ValueError as error:
        yield f"{path}: {str(error).lower()}; found {command!r}. A brace that is meant is written twice"
        return
    if not words:
        yield f"{path}: must be a program and its arguments; found {command!r}"
    for name in sorted(named - set(PLACEHOLDERS)):
        known = ", ".join(f"{{{word}}}" for word in PLACEHOLDERS)
        yield f"{path}: knows no {{{name}}}; known are {known}. A brace that is meant is written twice"
    if "socket" in named and app.port is not None:
        yield f"{path}: listens on {{socket}}, so the app has no port; remove one of them"
    if "socket" not in named and app.port is None:
        yield f"{path}: must listen on {{socket}}, or the app needs a port, such as port: 8000"


def _prefix_problems(apps: Mapping[str, App]) -> Iterator[str]:
    """Yield what is wrong with the apps that are part of another one's site."""
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
            yield f"{path}.prefix: is a part of {site}, and no app without a prefix has the same domains; add one"
            continue
        first = owners.setdefault((frozenset(app.domains), app.prefix), app.name)
        if first != app.name:
            yield f"{path}.prefix: {app.prefix} of {site} is {first}'s, too; choose another"
        blank = App(source=app.source, run=app.run)
        for key in SERVER_KEYS:
            if getattr(app, key) != getattr(blank, key):
                yield f"{path}.{key}: belongs to the site, which is {owner.name}'s; set it in {VARIABLE}.{owner.name}.{key}"
    for site_parts in parts.values():
        yield from overlap_problems(site_parts)


def _part(app: App) -> SitePart:
    """Return what an app has of its site."""
    path = f"{VARIABLE}.{app.name}"
    static = {f"{path}.static.url": app.static.url} if app.static else {}
    return SitePart(path, app.prefix or "/", static, {f"{path}.paths.{url}": url for url in app.paths})


def _host_problems(apps: Mapping[str, App], host: Host) -> Iterator[str]:
    """Yield what does not fit the host, ports that collide among it: how many an app takes can follow from the CPUs."""
    taken: dict[int, str] = {}
    for app in apps.values():
        path = f"{VARIABLE}.{app.name}"
        ports = app.ports(host.cpus)
        if ports and ports[-1] > 65535:
            yield f"{path}.port: takes ports up to {ports[-1]}; the last there is is 65535"
        others = {taken[port] for port in ports if port in taken}
        for other in sorted(others):
            yield f"{path}.port: takes {ports[0]} to {ports[-1]}, of which {other} has some; move one of them"
        taken.update(dict.fromkeys(ports, app.name))
        if app.name in host.names:
            yield f"{path}: this host has a user or a directory in /srv or /var/log of that name already; choose another"
        if app.open_files is not None and app.open_files > host.open_files:
            yield f"{path}.open_files: must be at most {host.open_files}, what this host gives; found {app.open_files}"


def app_certificates(apps: Mapping[str, App]) -> dict[str, dict[str, Any]]:
    """Return the certificates of ``apps``, by app, as the role certificates takes them."""
    return {
        app.name: {
            "provider": app.tls.provider,
            "domains": app.names,
            "certificate": app.tls.certificate,
            "key": app.tls.key,
            "origin": f"{VARIABLE}.{app.name}.tls",
        }
        for app in apps.values()
        if app.tls.provider != "off"
    }


def to_dict(app: App) -> dict[str, Any]:
    """Return ``app`` as plain data that :func:`load` takes back under its name."""
    entry = dataclasses.asdict(app, dict_factory=lambda items: {key: value for key, value in items if value is not None})
    del entry["name"]
    return entry
