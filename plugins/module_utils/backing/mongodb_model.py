"""What the variables of the role mongodb may hold, and what mongod and its users are then like."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import Hidden, InvalidDataError, Pattern, Range, parse

#: The user that the role makes first and logs in as, in the database ``admin``.
ADMIN = "admin"

#: Where mongod's files are. The data are in a directory of their own, which takes its place only when it has an administrator.
CONFIG = "/etc/mongodb/mongod.conf"
KEY_FILE = "/etc/mongodb/replica-set.key"
DATA = "/var/lib/mongodb/data"
LOG = "/var/log/mongodb/mongod.log"
PID_FILE = "/run/mongodb/mongod.pid"

#: Listens on every IPv4 address, so that no other may be named.
ANY_ADDRESS = str(ipaddress.IPv4Address(0))
LOOPBACK = "127.0.0.1"

#: A host of a replica set: name or IPv4 address, and maybe a port.
MEMBER = Pattern(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?", "a host's name or IPv4 address, and its port unless that is mongodb_port")

NAME = Pattern(r"[^\x00-\x1f/\\. \"$*<>:|?]{1,63}", "a name without blanks, dots, slashes, quotes or any of $*<>:|?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where mongod is from."""

    EXACTLY_ONE = ("series", "archive")

    series: Annotated[str, Pattern(r"[0-9]+\.[0-9]+", 'a series of MongoDB in quotes, such as "8.0"')] = ""
    suite: Annotated[str | None, Pattern(r"[a-z]+", "the code name of a release, such as bookworm")] = None
    archive: Annotated[str, Pattern(r".+", "a URL, or a file on the controller")] = ""
    checksum: Annotated[str, Pattern(r"(sha256:[0-9a-f]{64})?", '"sha256:" and 64 digits')] = ""


@dataclass(frozen=True, kw_only=True)
class User:
    """A user of a database: ``roles`` are those of ``database`` itself, or ``role@other``."""

    password: Annotated[str, Hidden(), Pattern(r".+", "a text that is not empty")]
    database: Annotated[str, NAME]
    roles: Annotated[list[str], Pattern(r"[A-Za-z]\w*(@[^@\s]+)?", "a role, or role@database")] = field(
        default_factory=lambda: ["readWrite"]
    )

    def grants(self) -> list[dict[str, str]]:
        """Return the roles as MongoDB writes them."""
        pairs = ((role, other or self.database) for role, _at, other in (one.partition("@") for one in self.roles))
        return [{"role": role, "db": database} for role, database in pairs]


@dataclass(frozen=True, kw_only=True)
class ReplicaSet:
    """A replica set: the hosts, and the secret by which they know each other."""

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
    admin_password: Annotated[str, Hidden(), Pattern(r".+", "a text that is not empty")]
    users: dict[str, User]
    replica_set: ReplicaSet | None
    member: Annotated[str, MEMBER]
    settings: dict[str, object]
    backup_keep: Annotated[int, Range(1, 10_000)]

    def problems(self) -> Iterator[str]:
        """Yield what no single key is wrong about."""
        yield from (f"mongodb_settings.{key}: is set by {name}" for key, name in _taken(self.settings))
        for name, user in self.users.items():
            if violation := NAME.violation(name):
                yield f"mongodb_users.{name}: {violation}"
            if (name, user.database) == (ADMIN, "admin"):
                yield f"mongodb_users.{name}: is made from mongodb_admin_password; choose another name"
        if not self.replica_set:
            return
        members = self.members()
        if self._address(self.member) not in members:
            yield f"mongodb_replica_set.members: must have this host, {self._address(self.member)} (mongodb_member)"
        yield from (f"mongodb_replica_set.members: has {one} twice" for one in sorted(set(members)) if members.count(one) > 1)
        if len(members) > 1 and set(self.addresses) <= {LOOPBACK, "localhost"}:
            yield "mongodb_addresses: must have one that the other members reach"

    def members(self) -> list[str]:
        """Return the members of the replica set, each with its port."""
        return [self._address(one) for one in self.replica_set.members] if self.replica_set else []

    def _address(self, member: str) -> str:
        return member if ":" in member else f"{member}:{self.port}"

    def bound(self) -> list[str]:
        """Return the addresses that mongod binds: those named, and this host's own, by which it is looked after."""
        others = [one for one in self.addresses if one not in {LOOPBACK, "localhost"}]
        return [ANY_ADDRESS] if ANY_ADDRESS in others else [LOOPBACK, *others]

    def configuration(self) -> dict[str, Any]:
        """Return mongod's configuration file."""
        bound = self.bound()
        own: dict[str, Any] = {
            "net": {"bindIp": ",".join(bound), "port": self.port, "unixDomainSocket": {"enabled": False}},
            "security": {"authorization": "enabled"},
            "storage": {"dbPath": DATA},
            "systemLog": {"destination": "file", "path": LOG, "logAppend": True, "logRotate": "reopen"},
            "processManagement": {"fork": True, "pidFilePath": PID_FILE},
            # Without it, whoever comes first to data that have lost their users would be the administrator.
            "setParameter": {"enableLocalhostAuthBypass": False},
        }
        if any(":" in one for one in bound):
            own["net"]["ipv6"] = True
        if self.replica_set:
            own["security"]["keyFile"] = KEY_FILE
            own["replication"] = {"replSetName": self.replica_set.name}
        return _merged(own, self.settings)


#: Settings that follow from other variables, or from how the role runs mongod.
_OWN = {
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


def plan(variables: Mapping[str, object]) -> dict[str, Any]:
    """Return what the role needs, made from its variables (without their prefix).

    :raises InvalidDataError: with every mistake, each with the path of the variable.
    """
    try:
        server = parse(Variables, variables, "mongodb")
    except InvalidDataError as error:
        raise InvalidDataError([f"mongodb_{one.removeprefix('mongodb.')}" for one in error.problems]) from error
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
    """Return how mongod runs to get its administrator: on new data, and reached by one unix socket alone.

    What decides how data are laid out (``storage``) is as it will be; what others are let in by is left out.
    """
    parameters = {k: v for k, v in configuration.get("setParameter", {}).items() if k != "enableLocalhostAuthBypass"}
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


def _taken(settings: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that are not the user's to make, with what makes them."""
    for key, value in settings.items():
        where = f"{path}{key}"
        if where in _OWN:
            yield where, _OWN[where]
        elif isinstance(value, Mapping):
            yield from _taken(value, f"{where}.")
