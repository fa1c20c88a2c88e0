"""A cluster of etcd: who its members are, and who may read and write what.

It is asked by its JSON interface (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/), which etcd 3.4 and newer have, and
where a password is neither an argument of a program nor in a file.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import re
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

CLIENT_PORT = 2379
PEER_PORT = 2380

#: Seconds that a member may take to answer.
TIMEOUT = 5.0

#: Seconds in which a new member has to catch up with the others, and they with each other.
CATCH_UP_SECONDS = 60.0

#: The key that says when somebody lost a permission last; with authentication on it is root's. Each member restarts once for each
#: value, as etcd asks for permissions when a watch is opened, and never again.
REVOKED = "funnel.tornado/revoked"

#: Calls by which somebody loses a permission.
REVOKING = frozenset({"auth/user/delete", "auth/user/revoke", "auth/role/delete", "auth/role/revoke", "auth/enable"})

#: How often users are looked at until nothing is left to change; more than two, while somebody else changes them.
PASSES = 5

#: What etcd refuses a change of members by until a learner has caught up, or all that vote have been connected for 5 s
#: (HealthInterval in etcd's server.go): one may have been restarted a moment ago.
PASSING = ("in sync with leader", "unhealthy cluster")


class EtcdError(Exception):
    """etcd refuses what is wanted, or what is wanted makes no sense. The message says what would."""


class UnreachableError(EtcdError):
    """A member does not answer."""


@dataclass(frozen=True)
class Client:
    """One member, as its clients see it.

    ``ca`` is the PEM text of who has signed its certificate; ``insecure`` takes any certificate.
    """

    url: str
    ca: str = ""
    insecure: bool = False
    token: str = field(default="", repr=False)

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """Return the answer to a POST of ``body`` to ``/v3/<path>``.

        :raises UnreachableError: when there is none.
        :raises EtcdError: in etcd's words.
        """
        return self._ask("POST", f"/v3/{path}", body)

    def version(self) -> str:
        """Return the version that the whole cluster speaks, such as ``3.4.0``.

        :raises EtcdError: as for `call`.
        """
        return str(self._ask("GET", "/version")["etcdcluster"])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            with contextlib.closing(self._connection()) as connection:
                content = None if body is None else json.dumps(body)
                connection.request(method, path, content, {"Authorization": self.token} if self.token else {})
                response = connection.getresponse()
                text = response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"etcd at {self.url} does not answer: {error}") from error
        try:
            answer = dict(json.loads(text))
        except ValueError:
            answer = {"message": text.strip()[:200]}
        if response.status != HTTPStatus.OK:
            raise EtcdError(f"etcd at {self.url}: {answer.get('message', response.reason)}")
        return answer

    def _connection(self) -> HTTPConnection:
        place = urlsplit(self.url)
        host = place.hostname or ""
        if place.scheme == "http":
            return HTTPConnection(host, place.port, timeout=TIMEOUT)
        context = ssl.create_default_context(cadata=self.ca or None)
        # What etcd and its clients take is good enough; Python 3.13 asks for more of an authority than they do.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return HTTPSConnection(host, place.port, timeout=TIMEOUT, context=context)

    def login(self, name: str, password: str) -> Client:
        """Return a client that is ``name``; the same one where authentication is off.

        :raises EtcdError: as for `call`, and when it is the wrong password.
        """
        try:
            return dataclasses.replace(self, token=self.call("auth/authenticate", name=name, password=password)["token"])
        except EtcdError as error:
            if "authentication is not enabled" in str(error):
                return self
            raise


# Members


def url_host(address: str) -> str:
    """Return an address as a URL has it: that of IPv6 is in brackets."""
    return f"[{address}]" if ":" in address else address


@dataclass(frozen=True)
class Cluster:
    """The members as they are wanted: addresses by name, the first of them the one that founds the cluster."""

    name: str
    members: Mapping[str, str]
    tls: bool = False
    ca: str = ""
    root_password: str = field(default="", repr=False)

    @property
    def scheme(self) -> str:
        """How members are reached."""
        return "https" if self.tls else "http"

    def peer_url(self, name: str) -> str:
        """Return where the other members reach this one."""
        return f"{self.scheme}://{url_host(self.members[name])}:{PEER_PORT}"

    def client(self, name: str) -> Client:
        """Return a member, as seen from the others."""
        return Client(f"{self.scheme}://{url_host(self.members[name])}:{CLIENT_PORT}", self.ca)

    @property
    def local(self) -> Client:
        """The member on this host."""
        return Client(f"{self.scheme}://127.0.0.1:{CLIENT_PORT}", self.ca)

    @property
    def local_before(self) -> Client:
        """The same, should ``tls`` have changed since it was started. It is told no secrets: any certificate will do."""
        return Client(f"{'http' if self.tls else 'https'}://127.0.0.1:{CLIENT_PORT}", insecure=True)

    @property
    def others(self) -> list[str]:
        """Names of the other members."""
        return [name for name in self.members if name != self.name]

    def any_other(self) -> Client:
        """Return another member that answers.

        :raises UnreachableError: when there is none, saying of each why.
        """
        reasons = []
        for name in self.others:
            try:
                self.client(name).call("cluster/member/list")
            except UnreachableError as error:
                reasons.append(str(error))
            else:
                return self.client(name)
        raise UnreachableError("; ".join(reasons))


@dataclass(frozen=True)
class Membership:
    """How this host belongs to the cluster, and what etcd has to be told at its first start.

    ``member``: it has been started before. ``learner``: the same, but it has no vote yet. ``founder``: the cluster begins
    with it. ``joining``: the cluster knows of it. ``alone``: it is the only member, and no other one is wanted.
    """

    state: Literal["member", "learner", "founder", "joining"]
    changed: bool = False
    initial_cluster: str = ""
    warnings: Sequence[str] = ()
    alone: bool = False


def register_member(cluster: Cluster, data: Path, version: str, *, runs: bool = True, check_mode: bool = False) -> Membership:
    """See that the cluster knows of this host, if there is a cluster.

    A host is added as a learner, which has no vote: should it never start, the others can still agree.

    :arg data: the directory of etcd's data on this host.
    :arg version: of etcd on this host.
    :arg runs: whether etcd does; whoever listens at its port otherwise is not asked.
    :raises EtcdError: when it cannot be added.
    """
    membership = _look(cluster, runs=runs) if (data / "member").is_dir() else None
    _require_certificates(cluster)
    if membership:
        return membership
    first = next(iter(cluster.members))
    try:
        other = cluster.any_other()
    except UnreachableError as error:
        own = f"{cluster.name}={cluster.peer_url(cluster.name)}"
        if cluster.name == first:
            return Membership("founder", initial_cluster=own, alone=not cluster.others)
        if check_mode:  # the one that founds the cluster has not been started either
            warning = f"etcd_members: {cluster.name} joins when another member answers; now none does: {error}"
            return Membership("joining", changed=True, initial_cluster=own, warnings=[warning])
        raise EtcdError(
            f"etcd_members: {cluster.name} has no member to join. {first} comes first, and the others follow one "
            f"after the other (serial: 1): {error}"
        ) from error
    _require_version(other, version)
    return _join(cluster, other, check_mode=check_mode)


def _require_certificates(cluster: Cluster) -> None:
    """Refuse passwords that anybody gets around who reaches the members' port, which asks for certificates or for nothing."""
    if cluster.others and cluster.root_password and not cluster.tls:
        raise EtcdError(
            f"etcd_tls: is missing; several members with passwords need it, as whoever reaches port {PEER_PORT} of one may write "
            "anything otherwise, users included"
        )


