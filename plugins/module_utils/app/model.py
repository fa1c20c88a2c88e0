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

#: Types of SSH keys; those of hardware tokens begin with sk-.
SSH_KEY_TYPE = r"ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com"
#: A public key line: type, key in base64 and comment. Options before the type are not allowed.
PUBLIC_KEY = rf"({SSH_KEY_TYPE}) +[A-Za-z0-9+/]+=*( [^\n]*)?\n?"

#: Minimum length of a secret that is masked in output: a shorter one would mask parts of ordinary words.
MIN_SECRET_LENGTH = 6


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the code comes from."""

    EXACTLY_ONE: ClassVar = ("path", "git", "archive", "package", "push", "directory")

    path: Annotated[
        str | None,
        Doc(
            "Directory on the controller, sent without the files that its git ignores. A relative path is resolved against the "
            "working directory of ansible-playbook, then against the directory of the playbook."
        ),
    ] = None
    git: Annotated[str | None, Doc("URL of a git repository that the host clones, including its submodules.")] = None
    archive: Annotated[
        str | None,
        Doc(
            "Tar, also compressed, or zip: URL that the host downloads, or file on the controller. One top-level directory is "
            "stripped."
        ),
    ] = None
    package: Annotated[
        str | None,
        Doc("Python package, optionally with extras, that contains all code of the app."),
        Pattern(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?", 'the name of a package, such as "shop" or "shop[redis]"'),
    ] = None
    push: Annotated[
        str | None,
        Doc("Branch that is built and served when it is pushed: C(git push git@host:<app> <branch>). No submodules."),
        Pattern(r"(?!.*(\.\.|//|\.lock$|[./]$))[A-Za-z0-9][\w./-]{0,99}", 'the name of a branch, such as "main"'),
    ] = None
    keys: Annotated[
        list[str] | None,
        Doc("SSH public keys that may push, each with its owner as comment: C(ssh-ed25519 AAAA... alice). Required for C(push)."),
        Pattern(PUBLIC_KEY, 'a line of an SSH public key, such as "ssh-ed25519 AAAA... alice"'),
    ] = None
    directory: Annotated[
        str | None,
        Doc(
            "Directory on the host that the app runs from in place, for development only. Requires C(debug). A release is only "
            "the environment and the settings; the app serves C(static) itself. The users C(<app>), which runs the app, and "
            "C(_<app>), which builds it, must be able to read the directory."
        ),
        Pattern(r"/.*", "the absolute path of a directory on the host"),
    ] = None
    version: Annotated[
        str | None,
        Doc(
            "Branch, tag or commit of C(git), or version of C(package). The default branch of C(git) if unset; C(package) "
            "requires it."
        ),
        Pattern(r"(?!-)[^\s~^:?*\[\\]+", "the name of a branch or tag, a commit, or a version"),
    ] = None
    checksum: Annotated[
        str | None,
        Doc("Checksum of C(archive): C(sha256:) and 64 hexadecimal digits. Required for a URL."),
        Pattern(r"sha256:[0-9a-f]{64}", '"sha256:" and 64 hexadecimal digits'),
    ] = None
    deploy_key: Annotated[str | None, Doc("Private SSH key with read access to C(git); never shown or logged."), Hidden] = None
    host_key: Annotated[
        str | None,
        Doc("Lines of known_hosts for the git server. If unset, the key of the first fetch is stored; another is rejected."),
    ] = None

    @property
    def git_ref(self) -> str | None:
        """The branch, tag or commit of C(git); None for the default branch."""
        return None if self.version == "HEAD" else self.version

    @property
    def archive_is_url(self) -> bool:
        """Whether the host downloads C(archive) from a URL; otherwise it is a file on the controller."""
        return self.archive is not None and "://" in self.archive


@dataclass(frozen=True, kw_only=True)
class Python:
    """The Python of the virtual environment."""

    version: Annotated[
        str,
        Doc("C(system), the Python of the distribution, or a version that uv installs. C(system) gets security updates."),
        Pattern(r"system|3\.\d{1,2}(\.\d{1,2})?", '"system" or a version, such as "3.13"'),
    ] = "system"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The command of a process, started in the directory of the source."""

    EXACTLY_ONE: ClassVar = ("app", "wsgi", "command", "procfile")

    app: Annotated[
        str | None,
        Doc("Tornado Application, or a sync or async function that returns one; the collection's runner serves it."),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.web:make_app"'),
    ] = None
    wsgi: Annotated[
        str | None,
        Doc("WSGI application, such as one of Flask or Django; the collection's runner serves it with threads."),
        Pattern(ATTRIBUTE, 'module:attribute, such as "shop.wsgi:application"'),
    ] = None
    threads: Annotated[
        int | None, Doc("Threads per process for C(wsgi), that is its concurrent requests; 10 if unset."), Range(1, 1000)
    ] = None
    command: Annotated[
        str | None,
        Doc(
            "Command of any server, run without a shell. The placeholders C({socket}), C({port}) and C({process}) are replaced, "
            "C(PORT) is set in its environment, and C(python) is the Python of the release."
        ),
    ] = None
    procfile: Annotated[
        str | None,
        Doc("Process type in the source's Procfile that serves requests, such as C(web). A shell runs it, with C(PORT) set."),
        Pattern(PROCESS_TYPE, "the name of a process type"),
    ] = None
    scale: Annotated[
        dict[str, int],
        Doc("Number of processes of each other type in the Procfile, such as C({worker: 2}); 1 if unset, none of C(release)."),
        Range(0, MAX_PROCESSES),
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A command of a release, and the hosts that run it."""

    command: Annotated[str, Doc("Program and arguments, run without a shell.")]
    once: Annotated[bool, Doc("Whether only the first host of the play runs the command, before any other host switches.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Commands that run at the steps of a deploy, in the directory of the source and with the environment of the app."""

    build: Annotated[
        str | None,
        Doc(
            "Command that runs during the build and may write into the source. It runs as the user C(_<app>), which cannot "
            "access C(/srv/<app>/shared). If it fails, the build fails."
        ),
    ] = None
    before_switch: Annotated[
        str | Hook | None,
        Doc(
            "Command that runs when the new processes are healthy, before they get traffic. If it fails, the deploy fails. It "
            "does not run at a rollback."
        ),
    ] = None
    after_switch: Annotated[
        str | None, Doc("Command that runs after the release gets traffic. If it fails, the deploy is rolled back.")
    ] = None
    timeout: Annotated[int, Doc("Maximum run time of each hook in seconds."), Range(1, 86_400)] = 600

    def commands(self) -> dict[str, str]:
        """Return the commands by step."""
        before = self.before_switch.command if isinstance(self.before_switch, Hook) else self.before_switch
        steps = {"build": self.build, "before_switch": before, "after_switch": self.after_switch}
        return {step: command for step, command in steps.items() if command is not None}

    @property
    def once(self) -> bool:
        """Whether C(before_switch) runs on only one host of the play."""
        return isinstance(self.before_switch, Hook) and self.before_switch.once


@dataclass(frozen=True, kw_only=True)
class Static:
    """Static files that nginx serves."""

    url: Annotated[str, Doc("URL prefix of the files."), STATIC_URL] = "/static/"
    path: Annotated[
        str,
        Doc("Directory of the files, relative to the source."),
        Pattern(RELATIVE_PATH, "a directory inside the source, relative to it"),
    ] = "static"


@dataclass(frozen=True, kw_only=True)
class Health:
    """The health check of a new process."""

    path: Annotated[
        str,
        Doc("URL path of the health check, which each new process must answer with a status of 2xx or 3xx."),
        Pattern(r"/\S*", "a path that starts with /"),
    ] = "/"
    timeout: Annotated[int, Doc("Seconds within which a new process must become healthy."), Range(1, 600)] = 30


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The certificate of the site, and its HTTPS options."""

    provider: Annotated[
        Literal["off", "self_signed", "files", "acme"],
        Doc(
            "C(off) disables HTTPS, C(self_signed) generates a certificate on the host, C(files) uses C(certificate) and C(key), "
            "C(acme) gets one from an ACME server such as Let's Encrypt."
        ),
    ] = "off"
    certificate: Annotated[
        str | None,
        Doc(
            "PEM file on the controller with the certificate of the site and its chain, for C(files). A relative path is "
            "resolved against the working directory of ansible-playbook, then against the directory of the playbook."
        ),
    ] = None
    key: Annotated[
        str | None,
        Doc("PEM file on the controller with the private key, resolved like C(certificate). Ansible Vault may encrypt it."),
    ] = None
    redirect: Annotated[bool, Doc("Whether HTTP requests are redirected to HTTPS.")] = True
    hsts: Annotated[
        int,
        Doc("Seconds that browsers must use HTTPS only (C(Strict-Transport-Security)). It cannot be revoked."),
        Range(0, 126_144_000),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How load balancers distribute requests to the hosts."""

    sticky: Annotated[
        bool, Doc("Whether a cookie keeps each client on its host while that host is available (session affinity).")
    ] = False
    connections: Annotated[
        int | None,
        Doc("Maximum number of concurrent requests and websockets per host; further ones are queued."),
        Range(1, 1_000_000),
    ] = None
    queue: Annotated[
        int, Doc("Seconds that a request may wait in the queue before it is answered with 503."), Range(1, 86_400)
    ] = 30


@dataclass(frozen=True, kw_only=True)
class App(SiteOptions):
    """One entry of ``tornado_apps``; ``name`` is its key."""

    source: Annotated[
        Source,
        Doc("Where the code comes from: exactly one of C(path), C(git), C(archive), C(package), C(push) and C(directory)."),
    ]
    run: Annotated[Run, Doc("How a process is started: exactly one of C(app), C(wsgi), C(command) and C(procfile).")]
    python: Annotated[
        Python,
        Doc(
            "Python of the virtual environment. Its dependencies are read from the first of uv.lock, pylock.toml and "
            "requirements.txt in the source."
        ),
    ] = field(default_factory=Python)
    processes: Annotated[
        int | Literal["auto"],
        Doc("Number of processes of the app; C(auto) starts one per CPU. Twice as many run during a switch."),
        Range(1, MAX_PROCESSES),
    ] = "auto"
    port: Annotated[
        int | None,
        Doc(
            "First TCP port, for servers that cannot listen on a unix socket. Each process uses two ports of 127.0.0.1, one per "
            "slot, which every user of the host can reach. Each switch then reloads nginx."
        ),
        Range(1024, 65535),
    ] = None
    debug: Annotated[
        bool,
        Doc(
            "Development mode of C(app) and C(wsgi): one process reloads when code changes. Tornado shows tracebacks to all "
            "clients."
        ),
    ] = False
    watch: Annotated[
        list[str],
        Doc("Further files of the source that trigger a reload in C(debug), such as C([config.yml])."),
        Pattern(RELATIVE_PATH, "a file inside the source, relative to it"),
    ] = field(default_factory=list)
    env: Annotated[dict[str, str | int | float], Doc("Environment variables of the app.")] = field(default_factory=dict)
    secrets: Annotated[
        dict[str, str | int | float], Doc("Secret environment variables of the app; never shown or logged."), Hidden
    ] = field(default_factory=dict)
    services: Annotated[Services, Doc("Services that the app uses; environment variables contain their addresses.")] = field(
        default_factory=Services
    )
    prefix: Annotated[
        str | None,
        Doc(
            "URL prefix of the app in the site of another app, which has the same C(domains) and no prefix. The entry of that "
            "app sets C(aliases), C(balance), C(basic_auth), C(headers), C(maintenance) and C(tls) of the site. Here, C(extra) "
            "is for the location block and cannot contain a C(location); C(limits), C(allow) and C(deny) are inherited from the "
            "other app, or from its path around this prefix, if unset. The app receives full URL paths."
        ),
        MOUNT_URL,
    ] = None
    tls: Annotated[Tls, Doc("Certificate of the site, and its HTTPS options.")] = field(default_factory=Tls)
    balance: Annotated[Balance, Doc("How load balancers, if the fleet has any, distribute requests to the hosts.")] = field(
        default_factory=Balance
    )
    static: Annotated[Static | None, Doc("Static files that nginx serves; none if unset.")] = None
    health: Annotated[Health, Doc("Health check that each new process must pass before it gets traffic.")] = field(
        default_factory=Health
    )
    drain: Annotated[
        int, Doc("Seconds that in-flight requests get to finish during a switch or stop (graceful shutdown)."), Range(0, 3600)
    ] = 30
    soak: Annotated[
        int,
        Doc(
            "Seconds that a new release is monitored after the switch. If a process is unhealthy or restarts, or too many "
            "responses are errors, the deploy is rolled back."
        ),
        Range(0, 3600),
    ] = 0
    soak_errors: Annotated[
        int, Doc("Maximum percentage of 5xx responses during C(soak), evaluated from 10 responses on."), Range(0, 100)
    ] = 5
    hooks: Annotated[Hooks, Doc("Commands that run at the steps of a deploy.")] = field(default_factory=Hooks)
    open_files: Annotated[
        int | None, Doc("Maximum number of open files per process; the limit of supervisord if unset."), Range(64, 1_048_576)
    ] = None
    name: str = field(default="", metadata={"internal": True})

    @property
    def all_domains(self) -> list[str]:
        """The domains and aliases of the site, which its certificate must cover."""
        return [*self.domains, *self.aliases]

    @property
    def max_upload_size(self) -> str:
        """The largest request body that any path allows: the limit of the runner. nginx enforces the smaller limits."""
        sizes = [self.upload_size, *(path.upload_size for path in self.paths.values() if path.upload_size)]
        return max(sizes, key=size_in_bytes)

    @property
    def uses_sockets(self) -> bool:
        """Whether the processes listen on unix sockets rather than TCP ports."""
        return self.port is None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that are not secret, including those of services."""
        return {key: str(value) for key, value in self.env.items()} | self.services.environment

    @property
    def secret_environment(self) -> dict[str, str]:
        """The secret environment variables, including those of services."""
        return {key: str(value) for key, value in self.secrets.items()} | self.services.secret_environment

    @property
    def sensitive_values(self) -> set[str]:
        """The values to mask in the output of programs."""
        values = {*self.secret_environment.values(), self.source.deploy_key or ""}
        return {value for value in values if len(value) >= MIN_SECRET_LENGTH}

    def process_count(self, cpus: int) -> int:
        """Return the number of processes of a slot on a host with ``cpus`` CPUs."""
        if self.processes == "auto":
            return 1 if self.debug else min(cpus, MAX_PROCESSES)
        return self.processes

    def ports(self, cpus: int) -> range:
        """Return the ports of both slots: slot a uses every other port from the first, slot b those in between."""
        return range(self.port, self.port + 2 * self.process_count(cpus)) if self.port else range(0)


def site_owner(app: App, apps: Iterable[App]) -> App | None:
    """Return the app without a prefix that has the same domains, and so owns the site of ``app``; None without one."""
    return next((other for other in apps if other.prefix is None and set(other.domains) == set(app.domains)), None)


def app_certificates(apps: Mapping[str, App]) -> dict[str, dict[str, Any]]:
    """Return the certificates of ``apps`` by app, in the form of ``certificates_wanted`` of the role certificates."""
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
    """Return ``app`` as the plain data of its entry, which :func:`validation.load` accepts."""
    entry = dataclasses.asdict(app, dict_factory=lambda items: {key: value for key, value in items if value is not None})
    del entry["name"]
    return entry
