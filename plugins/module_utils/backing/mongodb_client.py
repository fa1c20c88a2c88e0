"""Talking to mongod with pymongo, which Debian has as python3-pymongo: logging in, users, the replica set."""

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

if TYPE_CHECKING:
    from pymongo import MongoClient

    Client = MongoClient[dict[str, Any]]

#: Seconds in which a server has to answer, and in which another member of a set has to show that it is there.
RESPONSE_TIMEOUT = 10.0
PROBE_TIMEOUT = 2.0

#: Seconds between two looks at something that is waited for.
INTERVAL = 0.5

#: Seconds in which a primary that has handed over does not become one again.
STEP_DOWN_SECONDS = 60

#: Databases that every server has.
INTERNAL = frozenset({"admin", "config", "local"})

#: A member as a set's configuration has it.
Member = dict[str, Any]

#: Error codes of MongoDB (its error_codes.yml): a login that fails, and a configuration of a set that is still on its way.
AUTHENTICATION_FAILED = 18
BEING_CONFIGURED = frozenset({103, 109, 308})

#: Marks, in a user's customData, those that are from the inventory, so that these alone are ever removed.
MARK = {"managed_by": "funnel.tornado"}


class MongodbError(Exception):
    """mongod does not answer, refuses, or its set does not come about. The message says which."""


def driver() -> ModuleType:
    """Return pymongo, which a host has only once the role has installed it.

    :raises MongodbError: when it has none.
    """
    try:
        import pymongo.errors
    except ImportError as error:
        raise MongodbError(f"this host's python3 has no pymongo; install python3-pymongo: {error}") from error
    return pymongo