def _look(cluster: Cluster, *, runs: bool) -> Membership:
    for client in (cluster.local, cluster.local_before) if runs else ():
        with contextlib.suppress(UnreachableError):
            return _judge(cluster, client.call("cluster/member/list"))
    return Membership("member", alone=not cluster.others)  # it is to be started; then there is something to look at


def _judge(cluster: Cluster, found: Mapping[str, Any]) -> Membership:
    """Return how this host belongs to the cluster, by what its own etcd says of the members."""
    own = next(one for one in found["members"] if one["ID"] == found["header"]["member_id"])
    wanted = cluster.peer_url(cluster.name)
    if own.get("name") and own["peerURLs"] != [wanted]:
        raise EtcdError(
            f"etcd_members.{cluster.name}: the cluster knows it as {own['peerURLs'][0]}, not {wanted}. Set its address, or "
            f"etcd_tls, back; or move it first: etcdctl member update {int(own['ID']):x} --peer-urls={wanted}"
        )
    unknown = [one for one in found["members"] if one.get("name") not in (*cluster.members, None, "")]
    return Membership(
        "learner" if own.get("isLearner") else "member",
        warnings=[
            f"the cluster has a member {one['name']}, which etcd_members does not name; "
            f"if it is gone for good: etcdctl member remove {int(one['ID']):x}"
            for one in unknown
        ],
        alone=not cluster.others and len(found["members"]) == 1,
    )


