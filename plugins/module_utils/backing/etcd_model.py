"""An etcd cluster: membership, users and permissions.

It is managed over the JSON gateway (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/) of etcd 3.4 and newer, which takes
passwords neither as command-line arguments nor from files.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import retry
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import url_host

CLIENT_PORT = 2379
PEER_PORT = 2380

#: Timeout of a request to a member.
TIMEOUT = 5.0

#: Timeout for a new member to catch up, and for a cluster to become healthy.
CATCH_UP_TIMEOUT = 60.0

#: Key that changes with each revoked permission. Members restart once per value, as etcd checks only when a watch is opened.
REVOKED_KEY = "funnel.tornado/revoked"

#: Calls that revoke a permission.
REVOKING = frozenset({"auth/user/delete", "auth/user/revoke", "auth/role/delete", "auth/role/revoke", "auth/enable"})

#: Passes until users match the desired state; more than two are needed only if someone else changes them.
MAX_PASSES = 5

#: Errors of membership changes until a learner has caught up, or all voting members have been connected for 5 s
#: (HealthInterval in etcd's server.go), for example after a restart.
TEMPORARY_ERRORS = ("in sync with leader", "unhealthy cluster")


class EtcdError(Exception):
    """etcd rejects a request, or the desired state is invalid. The message holds the fix."""


class UnreachableError(EtcdError):
    """A member does not answer."""


@dataclass(frozen=True)
class Client:
    """A client of one member.

    ``ca`` is the PEM certificate of the authority that issued the member's; ``insecure`` accepts any certificate.
    """

    url: str
    ca: str = ""
    insecure: bool = False
    token: str = field(default="", repr=False)

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """POST ``body`` to ``/v3/<path>`` and return the response.

        :raises UnreachableError: if the member does not answer.
        :raises EtcdError: with the error of etcd.
        """
        return self._request("POST", f"/v3/{path}", body)

    def version(self) -> str:
        """Return the cluster version, such as ``3.4.0``.

        :raises EtcdError: as for `call`.
        """
        return str(self._request("GET", "/version")["etcdcluster"])

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
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
        url = urlsplit(self.url)
        host = url.hostname or ""
        if url.scheme == "http":
            return HTTPConnection(host, url.port, timeout=TIMEOUT)
        context = ssl.create_default_context(cadata=self.ca or None)
        # Accept the CA certificates that etcd and its clients accept; Python 3.13 is stricter by default.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return HTTPSConnection(host, url.port, timeout=TIMEOUT, context=context)

    def login(self, name: str, password: str) -> Client:
        """Return a client authenticated as ``name``; this one if authentication is disabled.

        :raises EtcdError: as for `call`, and if the password is wrong.
        """
        try:
            return dataclasses.replace(self, token=self.call("auth/authenticate", name=name, password=password)["token"])
        except EtcdError as error:
            if "authentication is not enabled" in str(error):
                return self
            raise


# Members


@dataclass(frozen=True)
class Cluster:
    """The desired cluster from the view of the member ``name``: addresses by name; the first member founds the cluster."""

    name: str
    members: Mapping[str, str]
    tls: bool = False
    ca: str = ""
    root_password: str = field(default="", repr=False)

    @property
    def scheme(self) -> str:
        """URL scheme of all members."""
        return "https" if self.tls else "http"

    def peer_url(self, name: str) -> str:
        """Return the peer URL of a member."""
        return f"{self.scheme}://{url_host(self.members[name])}:{PEER_PORT}"

    def client(self, name: str) -> Client:
        """Return a client of a member at its address."""
        return Client(f"{self.scheme}://{url_host(self.members[name])}:{CLIENT_PORT}", self.ca)

    @property
    def local(self) -> Client:
        """Client of the member on this host."""
        return Client(f"{self.scheme}://127.0.0.1:{CLIENT_PORT}", self.ca)

    @property
    def local_previous_scheme(self) -> Client:
        """The same with the other scheme, in case ``tls`` has changed; it sends no secrets, so any certificate is accepted."""
        return Client(f"{'http' if self.tls else 'https'}://127.0.0.1:{CLIENT_PORT}", insecure=True)

    @property
    def others(self) -> list[str]:
        """Names of the other members."""
        return [name for name in self.members if name != self.name]

    def any_other(self) -> Client:
        """Return a client of another member that answers.

        :raises UnreachableError: if none does, with the reason for each.
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
    """The state of this host in the cluster, and ETCD_INITIAL_CLUSTER for its first start.

    ``member``: it has been started before. ``learner``: the same, but without a vote yet. ``founder``: it founds the cluster.
    ``joining``: it is registered and not started yet. ``alone``: it is the only member, and no other one is desired.
    """

    state: Literal["member", "learner", "founder", "joining"]
    changed: bool = False
    initial_cluster: str = ""
    warnings: Sequence[str] = ()
    alone: bool = False


