"""Service bindings of an app: its databases, locks and logs, and the environment variables with which it connects to them.

The variables of a database are those that Heroku's add-ons established: one connection URI, and its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import DOMAIN, Doc, Hidden, Pattern, Range

#: A host name, an IPv4 address, or an IPv6 address in brackets.
_HOST = rf"({DOMAIN.regex}|\[[0-9a-f:.]+\])"
_PORT = r":(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"

MONGODB_PORT = 27017


@dataclass(frozen=True, kw_only=True)
class MongoDB:
    """A MongoDB database: ``MONGODB_URI``, and its parts in ``MONGODB_HOST`` and so on."""

    hosts: Annotated[
        list[str],
        Doc("Hosts of the database; all members of a replica set. A port other than 27017 follows after a colon."),
        Pattern(rf"{_HOST}({_PORT})?", 'a host, such as "db1.example.com" or "10.0.0.7:27018"'),
    ]
    database: Annotated[
        str,
        Doc("Name of the database."),
        Pattern(r"[^/\\. \x22$*<>:|?\x00]{1,63}", "a name of at most 63 letters, digits, _ or -"),
    ]
    user: Annotated[str | None, Doc("User of the app. Requires C(password).")] = None
    password: Annotated[str | None, Doc("Password of the user; keep it in a vault. Never shown or logged."), Hidden] = None
    auth_database: Annotated[str | None, Doc("Database in which the user is defined; C(database) if unset.")] = None
    replica_set: Annotated[str | None, Doc("Name of the replica set of C(hosts).")] = None

    @property
    def uri(self) -> str:
        """The connection URI, https://www.mongodb.com/docs/manual/reference/connection-string/."""
        user = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@" if self.user else ""
        options = {"authSource": self.auth_database, "replicaSet": self.replica_set}
        query = urlencode({name: value for name, value in options.items() if value})
        return f"mongodb://{user}{','.join(self.hosts)}/{self.database}{'?' if query else ''}{query}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that are not secret."""
        first = urlsplit(f"//{self.hosts[0]}")
        variables = {"HOST": first.hostname, "PORT": str(first.port or MONGODB_PORT), "NAME": self.database, "USER": self.user}
        return {f"MONGODB_{name}": value for name, value in variables.items() if value}

    @property
    def secret_environment(self) -> dict[str, str]:
        """Environment variables that are secret."""
        return {"MONGODB_URI": self.uri} | ({"MONGODB_PASSWORD": self.password} if self.password else {})


@dataclass(frozen=True, kw_only=True)
class Etcd:
    """etcd, for locks across the fleet: ``ETCD_ENDPOINTS``, ``ETCD_USER``, ``ETCD_PASSWORD``, ``ETCD_CA``."""

    endpoints: Annotated[
        list[str],
        Doc("URLs of its members."),
        Pattern(rf"https?://{_HOST}{_PORT}", 'a URL with a port, such as "http://etcd1.example.com:2379"'),
    ]
    user: Annotated[str | None, Doc("User of the app. Requires C(password).")] = None
    password: Annotated[str | None, Doc("Password of the user; keep it in a vault. Never shown or logged."), Hidden] = None
    ca: Annotated[
        str | None,
        Doc("PEM file on the host with the CA certificate for C(endpoints); the CAs of the system if unset."),
        Pattern(r"/.+", "an absolute path"),
    ] = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that are not secret."""
        variables = {"ENDPOINTS": ",".join(self.endpoints), "USER": self.user, "CA": self.ca}
        return {f"ETCD_{name}": value for name, value in variables.items() if value}

    @property
    def secret_environment(self) -> dict[str, str]:
        """Environment variables that are secret."""
        return {"ETCD_PASSWORD": self.password} if self.password else {}


@dataclass(frozen=True, kw_only=True)
class Syslog:
    """A syslog server with UDP, such as that of the role logs: ``LOG_HOST``, ``LOG_PORT``."""

    host: Annotated[str, Doc("Host of the syslog server."), Pattern(_HOST, 'a host, such as "logs.example.com"')]
    port: Annotated[int, Doc("UDP port of the syslog server."), Range(1, 65535)] = 514

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that are not secret."""
        return {"LOG_HOST": self.host, "LOG_PORT": str(self.port)}

    @property
    def secret_environment(self) -> dict[str, str]:
        """No variable is secret."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Services:
    """The services that an app uses."""

    mongodb: Annotated[
        MongoDB | None,
        Doc(
            "A MongoDB database: C(MONGODB_URI), and its parts: C(MONGODB_HOST), C(MONGODB_PORT), C(MONGODB_NAME), "
            "C(MONGODB_USER), C(MONGODB_PASSWORD)."
        ),
    ] = None
    etcd: Annotated[
        Etcd | None,
        Doc("etcd, for locks across the fleet: C(ETCD_ENDPOINTS), comma-separated, C(ETCD_USER), C(ETCD_PASSWORD), C(ETCD_CA)."),
    ] = None
    syslog: Annotated[
        Syslog | None,
        Doc(
            "Syslog over UDP: C(LOG_HOST), C(LOG_PORT). The runner of the collection also sends its logs there, in addition to "
            "the log on its own host."
        ),
    ] = None

    @property
    def configured(self) -> list[MongoDB | Etcd | Syslog]:
        """The services that are set."""
        return [service for service in (self.mongodb, self.etcd, self.syslog) if service]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that are not secret."""
        return {name: value for service in self.configured for name, value in service.environment.items()}

    @property
    def secret_environment(self) -> dict[str, str]:
        """Environment variables that are secret."""
        return {name: value for service in self.configured for name, value in service.secret_environment.items()}


def service_problems(services: Services, path: str) -> Iterator[str]:
    """Yield the contradictions between the keys of each service."""
    for name, service in (("mongodb", services.mongodb), ("etcd", services.etcd)):
        if service and (service.user is None) != (service.password is None):
            yield f"{path}.{name}: requires both user and password; {'password' if service.user else 'user'} is missing"
    if services.mongodb and not services.mongodb.hosts:
        yield f"{path}.mongodb.hosts: is empty; list at least one host"
    if services.mongodb and len(services.mongodb.hosts) > 1 and not services.mongodb.replica_set:
        yield f"{path}.mongodb.replica_set: is missing; several hosts must be members of a replica set"
    if services.mongodb and services.mongodb.auth_database and not services.mongodb.user:
        yield f"{path}.mongodb.auth_database: requires user and password"
    if services.etcd and not services.etcd.endpoints:
        yield f"{path}.etcd.endpoints: is empty; list at least one URL"
    if services.etcd and services.etcd.ca and not all(url.startswith("https:") for url in services.etcd.endpoints):
        yield f"{path}.etcd.ca: requires endpoints that begin with https"