def connect(
    address: str, *, login: tuple[str, str, str] | None = None, seconds: float = RESPONSE_TIMEOUT, **options: Any
) -> Client:
    """Return a client of the server at ``address`` (``host:port``, or the path of a unix socket), and of no other of its set.

    :arg login: name, password and the database of the user.
    :raises MongodbError: when the host has no pymongo. Nothing is sent yet.
    """
    user = dict(zip(("username", "password", "authSource"), login or (), strict=False))
    milliseconds = int(seconds * 1000)
    timeouts = {"serverSelectionTimeoutMS": milliseconds, "connectTimeoutMS": milliseconds}
    # Only in a URI does each version take a path for a socket.
    host = f"mongodb://{urllib.parse.quote(address, safe='')}" if address.startswith("/") else address
    client: Client = driver().MongoClient(host, **{"directConnection": True, **timeouts, **user, **options})
    return client


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Raise what pymongo raises as a `MongodbError` that says what was being done."""
    errors = driver().errors
    try:
        yield
    except errors.PyMongoError as error:
        # pymongo appends the server's whole answer, and the topology.
        words = str(error).partition(", full error:")[0].partition(", Timeout:")[0]
        raise MongodbError(f"{doing}: {words}") from error


def can_log_in(address: str, login: tuple[str, str, str]) -> bool:
    """Say whether a user's password is right.

    :raises MongodbError: when the server does not answer.
    """
    errors = driver().errors
    with explained(f"{address} does not answer"), contextlib.closing(connect(address, login=login)) as client:
        try:
            client.admin.command("ping")
        except errors.OperationFailure as error:
            if error.code != AUTHENTICATION_FAILED:
                raise
            return False
    return True


def working_password(address: str, passwords: Iterable[str]) -> str:
    """Return the first of ``passwords`` with which the administrator can log in.

    :raises MongodbError: when there is none.
    """
    for password in passwords:
        if can_log_in(address, (ADMIN, password, "admin")):
            return password
    raise MongodbError(
        f"mongodb_admin_password: mongod at {address} refuses it for the user {ADMIN}, and what this host remembers as well; "
        "set the one that it was last given, or change it there by hand"
    )


def hello(address: str, seconds: float = RESPONSE_TIMEOUT) -> dict[str, Any]:
    """Return what a server says of itself and its set; nobody has to log in for that.

    :raises MongodbError: when it does not answer.
    """
    with explained(f"{address} does not answer"), contextlib.closing(connect(address, seconds=seconds)) as client:
        return dict(client.admin.command("hello"))


@dataclass
class Changes:
    """What was done, or would be; a line each, as a diff shows it."""

    before: list[str]
    after: list[str]

    @property
    def changed(self) -> bool:
        """Whether there is anything."""
        return bool(self.before or self.after)


class ReplicaSet:
    """A replica set as one of its members sees it, which is the one that is being provisioned."""

    def __init__(self, name: str, members: Sequence[str], me: str, local: str, passwords: Sequence[str], *, wait: float) -> None:
        """Look at nothing yet.

        :arg local: this member's address for itself.
        :arg passwords: what may be the administrator's.
        :arg wait: seconds in which the set has to be what it should be.
        """
        self._name = name
        self._members = members
        self._me = me
        self._local = local
        self._passwords = passwords
        self._give_up = time.monotonic() + wait

    def converge(self, changes: Changes, *, check_mode: bool) -> None:
        """See that the set is there, that this host is in it and has all data, and that nobody else is who should not be.

        :raises MongodbError: when that takes too long.
        """
        if not self._is_member(hello(self._local)):
            changes.after.append(f"member {self._me}\n")
            if check_mode:
                return
            self._join()
        self._wait_for_data()
        unwanted = set(hello(self._local).get("hosts", ())) - set(self._members)
        if unwanted:
            changes.before.extend(f"member {one}\n" for one in sorted(unwanted))
            if not check_mode:
                for one in sorted(unwanted):
                    self._dismiss(one)
                    self._reconfigure(self.primary(), functools.partial(_without, one))

    def primary(self) -> str:
        """Return the address of the primary, as soon as there is one that takes writes: others may name one that was it.

        :raises MongodbError: when there is none in time.
        """
        while True:
            for member in (self._local, *(one for one in self._members if one != self._me)):
                with contextlib.suppress(MongodbError):
                    said = hello(member, PROBE_TIMEOUT)
                    named = said.get("primary") if said.get("setName") == self._name else None
                    if named and hello(named, PROBE_TIMEOUT).get("isWritablePrimary"):
                        return str(named)
            self._pause(f"the replica set {self._name} has no primary; are more than half of its members up?")

    def _dismiss(self, member: str) -> None:
        """Let another member be the primary, which cannot leave the set."""
        errors = driver().errors
        while self.primary() == member:
            with self._admin(member, f"{member} does not hand over, so it cannot be taken out of {self._name}") as client:
                try:
                    client.admin.command("replSetStepDown", STEP_DOWN_SECONDS)
                except (errors.AutoReconnect, errors.OperationFailure):  # it is no longer; nobody else has all data yet
                    if time.monotonic() > self._give_up:
                        raise
            self._pause(f"{member} is the primary of the replica set {self._name} still")

    def _is_member(self, said: Mapping[str, Any]) -> bool:
        if said.get("setName", self._name) != self._name:
            raise MongodbError(f"mongodb_replica_set.name: this host is in {said['setName']}, and sets cannot be renamed")
        return self._me in (*said.get("hosts", ()), *said.get("passives", ()))

    def _join(self) -> None:
        """Begin the set if this is its first member and nobody else has one; else let the primary add this member."""
        while not any((others := {one: is_in_a_set(one) for one in self._members if one != self._me}).values()):
            if self._me != self._members[0]:
                self._pause(f"{self._members[0]} has not begun the replica set {self._name}; provision it first, or together")
            elif silent := [one for one, known in others.items() if known is None]:
                self._pause(
                    f"{', '.join(silent)} of mongodb_replica_set.members cannot be asked whether the replica set {self._name} "
                    "is there already, and a second one must not be begun; let this host reach its port, or take it out"
                )
            else:
                config = {"_id": self._name, "version": 1, "members": [{"_id": 0, "host": self._me}]}
                with self._admin(self._local, f"the replica set {self._name} cannot be begun") as client:
                    client.admin.command("replSetInitiate", config)
                return
        self._reconfigure(self.primary(), self._with_me)

    def _with_me(self, members: list[Member]) -> list[Member]:
        if any(member["host"] == self._me for member in members):
            return members
        return [*members, {"_id": max(member["_id"] for member in members) + 1, "host": self._me}]

    def _reconfigure(self, primary: str, change: Callable[[list[Member]], list[Member]]) -> None:
        """Give the set the members that ``change`` makes of its own; a change at a time, as MongoDB wants it."""
        errors = driver().errors
        while True:
            with self._admin(primary, f"the replica set {self._name} cannot be changed at {primary}") as client:
                config = client.admin.command("replSetGetConfig")["config"]
                wanted = change(config["members"])
                if wanted == config["members"]:
                    return
                config.update(version=config["version"] + 1, members=wanted)
                try:
                    client.admin.command("replSetReconfig", config)
                except errors.AutoReconnect:  # it has just become the primary, or is it no longer
                    if time.monotonic() > self._give_up:
                        raise
                except errors.OperationFailure as error:
                    if error.code not in BEING_CONFIGURED or time.monotonic() > self._give_up:
                        raise
            self._pause(f"the replica set {self._name} does not take its new configuration")
            primary = self.primary()

    def _wait_for_data(self) -> None:
        while True:
            said = hello(self._local)
            if said.get("isWritablePrimary") or said.get("secondary"):
                return
            self._pause(f"{self._me} is neither primary nor secondary of the replica set {self._name} yet")

    @contextlib.contextmanager
    def _admin(self, address: str, doing: str) -> Iterator[Client]:
        password = working_password(address, self._passwords)
        with explained(doing), contextlib.closing(connect(address, login=(ADMIN, password, "admin"))) as client:
            yield client

    def _pause(self, waiting_for: str) -> None:
        if time.monotonic() > self._give_up:
            raise MongodbError(waiting_for)
        time.sleep(INTERVAL)


def is_in_a_set(member: str) -> bool | None:
    """Say whether a host is in a replica set, which it is not while it refuses connections; None if it cannot be asked."""
    host, _colon, port = member.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PROBE_TIMEOUT).close()
        return "setName" in hello(member, PROBE_TIMEOUT)
    except ConnectionRefusedError:
        return False
    except (OSError, MongodbError):
        return None


def refuse_loss(address: str, password: str, me: str, members: Sequence[str]) -> None:
    """See that a mongod, which is in no replica set yet, has no data that it would lose to those of a set that it joins.

    :raises MongodbError: when it has.
    """
    login = (ADMIN, password, "admin")
    with explained(f"the databases of {address} cannot be listed"), contextlib.closing(connect(address, login=login)) as client:
        own = sorted(set(client.list_database_names()) - INTERNAL)
    if own and (me != members[0] or any(is_in_a_set(one) is not False for one in members if one != me)):
        raise MongodbError(
            f"mongodb_replica_set.members: {me} has databases of its own, {', '.join(own)}, and would lose them to those of the "
            "set; name it first in a new set, whose other hosts are up, or make a backup and drop them"
        )


def _without(host: str, members: list[Member]) -> list[Member]:
    return [member for member in members if member["host"] != host]


def converge_users(
    client: Client,
    address: str,
    wanted: Mapping[str, Mapping[str, Any]],
    passwords: Mapping[str, str],
    changes: Changes,
    *,
    check_mode: bool,
) -> list[str]:
    """See that the users are there, with their roles and passwords, and that those that the inventory no longer has are not.

    Return what describes users that somebody else has made, who are left alone.

    :arg client: the administrator's, of the server at ``address``, which takes writes.
    :raises MongodbError: in the server's words, such as those about a role that does not exist.
    """
    with explained("mongodb_users cannot be read"):
        listed = client.admin.command("usersInfo", {"forAllDBs": True})["users"]
    found = {(user["user"], user["db"]): user for user in listed}
    for name, user in wanted.items():
        have = found.get((name, user["database"]))
        if have and _grants(have["roles"]) == _grants(user["roles"]) and _is_marked(have):
            if can_log_in(address, (name, passwords[name], user["database"])):
                continue
            changes.before.append(f"{describe(name, user)}\n")
            changes.after.append(f"{describe(name, user)}, with another password\n")
        else:
            changes.before.extend([f"{describe(name, {'database': have['db'], 'roles': have['roles']})}\n"] if have else [])
            changes.after.append(f"{describe(name, user)}\n")
        if not check_mode:
            with explained(f"mongodb_users.{name}"):
                client[user["database"]].command(
                    "updateUser" if have else "createUser",
                    name,
                    pwd=passwords[name],
                    roles=list(user["roles"]),
                    customData=MARK,
                )
    kept = {(name, user["database"]) for name, user in wanted.items()}
    for (name, database), user in found.items():
        if _is_marked(user) and (name, database) not in kept:
            changes.before.append(f"{describe(name, {'database': database, 'roles': user['roles']})}\n")
            if not check_mode:
                with explained(f"the user {name} of {database} cannot be removed"):
                    client[database].command("dropUser", name)
    others = {key: user for key, user in found.items() if not _is_marked(user) and key not in kept | {(ADMIN, "admin")}}
    return [describe(name, {"database": database, "roles": user["roles"]}) for (name, database), user in others.items()]


def describe(name: str, user: Mapping[str, Any]) -> str:
    """Return a line about a user, without the password."""
    roles = ", ".join(sorted(f"{one['role']}@{one['db']}" for one in user["roles"]))
    return f"user {name} of {user['database']}: {roles}"


def local_address(port: int) -> str:
    """Return the address of this host's own mongod."""
    return f"{LOOPBACK}:{port}"


def _grants(roles: Iterable[Mapping[str, str]]) -> set[tuple[str, str]]:
    return {(one["role"], one["db"]) for one in roles}


def _is_marked(user: Mapping[str, Any]) -> bool:
    return dict(user.get("customData") or {}) == MARK