def _require_version(other: Client, version: str) -> None:
    """Refuse what etcd itself would refuse at its start: data of the next minor version; or of one too long ago."""
    spoken, own = (tuple(map(int, text.split(".")[:2])) for text in (other.version(), version))
    if not spoken <= own <= (spoken[0], spoken[1] + 1):
        raise EtcdError(
            f"this host has etcd {version}, and the cluster speaks {spoken[0]}.{spoken[1]}: a member needs that version or, "
            "while the cluster is being upgraded, the next one. Debian 12 has 3.4, Debian 13 has 3.5"
        )


def _join(cluster: Cluster, other: Client, *, check_mode: bool) -> Membership:
    url = cluster.peer_url(cluster.name)
    root = other.login("root", cluster.root_password)
    members = root.call("cluster/member/list")["members"]
    mine = [one for one in members if one.get("name") == cluster.name or one["peerURLs"] == [url]]
    # One without a name was added and never started. One with a name has lost its data, and can never be the same again.
    lost = [one for one in mine if one.get("name")]
    changed = bool(lost) or not mine
    if changed and not check_mode:
        for one in lost:
            _insist(root, "cluster/member/remove", ID=one["ID"])
        members = _insist(root, "cluster/member/add", peerURLs=[url], isLearner=True)["members"]
    known = [f"{one['name']}={peer}" for one in members if one.get("name") and one not in lost for peer in one["peerURLs"]]
    return Membership("joining", changed=changed, initial_cluster=",".join([*known, f"{cluster.name}={url}"]))


def promote_learner(cluster: Cluster) -> None:
    """Give a member that has caught up with the others its vote.

    :raises EtcdError: when it does not catch up, or no other member answers.
    """
    root = cluster.any_other().login("root", cluster.root_password)
    for one in root.call("cluster/member/list")["members"]:
        if one.get("name") == cluster.name and one.get("isLearner"):
            _insist(root, "cluster/member/promote", ID=one["ID"])


def _insist(root: Client, path: str, **body: Any) -> dict[str, Any]:
    """Call it, and again while etcd refuses it for what passes by itself."""
    end = time.monotonic() + CATCH_UP_SECONDS
    while True:
        try:
            return root.call(path, **body)
        except EtcdError as error:
            if not any(words in str(error) for words in PASSING) or time.monotonic() > end:
                raise
        time.sleep(0.5)


# Users


@dataclass(frozen=True)
class User:
    """Who may read and write the keys that begin with one of ``prefixes``; the empty one is all keys."""

    password: str = field(repr=False)
    prefixes: Sequence[str]


def key_range(prefix: str) -> dict[str, str]:
    """Return the range of keys that begin with ``prefix``, as a permission has it: from, up to but without.

    >>> base64.b64decode(key_range("/shop/")["range_end"])
    b'/shop0'
    """
    key = prefix.encode()
    end = key.rstrip(b"\xff")
    if not end:  # a zero byte is the first of all keys, and as an end it is none
        return {"key": _base64(b"\0"), "range_end": _base64(b"\0")}
    return {"key": _base64(key), "range_end": _base64(end[:-1] + bytes([end[-1] + 1]))}


def _base64(text: bytes) -> str:
    return base64.b64encode(text).decode()


@dataclass(frozen=True)
class Applied:
    """What was done about users, or would be, and the value of `REVOKED`: empty if nobody has ever lost a permission."""

    done: Sequence[str] = ()
    revoked: str = ""


def apply_users(
    client: Client, root_password: str, users: Mapping[str, User], *, served: bool = True, check_mode: bool = False
) -> Applied:
    """Make root and ``users`` all the users there are, with their own roles alone, and have etcd ask everybody for a password.

    What somebody else changes until it asks for passwords is changed back.

    :arg served: whether anybody but root could have reached this etcd; what is open there is then to be ended by a restart.
    :raises EtcdError: when ``root_password`` is not root's, or is missing.
    """
    if users and not root_password:
        raise EtcdError("etcd_users: goes with etcd_root_password; without one etcd asks nobody for a password")
    done: list[str] = []
    for _pass in range(PASSES):
        root = _as_root(client, root_password)
        if not root_password:
            return Applied()
        steps = list(_changes(client, root, root_password, users, is_on=bool(root.token)))
        revoking = served and any(path in REVOKING for _change, path, _body in steps)
        done += [change for change, _path, _body in steps]
        if check_mode or not steps:
            return Applied(done, "to be chosen" if revoking else _revoked(root))
        if revoking:
            _mark_revoked(root)
        for _change, path, body in steps:
            root.call(path, **body)
        if revoking and not root.token:  # until it asked for passwords anybody could remove the mark
            _mark_revoked(_as_root(client, root_password))
    raise EtcdError(f"etcd_users: somebody else changes users at the same time; the last change was to {done[-1]}")