def register_member(cluster: Cluster, data: Path, version: str, *, running: bool = True, check_mode: bool = False) -> Membership:
    """Register this host as a member if there is a cluster, and return its membership.

    The host is added as a non-voting learner, so the quorum is not affected if it never starts.

    :arg data: data directory of etcd on this host.
    :arg version: version of etcd on this host.
    :arg running: whether etcd is running; otherwise its port is not queried, since any process could listen there.
    :raises EtcdError: if the host cannot be added.
    """
    membership = _current_membership(cluster, running=running) if (data / "member").is_dir() else None
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
        if check_mode:  # the founder has not been started either
            warning = f"etcd_members: {cluster.name} will join once another member answers; currently none does: {error}"
            return Membership("joining", changed=True, initial_cluster=own, warnings=[warning])
        raise EtcdError(
            f"etcd_members: {cluster.name} cannot join because no other member answers. Provision {first} first, then the others "
            f"one at a time (serial: 1): {error}"
        ) from error
    _require_version(other, version)
    return _join(cluster, other, check_mode=check_mode)


def _require_certificates(cluster: Cluster) -> None:
    """Require TLS between members if there are passwords: without certificates the peer port bypasses authentication."""
    if cluster.others and cluster.root_password and not cluster.tls:
        raise EtcdError(
            "etcd_tls: is missing; several members with passwords require it, because otherwise anyone with access to port "
            f"{PEER_PORT} of a member can write all data, including users"
        )


def _current_membership(cluster: Cluster, *, running: bool) -> Membership:
    """Return the membership of a host that has data."""
    for client in (cluster.local, cluster.local_previous_scheme) if running else ():
        with contextlib.suppress(UnreachableError):
            return _parse_membership(cluster, client.call("cluster/member/list"))
    return Membership("member", alone=not cluster.others)  # to be started; a later run can query it


def _parse_membership(cluster: Cluster, response: Mapping[str, Any]) -> Membership:
    """Return the membership of this host from the member list of its own etcd."""
    own = next(member for member in response["members"] if member["ID"] == response["header"]["member_id"])
    desired = cluster.peer_url(cluster.name)
    if own.get("name") and own["peerURLs"] != [desired]:
        raise EtcdError(
            f"etcd_members.{cluster.name}: is registered in the cluster as {own['peerURLs'][0]}, not {desired}. Revert its "
            f"address or etcd_tls, or update the member first: etcdctl member update {int(own['ID']):x} --peer-urls={desired}"
        )
    unlisted = [member for member in response["members"] if member.get("name") not in (*cluster.members, None, "")]
    return Membership(
        "learner" if own.get("isLearner") else "member",
        warnings=[
            f"the cluster has a member {member['name']} that is not in etcd_members; "
            f"if it is gone permanently, run: etcdctl member remove {int(member['ID']):x}"
            for member in unlisted
        ],
        alone=not cluster.others and len(response["members"]) == 1,
    )


def _require_version(other: Client, version: str) -> None:
    """Refuse versions that etcd would reject at its start: it joins clusters of its own or the previous minor version."""
    current, own = (tuple(map(int, text.split(".")[:2])) for text in (other.version(), version))
    if not current <= own <= (current[0], current[1] + 1):
        raise EtcdError(
            f"this host has etcd {version}, but the cluster version is {current[0]}.{current[1]}: a member needs that version "
            "or, during an upgrade of the cluster, the next one. Debian 12 has 3.4, Debian 13 has 3.5"
        )


