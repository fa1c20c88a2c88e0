"""A MongoDB client with pymongo (Debian: python3-pymongo): authentication, users and the replica set."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import ADMIN, LOOPBACK
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline

if TYPE_CHECKING:
    from pymongo import MongoClient

    Client = MongoClient[dict[str, Any]]

#: Timeout of requests, and of probes of other members.
RESPONSE_TIMEOUT = 10.0
PROBE_TIMEOUT = 2.0

#: Seconds between two polls.
INTERVAL = 0.5

#: Seconds in which a primary that stepped down is not re-elected.
STEP_DOWN_SECONDS = 60

#: Databases of MongoDB itself.
INTERNAL = frozenset({"admin", "config", "local"})

#: A member in the configuration of a replica set.
Member = dict[str, Any]

#: Error codes of MongoDB (error_codes.yml): failed authentication, and concurrent reconfigurations of a replica set.
AUTHENTICATION_FAILED = 18
RECONFIGURATION_IN_PROGRESS = frozenset({103, 109, 308})

#: The customData of users that the collection manages; only these are ever removed.
MARK = {"managed_by": "funnel.tornado"}


class MongodbError(Exception):
    """mongod does not answer or rejects a request, or its replica set does not reach the desired state; see the message."""


def driver() -> ModuleType:
    """Import and return pymongo, which is available once the role has installed it.

    :raises MongodbError: if it is not installed.
    """
    try:
        import pymongo.errors
    except ImportError as error:
        raise MongodbError(f"python3 on this host has no pymongo; install python3-pymongo: {error}") from error
    return pymongo


def connect(
    address: str, *, login: tuple[str, str, str] | None = None, seconds: float = RESPONSE_TIMEOUT, **options: Any
) -> Client:
    """Return a client of the single server at ``address`` (``host:port``, or the path of a Unix socket), without connecting.

    :arg login: name, password and database of the user.
    :raises MongodbError: if pymongo is not installed.
    """
    user = dict(zip(("username", "password", "authSource"), login or (), strict=False))
    milliseconds = int(seconds * 1000)
    timeouts = {"serverSelectionTimeoutMS": milliseconds, "connectTimeoutMS": milliseconds}
    # All versions of pymongo accept the path of a socket in a URI.
    host = f"mongodb://{urllib.parse.quote(address, safe='')}" if address.startswith("/") else address
    client: Client = driver().MongoClient(host, **{"directConnection": True, **timeouts, **user, **options})
    return client


@contextlib.contextmanager
def wrap_errors(context: str) -> Iterator[None]:
    """Convert errors of pymongo to `MongodbError`, prefixed with ``context``."""
    errors = driver().errors
    try:
        yield
    except errors.PyMongoError as error:
        # pymongo appends the full response of the server and the topology.
        message = str(error).partition(", full error:")[0].partition(", Timeout:")[0]
        raise MongodbError(f"{context}: {message}") from error


def can_log_in(address: str, login: tuple[str, str, str]) -> bool:
    """Return whether the server accepts the password of a user.

    :raises MongodbError: if the server does not answer.
    """
    errors = driver().errors
    with wrap_errors(f"{address} does not answer"), contextlib.closing(connect(address, login=login)) as client:
        try:
            client.admin.command("ping")
        except errors.OperationFailure as error:
            if error.code != AUTHENTICATION_FAILED:
                raise
            return False
    return True


def working_password(address: str, passwords: Iterable[str]) -> str:
    """Return the first of ``passwords`` that is valid for the administrator.

    :raises MongodbError: if none is.
    """
    for password in passwords:
        if can_log_in(address, (ADMIN, password, "admin")):
            return password
    raise MongodbError(
        f"mongodb_admin_password: mongod at {address} rejects it for the user {ADMIN}, as well as the password stored on this "
        "host; set the password that was used last, or change it manually in mongod"
    )


def hello(address: str, seconds: float = RESPONSE_TIMEOUT) -> dict[str, Any]:
    """Return the result of the command ``hello``: the role of a server in its replica set; needs no authentication.

    :raises MongodbError: if the server does not answer.
    """
    with wrap_errors(f"{address} does not answer"), contextlib.closing(connect(address, seconds=seconds)) as client:
        return dict(client.admin.command("hello"))


@dataclass
class Changes:
    """The changes that were made, or would be, as lines of a diff."""

    before: list[str]
    after: list[str]

    @property
    def changed(self) -> bool:
        """Whether there are changes."""
        return bool(self.before or self.after)


class ReplicaSet:
    """A replica set, managed from one of its members."""

    def __init__(self, name: str, members: Sequence[str], own: str, local: str, passwords: Sequence[str], *, wait: float) -> None:
        """Store the parameters without connecting.

        :arg own: this member, as in ``members``.
        :arg local: address of this member for local connections.
        :arg passwords: candidates for the password of the administrator.
        :arg wait: timeout in seconds until the replica set reaches the desired state.
        """
        self._name = name
        self._members = members
        self._own = own
        self._local = local
        self._passwords = passwords
        self._deadline = Deadline(wait)

    def converge(self, changes: Changes, *, check_mode: bool) -> None:
        """Initiate or join the replica set, wait until this member is in sync, and remove members that are not desired.

        :raises MongodbError: after the timeout.
        """
        if not self._is_member(hello(self._local)):
            changes.after.append(f"member {self._own}\n")
            if check_mode:
                return
            self._join()
        self._wait_until_in_sync()
        for member in sorted(set(hello(self._local).get("hosts", ())) - set(self._members)):
            changes.before.append(f"member {member}\n")
            if not check_mode:
                self._step_down(member)
                self._reconfigure(self.primary(), functools.partial(_without, member))

    def primary(self) -> str:
        """Wait for a primary that accepts writes and return its address; other members may report a former one.

        :raises MongodbError: after the timeout.
        """
        while True:
            for member in (self._local, *(member for member in self._members if member != self._own)):
                with contextlib.suppress(MongodbError):
                    state = hello(member, PROBE_TIMEOUT)
                    reported = state.get("primary") if state.get("setName") == self._name else None
                    if reported and hello(reported, PROBE_TIMEOUT).get("isWritablePrimary"):
                        return str(reported)
            self._pause(f"the replica set {self._name} has no primary; are more than half of its members up?")

    def _step_down(self, member: str) -> None:
        """Make the member step down if it is the primary, which cannot be removed."""
        errors = driver().errors
        while self.primary() == member:
            with self._admin(member, f"{member} does not step down, so it cannot be removed from {self._name}") as client:
                try:
                    client.admin.command("replSetStepDown", STEP_DOWN_SECONDS)
                except (errors.AutoReconnect, errors.OperationFailure):  # it has stepped down, or no other member is in sync
                    if self._deadline.expired:
                        raise
            self._pause(f"{member} is still the primary of the replica set {self._name}")

    def _is_member(self, state: Mapping[str, Any]) -> bool:
        if state.get("setName", self._name) != self._name:
            raise MongodbError(
                f"mongodb_replica_set.name: this host is a member of {state['setName']}, and replica sets cannot be renamed"
            )
        return self._own in (*state.get("hosts", ()), *state.get("passives", ()))

    def _join(self) -> None:
        """Initiate the replica set if this is its first member and no other has one; otherwise add this member to it."""
        while not any((others := {member: has_replica_set(member) for member in self._members if member != self._own}).values()):
            if self._own != self._members[0]:
                self._pause(
                    f"{self._members[0]} has not initiated the replica set {self._name}; provision it first, or both together"
                )
            elif unreachable := [member for member, has_set in others.items() if has_set is None]:
                self._pause(
                    f"mongodb_replica_set.members: {', '.join(unreachable)} cannot be reached, so the replica set {self._name} "
                    "may already exist, and a second one must not be initiated; allow this host to connect to them, or remove "
                    "them from the list"
                )
            else:
                config = {"_id": self._name, "version": 1, "members": [{"_id": 0, "host": self._own}]}
                with self._admin(self._local, f"the replica set {self._name} cannot be initiated") as client:
                    client.admin.command("replSetInitiate", config)
                return
        self._reconfigure(self.primary(), self._with_own)

    def _with_own(self, members: list[Member]) -> list[Member]:
        if any(member["host"] == self._own for member in members):
            return members
        return [*members, {"_id": max(member["_id"] for member in members) + 1, "host": self._own}]

    def _reconfigure(self, primary: str, change: Callable[[list[Member]], list[Member]]) -> None:
        """Apply ``change`` to the members of the replica set; MongoDB allows one change at a time."""
        errors = driver().errors
        while True:
            with self._admin(primary, f"the replica set {self._name} cannot be reconfigured at {primary}") as client:
                config = client.admin.command("replSetGetConfig")["config"]
                desired = change(config["members"])
                if desired == config["members"]:
                    return
                config.update(version=config["version"] + 1, members=desired)
                try:
                    client.admin.command("replSetReconfig", config)
                except errors.AutoReconnect:  # it has just become the primary, or stepped down
                    if self._deadline.expired:
                        raise
                except errors.OperationFailure as error:
                    if error.code not in RECONFIGURATION_IN_PROGRESS or self._deadline.expired:
                        raise
            self._pause(f"the replica set {self._name} does not accept its new configuration")
            primary = self.primary()

    def _wait_until_in_sync(self) -> None:
        while True:
            state = hello(self._local)
            if state.get("isWritablePrimary") or state.get("secondary"):
                return
            self._pause(f"{self._own} is neither primary nor secondary of the replica set {self._name} yet")

    @contextlib.contextmanager
    def _admin(self, address: str, context: str) -> Iterator[Client]:
        password = working_password(address, self._passwords)
        with wrap_errors(context), contextlib.closing(connect(address, login=(ADMIN, password, "admin"))) as client:
            yield client

    def _pause(self, problem: str) -> None:
        """Wait for the next poll, or raise the problem after the timeout."""
        if self._deadline.expired:
            raise MongodbError(problem)
        time.sleep(INTERVAL)


def has_replica_set(member: str) -> bool | None:
    """Return whether a host is in a replica set; False if it refuses connections, None if it cannot be reached."""
    host, _colon, port = member.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PROBE_TIMEOUT).close()
        return "setName" in hello(member, PROBE_TIMEOUT)
    except ConnectionRefusedError:
        return False
    except (OSError, MongodbError):
        return None


def require_no_data_loss(address: str, password: str, own: str, members: Sequence[str]) -> None:
    """Require that a standalone mongod has no data that it would lose by joining a replica set.

    :raises MongodbError: if it has.
    """
    login = (ADMIN, password, "admin")
    with wrap_errors(f"the databases of {address} cannot be listed"), contextlib.closing(connect(address, login=login)) as client:
        databases = sorted(set(client.list_database_names()) - INTERNAL)
    if databases and (own != members[0] or any(has_replica_set(member) is not False for member in members if member != own)):
        raise MongodbError(
            f"mongodb_replica_set.members: {own} has databases, {', '.join(databases)}, and would lose them by joining the "
            "replica set; list it first in a new set whose other hosts are up, or back the databases up and drop them"
        )


def _without(host: str, members: list[Member]) -> list[Member]:
    return [member for member in members if member["host"] != host]


def converge_users(
    client: Client,
    address: str,
    desired: Mapping[str, Mapping[str, Any]],
    passwords: Mapping[str, str],
    changes: Changes,
    *,
    check_mode: bool,
) -> list[str]:
    """Create, update and remove users so that they match the desired ones; return descriptions of unmanaged users.

    Unmanaged users, which the collection has not created, are not changed.

    :arg client: client of the administrator at ``address``, which must accept writes.
    :raises MongodbError: with the error of the server, for example about an unknown role.
    """
    with wrap_errors("mongodb_users cannot be read"):
        listed = client.admin.command("usersInfo", {"forAllDBs": True})["users"]
    found = {(user["user"], user["db"]): user for user in listed}
    for name, user in desired.items():
        existing = found.get((name, user["database"]))
        if existing and _grants(existing["roles"]) == _grants(user["roles"]) and _is_managed(existing):
            if can_log_in(address, (name, passwords[name], user["database"])):
                continue
            changes.before.append(f"{describe(name, user)}\n")
            changes.after.append(f"{describe(name, user)}, with a new password\n")
        else:
            changes.before.extend(
                [f"{describe(name, {'database': existing['db'], 'roles': existing['roles']})}\n"] if existing else []
            )
            changes.after.append(f"{describe(name, user)}\n")
        if not check_mode:
            with wrap_errors(f"mongodb_users.{name}"):
                client[user["database"]].command(
                    "updateUser" if existing else "createUser",
                    name,
                    pwd=passwords[name],
                    roles=list(user["roles"]),
                    customData=MARK,
                )
    kept = {(name, user["database"]) for name, user in desired.items()}
    for (name, database), user in found.items():
        if _is_managed(user) and (name, database) not in kept:
            changes.before.append(f"{describe(name, {'database': database, 'roles': user['roles']})}\n")
            if not check_mode:
                with wrap_errors(f"the user {name} of {database} cannot be removed"):
                    client[database].command("dropUser", name)
    unmanaged = {key: user for key, user in found.items() if not _is_managed(user) and key not in kept | {(ADMIN, "admin")}}
    return [describe(name, {"database": database, "roles": user["roles"]}) for (name, database), user in unmanaged.items()]


def describe(name: str, user: Mapping[str, Any]) -> str:
    """Return a description of a user, without the password."""
    roles = ", ".join(sorted(f"{role['role']}@{role['db']}" for role in user["roles"]))
    return f"user {name} of {user['database']}: {roles}"


def local_address(port: int) -> str:
    """Return the address of mongod on this host."""
    return f"{LOOPBACK}:{port}"


def _grants(roles: Iterable[Mapping[str, str]]) -> set[tuple[str, str]]:
    return {(role["role"], role["db"]) for role in roles}


def _is_managed(user: Mapping[str, Any]) -> bool:
    return dict(user.get("customData") or {}) == MARK
