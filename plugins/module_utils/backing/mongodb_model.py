"""The variables of the role mongodb: their validation, and the configuration, users and replica set derived from them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Hidden, InvalidDataError, Pattern, Range, parse

#: The administrator, defined in the database ``admin``, which the role creates first and logs in as.
ADMIN = "admin"

#: Files of mongod. The data directory is renamed to its final path only once the data has an administrator.
CONFIG = "/etc/mongodb/mongod.conf"
KEY_FILE = "/etc/mongodb/replica-set.key"
DATA = "/var/lib/mongodb/data"
LOG = "/var/log/mongodb/mongod.log"
PID_FILE = "/run/mongodb/mongod.pid"

#: Any IPv4 address; other addresses must not be bound in addition.
ANY_ADDRESS = str(ipaddress.IPv4Address(0))
LOOPBACK = "127.0.0.1"

#: A member of a replica set: host name or IPv4 address, optionally with a port.
MEMBER = Pattern(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?", "a host name or IPv4 address, with its port unless that is mongodb_port")

NAME = Pattern(r"[^\x00-\x1f/\\. \"$*<>:|?]{1,63}", "a name without blanks, dots, slashes, quotes or any of $*<>:|?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Source of the mongod program."""

    EXACTLY_ONE = ("series", "archive")

    series: Annotated[str, Pattern(r"[0-9]+\.[0-9]+", 'a series of MongoDB in quotes, such as "8.0"')] = ""
    suite: Annotated[str | None, Pattern(r"[a-z]+", "the code name of a release, such as bookworm")] = None
    archive: Annotated[str, Pattern(r".+", "a URL, or a file on the controller")] = ""
    checksum: Annotated[str, Pattern(r"(sha256:[0-9a-f]{64})?", '"sha256:" and 64 digits')] = ""


@dataclass(frozen=True, kw_only=True)
class User:
    """A user of a database, with roles in ``database``, or in another one as ``role@other``."""

    password: Annotated[str, Hidden(), Pattern(r".+", "a non-empty string")]
    database: Annotated[str, NAME]
    roles: Annotated[list[str], Pattern(r"[A-Za-z]\w*(@[^@\s]+)?", "a role, or role@database")] = field(
        default_factory=lambda: ["readWrite"]
    )

    def grants(self) -> list[dict[str, str]]:
        """Return the roles in the format of MongoDB."""
        pairs = ((role, other or self.database) for role, _at, other in (text.partition("@") for text in self.roles))
        return [{"role": role, "db": database} for role, database in pairs]


@dataclass(frozen=True, kw_only=True)
class ReplicaSet:
    """A replica set: its members, and the shared key that authenticates them."""

    name: Annotated[str, Pattern(r"[A-Za-z0-9_-]{1,64}", "letters, digits, - and _")]
    members: Annotated[list[str], MEMBER]
    key: Annotated[str, Hidden(), Pattern(r"[A-Za-z0-9+/=]{6,1024}", "6 to 1024 characters of base64")]