def _join(cluster: Cluster, other: Client, *, check_mode: bool) -> Membership:
    url = cluster.peer_url(cluster.name)
    root = other.login("root", cluster.root_password)
    members = root.call("cluster/member/list")["members"]
    own = [member for member in members if member.get("name") == cluster.name or member["peerURLs"] == [url]]
    # A member without a name was added but never started. A named one has lost its data and must be replaced.
    lost = [member for member in own if member.get("name")]
    changed = bool(lost) or not own
    if changed and not check_mode:
        for member in lost:
            _call_with_retries(root, "cluster/member/remove", ID=member["ID"])
        members = _call_with_retries(root, "cluster/member/add", peerURLs=[url], isLearner=True)["members"]
    others = [
        f"{member['name']}={peer}"
        for member in members
        if member.get("name") and member not in lost
        for peer in member["peerURLs"]
    ]
    return Membership("joining", changed=changed, initial_cluster=",".join([*others, f"{cluster.name}={url}"]))


def promote_learner(cluster: Cluster) -> None:
    """Promote this host from learner to voting member, once it has caught up.

    :raises EtcdError: if it does not catch up, or no other member answers.
    """
    root = cluster.any_other().login("root", cluster.root_password)
    for member in root.call("cluster/member/list")["members"]:
        if member.get("name") == cluster.name and member.get("isLearner"):
            _call_with_retries(root, "cluster/member/promote", ID=member["ID"])


def _call_with_retries(root: Client, path: str, **body: Any) -> dict[str, Any]:
    """Call etcd, and retry after temporary errors."""
    return retry(
        lambda: root.call(path, **body),
        EtcdError,
        lambda error: any(message in str(error) for message in TEMPORARY_ERRORS),
        timeout=CATCH_UP_TIMEOUT,
        interval=0.5,
    )


# Users


@dataclass(frozen=True)
class User:
    """A user with read and write permission for keys with one of ``prefixes``; the empty prefix matches all keys."""

    password: str = field(repr=False)
    prefixes: Sequence[str]


#: Options of a user in the arguments of modules.
USER_OPTIONS = {
    "name": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "prefixes": {"type": "list", "elements": "str", "required": True},
}


def users_by_name(entries: Sequence[Mapping[str, Any]]) -> dict[str, User]:
    """Return the users in the arguments of a module."""
    return {entry["name"]: User(entry["password"], entry["prefixes"]) for entry in entries}


def key_range(prefix: str) -> dict[str, str]:
    """Return the key range of a permission for ``prefix``; the end is exclusive.

    >>> base64.b64decode(key_range("/shop/")["range_end"])
    b'/shop0'
    """
    key = prefix.encode()
    end = key.rstrip(b"\xff")
    if not end:  # a zero byte is the lowest key; as an end it means no limit
        return {"key": _base64(b"\0"), "range_end": _base64(b"\0")}
    return {"key": _base64(key), "range_end": _base64(end[:-1] + bytes([end[-1] + 1]))}


def _base64(text: bytes) -> str:
    return base64.b64encode(text).decode()


@dataclass(frozen=True)
class UserChanges:
    """The changes to users that were made, or would be, and the value of `REVOKED_KEY`, empty if none was ever revoked."""

    done: Sequence[str] = ()
    revoked: str = ""


def apply_users(
    client: Client, root_password: str, users: Mapping[str, User], *, reachable: bool = True, check_mode: bool = False
) -> UserChanges:
    """Converge the users of etcd to root and ``users``, each with a role of its own only, and enable authentication.

    Concurrent changes by others before authentication was enabled are reverted.

    :arg reachable: whether anyone but root could have connected; watches from before then require a restart of etcd.
    :raises EtcdError: if ``root_password`` is wrong or missing.
    """
    if users and not root_password:
        raise EtcdError("etcd_users: requires etcd_root_password; without it etcd does not enforce authentication")
    done: list[str] = []
    for _pass in range(MAX_PASSES):
        root = _as_root(client, root_password)
        if not root_password:
            return UserChanges()
        steps = list(_steps(client, root, root_password, users, enabled=bool(root.token)))
        revoking = reachable and any(path in REVOKING for _change, path, _body in steps)
        done += [change for change, _path, _body in steps]
        if check_mode or not steps:
            return UserChanges(done, "(generated by the run)" if revoking else _revoked(root))
        if revoking:
            _mark_revoked(root)
        for _change, path, body in steps:
            root.call(path, **body)
        if revoking and not root.token:  # before authentication was enabled, anyone could have removed the key
            _mark_revoked(_as_root(client, root_password))
    raise EtcdError(f"etcd_users: another client changes users at the same time; the last change was: {done[-1]}")


