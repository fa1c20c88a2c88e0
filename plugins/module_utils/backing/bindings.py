"""What an app uses beside its own processes, and how it learns where that is: from its environment, as on a platform.

The variables of a database are those that Heroku's add-ons made common: one address with all in it, and its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import DOMAIN, Doc, Hidden, Pattern, Range

#: A name, an IPv4 address or an IPv6 address in brackets.
_HOST = rf"({DOMAIN.regex}|\[[0-9a-f:.]+\])"
_PORT = r":(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"

MONGODB_PORT = 27017


@dataclass(frozen=True, kw_only=True)
class MongoDB:
    """A database of MongoDB: ``MONGODB_URI``, and its parts in ``MONGODB_HOST`` and so on."""

    hosts: Annotated[
        list[str],
        Doc("Its hosts; all members of a replica set. A port other than 27017 follows after a colon."),
        Pattern(rf"{_HOST}({_PORT})?", 'a host, such as "db1.example.com" or "10.0.0.7:27018"'),
    ]
    database: Annotated[
        str, Doc("The database's name."), Pattern(r"[^/\\. \"$*<>:|?\0]{1,63}", "a name of at most 63 letters, digits, _ or -")
    ]
    user: Annotated[str | None, Doc("Who the app is to the database. Goes with C(password).")] = None
    password: Annotated[str | None, Doc("Belongs in a vault; never shown or logged."), Hidden] = None
    auth_database: Annotated[str | None, Doc("The database that keeps the user; C(database) if unset.")] = None
    replica_set: Annotated[str | None, Doc("Name of the replica set that C(hosts) are members of.")] = None

    @property
    def uri(self) -> str:
        """The connection string, https://www.mongodb.com/docs/manual/reference/connection-string/."""
        user = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@" if self.user else ""
        options = {"authSource": self.auth_database, "replicaSet": self.replica_set}
        query = urlencode({name: value for name, value in options.items() if value})
        return f"mongodb://{user}{','.join(self.hosts)}/{self.database}{'?' if query else ''}{query}"

    @property
    def environment(self) -> dict[str, str]:
        """What an app may show."""
        first = urlsplit(f"//{self.hosts[0]}")
        variables = {"HOST": first.hostname, "PORT": str(first.port or MONGODB_PORT), "NAME": self.database, "USER": self.user}
        return {f"MONGODB_{name}": value for name, value in variables.items() if value}

    @property
    def secret_environment(self) -> dict[str, str]:
        """What nobody else may see."""
        return {"MONGODB_URI": self.uri} | ({"MONGODB_PASSWORD": self.password} if self.password else {})


@dataclass(frozen=True, kw_only=True)
class Etcd:
    """etcd, for locks that hold in the whole fleet: ``ETCD_ENDPOINTS``, ``ETCD_USER``, ``ETCD_PASSWORD``, ``ETCD_CA``."""

    endpoints: Annotated[
        list[str],
        Doc("Addresses of its members."),
        Pattern(rf"https?://{_HOST}{_PORT}", 'an address with a port, such as "http://etcd1.example.com:2379"'),
    ]
    user: Annotated[str | None, Doc("Who the app is to etcd. Goes with C(password).")] = None
    password: Annotated[str | None, Doc("Belongs in a vault; never shown or logged."), Hidden] = None
    ca: Annotated[
        str | None,
        Doc("PEM file on the host with the certificate that has signed those of C(endpoints); the system's if unset."),
        Pattern(r"/.+", "an absolute path"),
    ] = None

    @property
    def environment(self) -> dict[str, str]:
        """What an app may show."""
        variables = {"ENDPOINTS": ",".join(self.endpoints), "USER": self.user, "CA": self.ca}
        return {f"ETCD_{name}": value for name, value in variables.items() if value}

    @property
    def secret_environment(self) -> dict[str, str]:
        """What nobody else may see."""
        return {"ETCD_PASSWORD": self.password} if self.password else {}


@dataclass(frozen=True, kw_only=True)
class Syslog:
    """A syslog daemon that takes datagrams, such as the role logs sets up: ``LOG_HOST``, ``LOG_PORT``."""

    host: Annotated[str, Doc("Its host."), Pattern(_HOST, 'a host, such as "logs.example.com"')]
    port: Annotated[int, Doc("Its UDP port."), Range(1, 65535)] = 514

    @property
    def environment(self) -> dict[str, str]:
        """What an app may show."""
        return {"LOG_HOST": self.host, "LOG_PORT": str(self.port)}

    @property
    def secret_environment(self) -> dict[str, str]:
        """Nothing is secret."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the app uses; each is in its environment."""

    mongodb: Annotated[
        MongoDB | None,
        Doc(
            "A database: C(MONGODB_URI), and its parts: C(MONGODB_HOST), C(MONGODB_PORT), C(MONGODB_NAME), C(MONGODB_USER), "
            "C(MONGODB_PASSWORD)."
        ),
    ] = None
    etcd: Annotated[
        Etcd | None,
        Doc(
            "Locks for the whole fleet: C(ETCD_ENDPOINTS), with commas between them, C(ETCD_USER), C(ETCD_PASSWORD), C(ETCD_CA)."
        ),
    ] = None
    syslog: Annotated[
        Syslog | None,
        Doc(
            "Takes logs by UDP: C(LOG_HOST), C(LOG_PORT). The log of what the collection's runner serves goes there, too, beside "
            "the one on its own host."
        ),
    ] = None

    @property
    def used(self) -> list[MongoDB | Etcd | Syslog]:
        """Those that the app uses."""
        return [service for service in (self.mongodb, self.etcd, self.syslog) if service]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that an app may show."""
        return {name: value for service in self.used for name, value in service.environment.items()}

    @property
    def secret_environment(self) -> dict[str, str]:
        """The variables that nobody else may see."""
        return {name: value for service in self.used for name, value in service.secret_environment.items()}


def service_problems(services: Services, path: str) -> Iterator[str]:
    """Yield what is wrong between the keys of each service."""
    for name, service in (("mongodb", services.mongodb), ("etcd", services.etcd)):
        if service and (service.user is None) != (service.password is None):
            yield f"{path}.{name}: user and password go together; {'password' if service.user else 'user'} is missing"
    if services.mongodb and not services.mongodb.hosts:
        yield f"{path}.mongodb.hosts: is empty; name at least one host"
    if services.mongodb and len(services.mongodb.hosts) > 1 and not services.mongodb.replica_set:
        yield f"{path}.mongodb.replica_set: is missing; several hosts are members of one"
    if services.mongodb and services.mongodb.auth_database and not services.mongodb.user:
        yield f"{path}.mongodb.auth_database: goes with user and password"
    if services.etcd and not services.etcd.endpoints:
        yield f"{path}.etcd.endpoints: is empty; name at least one address"
    if services.etcd and services.etcd.ca and not all(one.startswith("https:") for one in services.etcd.endpoints):
        yield f"{path}.etcd.ca: goes with endpoints that begin with https"