def _revoked(root: Client) -> str:
    found = root.call("kv/range", key=_base64(REVOKED.encode())).get("kvs", [])
    return base64.b64decode(found[0]["value"]).decode(errors="replace") if found else ""


def _mark_revoked(root: Client) -> None:
    root.call("kv/put", key=_base64(REVOKED.encode()), value=_base64(secrets.token_hex(8).encode()))


def clear_revoked(root: Client) -> None:
    """Remove the mark, where nothing from before can be open."""
    root.call("kv/deleterange", key=_base64(REVOKED.encode()))


def _as_root(client: Client, password: str) -> Client:
    try:
        return client.login("root", password)
    except UnreachableError:
        raise
    except EtcdError as error:
        wrong = "is not the password of root" if password else "is missing, and the cluster asks for it"
        raise EtcdError(f"etcd_root_password: {wrong}; it is changed by etcdctl user passwd root ({error})") from error


Step = tuple[str, str, dict[str, Any]]
"""What is done, in words, and the call that does it."""


def _changes(client: Client, root: Client, root_password: str, users: Mapping[str, User], *, is_on: bool) -> Iterator[Step]:
    found = set(root.call("auth/user/list").get("users", []))
    roles = set(root.call("auth/role/list").get("roles", []))
    if not is_on:
        yield from _root_steps(found, roles, root_password)
    for name, user in users.items():
        if name not in roles:
            yield f"add role {name}", "auth/role/add", {"name": name}
        granted = root.call("auth/role/get", role=name).get("perm", []) if name in roles else []
        yield from _permission_steps(name, granted, user.prefixes)
        if name not in found:
            yield f"add user {name}", "auth/user/add", {"name": name, "password": user.password}
        elif not is_on or not _is_password(client, name, user.password):
            yield f"change the password of {name}", "auth/user/changepw", {"name": name, "password": user.password}
        yield from _role_steps(name, root.call("auth/user/get", name=name).get("roles", []) if name in found else [])
    for name in sorted(found - users.keys() - {"root"}):
        yield f"remove user {name}", "auth/user/delete", {"name": name}
    for name in sorted(roles - users.keys() - {"root"}):
        yield f"remove role {name}", "auth/role/delete", {"role": name}
    if not is_on:
        yield "ask everybody for a password", "auth/enable", {}


def _root_steps(found: set[str], roles: set[str], password: str) -> Iterator[Step]:
    verb = ("change the password of", "changepw") if "root" in found else ("add user", "add")
    yield f"{verb[0]} root", f"auth/user/{verb[1]}", {"name": "root", "password": password}
    if "root" not in roles:
        yield "add role root", "auth/role/add", {"name": "root"}
    yield "give root its role", "auth/user/grant", {"user": "root", "role": "root"}


def _role_steps(name: str, given: Sequence[str]) -> Iterator[Step]:
    if name not in given:
        yield f"give {name} its role", "auth/user/grant", {"user": name, "role": name}
    for role in sorted(set(given) - {name}):
        yield f"take the role {role} from {name}", "auth/user/revoke", {"name": name, "role": role}


def _permission_steps(role: str, granted: Sequence[Mapping[str, str]], prefixes: Sequence[str]) -> Iterator[Step]:
    wanted = {prefix: {"permType": "READWRITE", **key_range(prefix)} for prefix in prefixes}
    for permission in granted:
        if permission not in wanted.values():
            key = base64.b64decode(permission.get("key", "")).decode(errors="replace")
            ends = {name: permission[name] for name in ("key", "range_end") if name in permission}
            yield f"take {key!r} from {role}", "auth/role/revoke", {"role": role, **ends}
    for prefix, permission in wanted.items():
        if permission not in granted:
            yield f"give {prefix!r} to {role}", "auth/role/grant", {"name": role, "perm": permission}


def _is_password(client: Client, name: str, password: str) -> bool:
    try:
        client.login(name, password)
    except UnreachableError:
        raise
    except EtcdError:
        return False
    return True


def own_version(output: str) -> str:
    """Return the version that ``etcd --version`` prints.

    :raises EtcdError: when it is something else.
    """
    if match := re.search(r"^etcd Version: (\d+\.\d+\.\d+)", output, re.MULTILINE):
        return match[1]
    raise EtcdError(f"etcd --version says something else than a version: {output[:200]}")