@dataclass(frozen=True, kw_only=True)
class Variables:
    """The variables of the role, without their prefix."""

    source: Source
    addresses: Annotated[list[str], Pattern(r"[0-9A-Za-z.:_-]+", "a name or an address of this host")]
    port: Annotated[int, Range(1, 65535)]
    open_files: Annotated[int, Range(1024, 1_000_000_000)]
    admin_password: Annotated[str, Hidden(), Pattern(r".+", "a non-empty string")]
    users: dict[str, User]
    replica_set: ReplicaSet | None
    member: Annotated[str, MEMBER]
    settings: dict[str, object]
    backup_keep: Annotated[int, Range(1, 10_000)]

    def problems(self) -> Iterator[str]:
        """Yield the contradictions between keys."""
        yield from (f"mongodb_settings.{key}: is set by {name}" for key, name in _reserved_settings(self.settings))
        for name, user in self.users.items():
            if violation := NAME.violation(name):
                yield f"mongodb_users.{name}: {violation}"
            if (name, user.database) == (ADMIN, "admin"):
                yield f"mongodb_users.{name}: is created from mongodb_admin_password; choose another name"
        if not self.replica_set:
            return
        members = self.members()
        if self._address(self.member) not in members:
            yield f"mongodb_replica_set.members: must include this host, {self._address(self.member)} (mongodb_member)"
        yield from (
            f"mongodb_replica_set.members: lists {member} twice" for member in sorted(set(members)) if members.count(member) > 1
        )
        if len(members) > 1 and set(self.addresses) <= {LOOPBACK, "localhost"}:
            yield "mongodb_addresses: must include an address that the other members can reach"

    def members(self) -> list[str]:
        """Return the members of the replica set, each with its port."""
        return [self._address(member) for member in self.replica_set.members] if self.replica_set else []

    def _address(self, member: str) -> str:
        return member if ":" in member else f"{member}:{self.port}"

    def bound(self) -> list[str]:
        """Return the addresses that mongod binds: the listed ones, and the loopback address, over which it is managed."""
        others = [address for address in self.addresses if address not in {LOOPBACK, "localhost"}]
        return [ANY_ADDRESS] if ANY_ADDRESS in others else [LOOPBACK, *others]

    def configuration(self) -> dict[str, Any]:
        """Return the configuration file of mongod."""
        bound = self.bound()
        own: dict[str, Any] = {
            "net": {"bindIp": ",".join(bound), "port": self.port, "unixDomainSocket": {"enabled": False}},
            "security": {"authorization": "enabled"},
            "storage": {"dbPath": DATA},
            "systemLog": {"destination": "file", "path": LOG, "logAppend": True, "logRotate": "reopen"},
            "processManagement": {"fork": True, "pidFilePath": PID_FILE},
            # Otherwise the first client of data without users could create itself an administrator.
            "setParameter": {"enableLocalhostAuthBypass": False},
        }
        if any(":" in address for address in bound):
            own["net"]["ipv6"] = True
        if self.replica_set:
            own["security"]["keyFile"] = KEY_FILE
            own["replication"] = {"replSetName": self.replica_set.name}
        return _merged(own, self.settings)


#: Settings that are reserved, by the variable that defines them, or the role.
_RESERVED = {
    "net.bindIp": "mongodb_addresses",
    "net.bindIpAll": "mongodb_addresses",
    "net.port": "mongodb_port",
    "net.ipv6": "mongodb_addresses",
    "net.unixDomainSocket": "the role",
    "security.authorization": "the role",
    "security.keyFile": "mongodb_replica_set.key",
    "replication.replSetName": "mongodb_replica_set.name",
    "storage.dbPath": "the role",
    "systemLog.destination": "the role",
    "systemLog.path": "the role",
    "systemLog.logAppend": "the role",
    "systemLog.logRotate": "the role",
    "processManagement": "the role",
    "setParameter.enableLocalhostAuthBypass": "the role",
}


def mongodb_plan(variables: Mapping[str, object]) -> dict[str, Any]:
    """Validate the variables of the role (without their prefix), and return the values for its tasks.

    :raises InvalidDataError: with all problems, each with the path of the variable.
    """
    try:
        server = parse(Variables, variables, "mongodb")
    except InvalidDataError as error:
        raise InvalidDataError([f"mongodb_{problem.removeprefix('mongodb.')}" for problem in error.problems]) from error
    if problems := list(server.problems()):
        raise InvalidDataError(problems)
    return {
        "configuration": server.configuration(),
        "addresses": server.bound(),
        "users": {name: {"database": user.database, "roles": user.grants()} for name, user in server.users.items()},
        "passwords": {name: user.password for name, user in server.users.items()},
        "members": server.members(),
        "member": server._address(server.member),
        "key": server.replica_set.key if server.replica_set else "",
        "set": server.replica_set.name if server.replica_set else "",
    }


def bootstrap_configuration(configuration: Mapping[str, Any], data: str, socket: str) -> dict[str, Any]:
    """Return the configuration of mongod for the bootstrap: with new data, and reachable over a single Unix socket only.

    Settings of ``storage``, which determine the layout of the data, are preserved; settings about access are omitted.
    """
    parameters = {
        name: value for name, value in configuration.get("setParameter", {}).items() if name != "enableLocalhostAuthBypass"
    }
    return {
        "storage": {**configuration["storage"], "dbPath": data},
        "security": {"authorization": "enabled"},
        "net": {"bindIp": socket, "unixDomainSocket": {"enabled": False}},
        "setParameter": parameters,
    }


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _reserved_settings(settings: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the reserved settings among ``settings``, with the variable that defines them."""
    for key, value in settings.items():
        full = f"{path}{key}"
        if full in _RESERVED:
            yield full, _RESERVED[full]
        elif isinstance(value, Mapping):
            yield from _reserved_settings(value, f"{full}.")
