"""The model of an app: the keys of one entry of ``tornado_apps``, with their types, defaults, bounds and documentation.

The argument specs and the reference documentation are generated from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.backing.bindings import Services
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import MAX_PROCESSES, VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Doc, Hidden, Pattern, Range
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import MOUNT_URL, STATIC_URL, SiteOptions, size_in_bytes

RELATIVE_PATH = r"(?!.*(^|/)\.\.(/|$))[^/].*"

ATTRIBUTE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
PROCESS_TYPE = r"[A-Za-z0-9_-]{1,30}"

#: Kinds of SSH keys; those of hardware begin with sk-.
KEY_KIND = r"ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com"
#: A line of a public key: its kind, itself in base64, and whose it is. No options stand before it.
PUBLIC_KEY = rf"({KEY_KIND}) +[A-Za-z0-9+/]+=*( [^\n]*)?\n?"

#: Characters of a text that is worth hiding.
MIN_SECRET_LENGTH = 6


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
    def git_ref(self) -> str | None:
        """The branch, tag or commit of C(git) that is meant; None for the default branch."""
        return None if self.version == "HEAD" else self.version

    @property
    def archive_is_url(self) -> bool:
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
    def all_domains(self) -> list[str]:
        """All names that the site answers to, and that its certificate has to be for."""
        return [*self.domains, *self.aliases]

    @property
    def max_upload_size(self) -> str:
        """The largest request body of all paths, which the runner has to take; what is less elsewhere is nginx's to refuse."""
        sizes = [self.upload_size, *(path.upload_size for path in self.paths.values() if path.upload_size)]
        return max(sizes, key=size_in_bytes)

    @property
    def uses_sockets(self) -> bool:
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
    def sensitive_values(self) -> set[str]:
        """What is replaced wherever a program prints it; a shorter text is no secret, and stands in many words."""
        texts = {*self.secret_environment.values(), self.source.deploy_key or ""}
        return {text for text in texts if len(text) >= MIN_SECRET_LENGTH}

    def process_count(self, cpus: int) -> int:
        """Return the number of processes of a slot on a host with ``cpus`` CPUs."""
        if self.processes == "auto":
            return 1 if self.debug else min(cpus, MAX_PROCESSES)
        return self.processes

    def ports(self, cpus: int) -> range:
        """Return all ports of both slots; slot a has the even places, slot b the odd ones."""
        return range(self.port, self.port + 2 * self.process_count(cpus)) if self.port else range(0)


def site_owner(app: App, apps: Iterable[App]) -> App | None:
    """Return the app whose site one with a prefix is a part of, if there is any."""
    return next((other for other in apps if other.prefix is None and set(other.domains) == set(app.domains)), None)


def app_certificates(apps: Mapping[str, App]) -> dict[str, dict[str, Any]]:
    """Return the certificates of ``apps``, by app, as the role certificates takes them."""
    return {
        app.name: {
            "provider": app.tls.provider,
            "domains": app.all_domains,
            "certificate": app.tls.certificate,
            "key": app.tls.key,
            "origin": f"{VARIABLE}.{app.name}.tls",
        }
        for app in apps.values()
        if app.tls.provider != "off"
    }


def to_entry(app: App) -> dict[str, Any]:
    """Return ``app`` as plain data that :func:`load` takes back under its name."""
    entry = dataclasses.asdict(app, dict_factory=lambda items: {key: value for key, value in items if value is not None})
    del entry["name"]
    return entry