def _revoked(root: Client) -> str:
    found = root.call("kv/range", key=_base64(REVOKED_KEY.encode())).get("kvs", [])
    return base64.b64decode(found[0]["value"]).decode(errors="replace") if found else ""


def _mark_revoked(root: Client) -> None:
    root.call("kv/put", key=_base64(REVOKED_KEY.encode()), value=_base64(secrets.token_hex(8).encode()))


def clear_revoked(root: Client) -> None:
    """Remove the key where no watch can be open, as in a new cluster."""
    root.call("kv/deleterange", key=_base64(REVOKED_KEY.encode()))


def _as_root(client: Client, password: str) -> Client:
    try:
        return client.login("root", password)
    except UnreachableError:
        raise
    except EtcdError as error:
        problem = "is not the password of root" if password else "is missing, but the cluster requires it"
        raise EtcdError(f"etcd_root_password: {problem}; to change it, run etcdctl user passwd root ({error})") from error


Step = tuple[str, str, dict[str, Any]]  # the description of a change, and the path and body of its API call


def _steps(client: Client, root: Client, root_password: str, users: Mapping[str, User], *, enabled: bool) -> Iterator[Step]:
    found = set(root.call("auth/user/list").get("users", []))
    roles = set(root.call("auth/role/list").get("roles", []))
    if not enabled:
        yield from _root_steps(found, roles, root_password)
    for name, user in users.items():
        if name not in roles:
            yield f"add role {name}", "auth/role/add", {"name": name}
        granted = root.call("auth/role/get", role=name).get("perm", []) if name in roles else []
        yield from _permission_steps(name, granted, user.prefixes)
        if name not in found:
            yield f"add user {name}", "auth/user/add", {"name": name, "password": user.password}
        elif not enabled or not _is_password(client, name, user.password):
            yield f"change the password of {name}", "auth/user/changepw", {"name": name, "password": user.password}
        yield from _role_steps(name, root.call("auth/user/get", name=name).get("roles", []) if name in found else [])
    for name in sorted(found - users.keys() - {"root"}):
        yield f"remove user {name}", "auth/user/delete", {"name": name}
    for name in sorted(roles - users.keys() - {"root"}):
        yield f"remove role {name}", "auth/role/delete", {"role": name}
    if not enabled:
        yield "enable authentication", "auth/enable", {}


def _root_steps(found: set[str], roles: set[str], password: str) -> Iterator[Step]:
    verb = ("change the password of", "changepw") if "root" in found else ("add user", "add")
    yield f"{verb[0]} root", f"auth/user/{verb[1]}", {"name": "root", "password": password}
    if "root" not in roles:
        yield "add role root", "auth/role/add", {"name": "root"}
    yield "grant root its role", "auth/user/grant", {"user": "root", "role": "root"}


def _role_steps(name: str, granted: Sequence[str]) -> Iterator[Step]:
    if name not in granted:
        yield f"grant {name} its role", "auth/user/grant", {"user": name, "role": name}
    for role in sorted(set(granted) - {name}):
        yield f"revoke the role {role} from {name}", "auth/user/revoke", {"name": name, "role": role}


def _permission_steps(role: str, granted: Sequence[Mapping[str, str]], prefixes: Sequence[str]) -> Iterator[Step]:
    desired = {prefix: {"permType": "READWRITE", **key_range(prefix)} for prefix in prefixes}
    for permission in granted:
        if permission not in desired.values():
            key = base64.b64decode(permission.get("key", "")).decode(errors="replace")
            ends = {name: permission[name] for name in ("key", "range_end") if name in permission}
            yield f"revoke {key!r} from {role}", "auth/role/revoke", {"role": role, **ends}
    for prefix, permission in desired.items():
        if permission not in granted:
            yield f"grant {prefix!r} to {role}", "auth/role/grant", {"name": role, "perm": permission}


def _is_password(client: Client, name: str, password: str) -> bool:
    try:
        client.login(name, password)
    except UnreachableError:
        raise
    except EtcdError:
        return False
    return True


def parse_version(output: str) -> str:
    """Return the version from the output of ``etcd --version``.

    :raises EtcdError: if there is none.
    """
    if match := re.search(r"^etcd Version: (\d+\.\d+\.\d+)", output, re.MULTILINE):
        return match[1]
    raise EtcdError(f"etcd --version prints no version: {output[:200]}")
