"""The model of an app: the keys of one entry of ``tornado_apps``, with their types, defaults, bounds and documentation.

The argument specs and the reference documentation are generated from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from ansible_collections.funnel.tornado.plugins.module_utils.app.program import Build, Health, Hooks, Python, Run
from ansible_collections.funnel.tornado.plugins.module_utils.app.shared import SharedPath, by_path
from ansible_collections.funnel.tornado.plugins.module_utils.app.source import RELATIVE_PATH, Source
from ansible_collections.funnel.tornado.plugins.module_utils.app.workers import WorkerOptions
from ansible_collections.funnel.tornado.plugins.module_utils.backing.bindings import Services
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import MAX_PROCESSES, VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import DOMAIN, Doc, Hidden, Pattern, Range
from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import (
    MOUNT_URL,
    STATIC_URL,
    Affinity,
    SiteOptions,
    size_in_bytes,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.packages import PACKAGE_NAME
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CertificateRequest

#: Minimum length of a secret that is masked in output: a shorter one would mask parts of ordinary words.
MIN_SECRET_LENGTH = 6


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
class Tls:
    """The certificate of the site, and its HTTPS options."""

    provider: Annotated[
        Literal["off", "self_signed", "files", "acme"],
        Doc(
            "C(off) disables HTTPS, C(self_signed) generates a certificate on the host, C(files) uses C(certificate) and C(key), "
            "C(acme) gets one from an ACME server such as Let's Encrypt."
        ),
    ] = "off"
    challenge: Annotated[
        Literal["http", "dns"],
        Doc(
            "With C(acme): the server validates the names by C(http), on port 80, or by C(dns), with C(certificates_acme_dns), "
            "which also supports wildcards, and names that the server cannot connect to."
        ),
    ] = "http"
    names: Annotated[
        list[str],
        Doc(
            "Names of the certificate, if not those of the site, such as C(*.example.com). Apps with the same names share one "
            "certificate."
        ),
        DOMAIN,
    ] = field(default_factory=list)
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

    @property
    def answers_challenges(self) -> bool:
        """Whether the hosts answer http-01 challenges of an ACME server."""
        return self.provider == "acme" and self.challenge == "http"


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How load balancers distribute requests to the hosts."""

    REPLACED: ClassVar = {"sticky": "was replaced by the key affinity of the app; set affinity: cookie there"}

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
    run: Annotated[Run, Doc("How a process is started: exactly one of C(app), C(wsgi), C(asgi), C(command) and C(procfile).")]
    python: Annotated[
        Python,
        Doc(
            "Python of the virtual environment. Its dependencies are read from the first of uv.lock, pylock.toml, "
            "requirements.txt, poetry.lock, pdm.lock, Pipfile.lock, pyproject.toml and setup.py in the source."
        ),
    ] = field(default_factory=Python)
    build: Annotated[Build, Doc("Settings of the build.")] = field(default_factory=Build)
    processes: Annotated[
        int | Literal["auto"],
        Doc("Number of processes of the app; C(auto) starts one per CPU. Twice as many run during a switch."),
        Range(1, MAX_PROCESSES),
    ] = "auto"
    workers: Annotated[
        dict[str, WorkerOptions],
        Doc(
            "Processes that serve no requests, by name, such as C({queue: {command: celery -A shop worker}}). With "
            "C(run.procfile), all other types of the Procfile except C(release) are workers, too."
        ),
    ] = field(default_factory=dict)
    affinity: Annotated[
        Affinity,
        Doc(
            "How a client stays with one process, and with its host behind load balancers (session affinity): C(cookie) by a "
            "cookie that the reverse proxies set, C(address) by its IP address. With C(none), each request goes to the process "
            "with the fewest requests. For apps that keep the state of a client in memory."
        ),
    ] = "none"
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
            "Development mode of C(app), C(wsgi) and C(asgi): one process reloads when code changes. Tornado shows tracebacks to "
            "all clients."
        ),
    ] = False
    watch: Annotated[
        list[str],
        Doc("Further files of the source that trigger a reload in C(debug), such as C([config.yml])."),
        Pattern(RELATIVE_PATH, "a file inside the source, relative to it"),
    ] = field(default_factory=list)
    env: Annotated[
        dict[str, str | int],
        Doc('Environment variables of the app. Quote what YAML reads as a number: C("1.10"), C("0123") and C("12:30").'),
    ] = field(default_factory=dict)
    secrets: Annotated[
        dict[str, str | int], Doc("Secret environment variables of the app, as in C(env); never shown or logged."), Hidden
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
            "other app, or from its path around this prefix, if unset. The app receives full URL paths. In such a site nginx "
            "ignores C(X-Accel-Redirect) of all its apps."
        ),
        MOUNT_URL,
    ] = None
    tls: Annotated[Tls, Doc("Certificate of the site, and its HTTPS options.")] = field(default_factory=Tls)
    balance: Annotated[Balance, Doc("How load balancers, if the fleet has any, distribute requests to the hosts.")] = field(
        default_factory=Balance
    )
    static: Annotated[Static | None, Doc("Static files that nginx serves; none if unset.")] = None
    shared: Annotated[
        list[str] | dict[str, SharedPath],
        Doc(
            "Files and directories of the source that the app may write and that persist outside the releases, in "
            "C(/srv/<app>/shared): a list such as C([instance, db.sqlite3]), or a dict of options by path. The first release "
            "provides their content. A path that it lacks is created as a directory, unless its name has an extension."
        ),
    ] = field(default_factory=list)
    packages: Annotated[
        list[str],
        Doc(
            "Debian packages that the app needs to run or to be built, such as C([ffmpeg, libpq-dev]). They are installed before "
            "the build, and never removed."
        ),
        Pattern(PACKAGE_NAME, 'the name of a Debian package, such as "ffmpeg"'),
    ] = field(default_factory=list)
    health: Annotated[Health, Doc("Health check that each new process must pass before it gets traffic.")] = field(
        default_factory=Health
    )
    drain: Annotated[
        int, Doc("Seconds that in-flight requests get to finish during a switch or stop (graceful shutdown)."), Range(0, 3600)
    ] = 30
    soak: Annotated[
        int,
        Doc(
            "Seconds that a new release is monitored after the switch. If a process is unhealthy, it or a worker restarts, or "
            "too many responses are errors, the deploy is rolled back."
        ),
        Range(0, 3600),
    ] = 0
    soak_errors: Annotated[
        int, Doc("Maximum percentage of 5xx responses during C(soak), evaluated from 10 responses on."), Range(0, 100)
    ] = 5
    keep_releases: Annotated[
        int,
        Doc(
            "Number of newest releases that stay on the host; the live release, the one before it and the rollback target stay "
            "in any case."
        ),
        Range(1, 100),
    ] = 3
    hooks: Annotated[Hooks, Doc("Commands that run at the steps of a deploy.")] = field(default_factory=Hooks)
    depends_on: Annotated[
        list[str],
        Doc(
            "Apps that a deploy or restart switches before this one on each host. If one of them fails, this app is not "
            "switched. A rollback does not wait for them."
        ),
    ] = field(default_factory=list)
    open_files: Annotated[
        int | None, Doc("Maximum number of open files per process; the limit of supervisord if unset."), Range(64, 1_048_576)
    ] = None
    name: str = field(default="", metadata={"internal": True})

    @property
    def all_domains(self) -> list[str]:
        """The domains and aliases of the site, which its certificate must cover."""
        return [*self.domains, *self.aliases]

    @property
    def shared_paths(self) -> dict[str, SharedPath]:
        """The shared paths with their options, without final slashes."""
        return by_path(self.shared)

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

    @property
    def certificate_name(self) -> str:
        """The name of the certificate of the site, which apps with the same names share."""
        names = self.tls.names
        if not names:
            return self.name
        digest = hashlib.sha256(repr((self.tls.provider, self.tls.challenge, sorted(names))).encode()).hexdigest()
        return f"{re.sub('[^a-z0-9]+', '-', names[0].replace('*', 'any'))}-{digest[:6]}"

    @property
    def may_run_once(self) -> bool:
        """Whether a hook before the switch runs on one host only; C(release) of a Procfile, which only the build reads, does."""
        return self.hooks.once != [] or self.run.procfile is not None

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


def certificate_requests(apps: Iterable[App]) -> dict[str, CertificateRequest]:
    """Return the certificates of ``apps`` by `App.certificate_name`."""
    requests: dict[str, CertificateRequest] = {}
    for app in apps:
        if app.tls.provider != "off":
            request = CertificateRequest(
                provider=app.tls.provider,
                domains=app.tls.names or app.all_domains,
                challenge=app.tls.challenge,
                certificate=app.tls.certificate,
                key=app.tls.key,
                origin=f"{VARIABLE}.{app.name}.tls",
            )
            requests.setdefault(app.certificate_name, request)
    return requests


def app_certificates(apps: Mapping[str, App]) -> dict[str, dict[str, Any]]:
    """Return the certificates of ``apps`` in the form of ``certificates_wanted`` of the role certificates."""
    return {name: dataclasses.asdict(request) for name, request in certificate_requests(apps.values()).items()}


def to_entry(app: App) -> dict[str, Any]:
    """Return ``app`` as the plain data of its entry, which :func:`validation.load` accepts."""
    entry = dataclasses.asdict(app, dict_factory=lambda items: {key: value for key, value in items if value is not None})
    del entry["name"]
    return entry
