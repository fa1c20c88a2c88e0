"""Membership and users of etcd, against a fake of its JSON gateway."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.backing import etcd_model
from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    Client,
    Cluster,
    EtcdError,
    Membership,
    UnreachableError,
    User,
    UserChanges,
    apply_users,
    key_range,
    parse_version,
    register_member,
)
from tests.support.pki import Authority


class Fake(ThreadingHTTPServer):
    """A fake etcd with configured responses that records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        #: Responses after authentication was enabled.
        self.enabled: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def enable_tls(self, directory: Path) -> None:
        """Serve TLS with the certificate of an unknown authority."""
        Authority("unknown", datetime.now(UTC)).leaf("a", "127.0.0.1").write(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: Any) -> None:
        """Suppress the output."""

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.server_port}")


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v3/")
        self.server.requests.append((path, body))
        self.answer(self.server.answers.get(path, {}))
        if path == "auth/enable":
            self.server.answers |= self.server.enabled

    def do_GET(self) -> None:
        self.answer(self.server.answers.get(self.path, {}))

    def answer(self, answer: Any) -> None:
        self.send_response(400 if "message" in answer else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Suppress the output."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with Fake() as server:
        monkeypatch.setattr(etcd_model, "CLIENT_PORT", server.server_port)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.answers = {"/version": {"etcdcluster": "3.4.0"}, "auth/authenticate": {"message": "authentication is not enabled"}}
        yield server
        server.shutdown()


def member(name: str, number: int, host: str, **more: Any) -> dict[str, Any]:
    return {"ID": str(number), "name": name, "peerURLs": [f"http://{host}:2380"], **more}


def cluster(name: str, **members: str) -> Cluster:
    return Cluster(name, members)


def changes(fake: Fake) -> list[tuple[str, dict[str, Any]]]:
    """Return the requests that change something."""
    return [
        (path, body) for path, body in fake.requests if path.rpartition("/")[2] not in ("list", "get", "range", "authenticate")
    ]


@pytest.mark.parametrize(
    ("prefix", "start", "end"),
    [("/shop/", b"/shop/", b"/shop0"), ("a", b"a", b"b"), ("ü", b"\xc3\xbc", b"\xc3\xbd"), ("", b"\0", b"\0")],
)
def test_key_range_covers_a_prefix(prefix: str, start: bytes, end: bytes) -> None:
    assert {name: base64.b64decode(text) for name, text in key_range(prefix).items()} == {"key": start, "range_end": end}


def test_parse_version_reads_the_output_of_etcd() -> None:
    assert parse_version("etcd Version: 3.4.23\nGit SHA: Not provided\n") == "3.4.23"
    with pytest.raises(EtcdError, match="prints no version: bash"):
        parse_version("bash")


class TestMembership:
    def test_first_member_founds_the_cluster(self, tmp_path: Path) -> None:
        found = register_member(cluster("a", a="127.0.0.1", b="127.0.0.9"), tmp_path, "3.4.23")
        assert found == Membership("founder", initial_cluster="a=http://127.0.0.1:2380")
        assert register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23").alone

    def test_other_members_do_not_found_a_cluster(self, tmp_path: Path) -> None:
        with pytest.raises(
            EtcdError,
            match=r"b cannot join because no other member answers\. Provision a first, .*\(serial: 1\): etcd at http://127\.0\.0\.9:",
        ):
            register_member(cluster("b", a="127.0.0.9", b="127.0.0.1"), tmp_path, "3.4.23")

    def test_check_mode_warns_that_no_member_answers_yet(self, tmp_path: Path) -> None:
        found = register_member(cluster("b", a="127.0.0.9", b="127.0.0.1"), tmp_path, "3.4.23", check_mode=True)
        assert (found.state, found.changed) == ("joining", True)
        assert found.warnings[0].startswith(
            "etcd_members: b will join once another member answers; currently none does: etcd at http://127"
        )

    def test_other_members_join_as_learners(self, fake: Fake, tmp_path: Path) -> None:
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1")]}
        fake.answers["cluster/member/add"] = {
            "members": [member("a", 1, "127.0.0.1"), member("", 2, "127.0.0.2", isLearner=True)]
        }
        expected = Membership("joining", changed=True, initial_cluster="a=http://127.0.0.1:2380,b=http://127.0.0.2:2380")
        assert register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.5.16", check_mode=True) == expected
        assert changes(fake) == []
        assert register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.5.16") == expected
        assert changes(fake) == [("cluster/member/add", {"peerURLs": ["http://127.0.0.2:2380"], "isLearner": True})]

    def test_registered_member_is_not_added_again(self, fake: Fake, tmp_path: Path) -> None:
        members = [member("a", 1, "127.0.0.1"), {"ID": "2", "peerURLs": ["http://127.0.0.2:2380"], "isLearner": True}]
        fake.answers["cluster/member/list"] = {"members": members}
        found = register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")
        assert found == Membership("joining", initial_cluster="a=http://127.0.0.1:2380,b=http://127.0.0.2:2380")
        assert changes(fake) == []

    def test_member_without_its_data_is_replaced(self, fake: Fake, tmp_path: Path) -> None:
        lost = member("b", 2, "127.0.0.2")
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1"), lost]}
        fake.answers["cluster/member/add"] = {"members": [member("a", 1, "127.0.0.1"), member("", 3, "127.0.0.2")]}
        found = register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")
        assert found.initial_cluster == "a=http://127.0.0.1:2380,b=http://127.0.0.2:2380"
        assert [path for path, _ in changes(fake)] == ["cluster/member/remove", "cluster/member/add"]
        assert changes(fake)[0][1] == {"ID": "2"}

    def test_temporarily_unhealthy_cluster_is_retried(self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1")]}
        fake.answers["cluster/member/add"] = {"message": "etcdserver: unhealthy cluster"}

        def healthy(_: float) -> None:
            fake.answers["cluster/member/add"] = {"members": [member("a", 1, "127.0.0.1")]}

        monkeypatch.setattr("time.sleep", healthy)
        register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")
        assert [path for path, _ in changes(fake)] == ["cluster/member/add"] * 2

    def test_retries_end_after_the_timeout(self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_model, "CATCH_UP_TIMEOUT", 0.0)
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1")]}
        fake.answers["cluster/member/add"] = {"message": "etcdserver: unhealthy cluster"}
        with pytest.raises(EtcdError, match="unhealthy cluster"):
            register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")

    @pytest.mark.parametrize("version", ["3.3.25", "3.6.1", "4.4.0"])
    def test_incompatible_version_is_refused(self, fake: Fake, tmp_path: Path, version: str) -> None:
        with pytest.raises(EtcdError, match=rf"this host has etcd {version}, but the cluster version is 3\.4: "):
            register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, version)
        assert changes(fake) == []

    def test_unlisted_members_cause_a_warning(self, fake: Fake, tmp_path: Path) -> None:
        (tmp_path / "member").mkdir()
        members = [member("a", 1, "127.0.0.1"), member("old", 255, "127.0.0.3")]
        fake.answers["cluster/member/list"] = {"header": {"member_id": "1"}, "members": members}
        found = register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23")
        assert (found.state, found.changed, found.initial_cluster) == ("member", False, "")
        assert found.warnings == [
            "the cluster has a member old that is not in etcd_members; if it is gone permanently, run: etcdctl member remove ff"
        ]

    def test_address_that_differs_from_the_registered_one_is_refused(self, fake: Fake, tmp_path: Path) -> None:
        (tmp_path / "member").mkdir()
        fake.answers["cluster/member/list"] = {"header": {"member_id": "1"}, "members": [member("a", 1, "127.0.0.7")]}
        with pytest.raises(EtcdError, match=r"etcd_members\.a: is registered in the cluster as http://127\.0\.0\.7:2380, not "):
            register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23")

    @pytest.mark.parametrize("tls", [True, False])
    def test_scheme_that_differs_from_the_registered_one_is_refused(self, fake: Fake, tmp_path: Path, *, tls: bool) -> None:
        (tmp_path / "member").mkdir()
        if not tls:
            fake.enable_tls(tmp_path)
        registered, desired = ("http", "https") if tls else ("https", "http")
        own = member("a", 1, "127.0.0.1") | {"peerURLs": [f"{registered}://127.0.0.1:2380"]}
        fake.answers["cluster/member/list"] = {"header": {"member_id": "1"}, "members": [own]}
        with pytest.raises(
            EtcdError, match=rf"is registered in the cluster as {registered}://127\.0\.0\.1:2380, not {desired}://"
        ) as caught:
            register_member(Cluster("a", {"a": "127.0.0.1"}, tls=tls), tmp_path, "3.4.23")
        assert "Revert its address or etcd_tls" in str(caught.value)

    def test_stopped_member_remains_a_member(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_model, "CLIENT_PORT", 1)
        (tmp_path / "member").mkdir()
        assert register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23") == Membership("member", alone=True)

    def test_port_of_a_stopped_member_is_not_queried(self, tmp_path: Path, fake: Fake) -> None:
        (tmp_path / "member").mkdir()
        assert register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23", running=False) == Membership("member", alone=True)
        assert fake.requests == []


def test_several_members_with_passwords_require_tls(tmp_path: Path) -> None:
    without_tls = Cluster("b", {"a": "127.0.0.9", "b": "127.0.0.1"}, root_password="r00t")
    with pytest.raises(EtcdError, match="etcd_tls: is missing; several members with passwords require it"):
        register_member(without_tls, tmp_path, "3.4.23")


def test_ipv6_addresses_are_bracketed_in_urls() -> None:
    found = Cluster("a", {"a": "fd00::1"})
    assert (found.peer_url("a"), found.client("a").url) == ("http://[fd00::1]:2380", "http://[fd00::1]:2379")


class TestUsers:
    SHOP = User("hunter2", ["/shop/"])

    #: Responses once the user has been created.
    ENABLED: ClassVar[dict[str, Any]] = {
        "auth/authenticate": {"token": "t"},
        "auth/user/list": {"users": ["root", "shop"]},
        "auth/role/list": {"roles": ["root", "shop"]},
        "auth/role/get": {"perm": [{"permType": "READWRITE", **key_range("/shop/")}]},
        "auth/user/get": {"roles": ["shop"]},
    }

    def test_root_is_created_first_and_authentication_enabled_last(self, fake: Fake) -> None:
        fake.enabled = self.ENABLED
        assert apply_users(fake.client, "r00t", {"shop": self.SHOP}, reachable=False).done == [
            "add user root",
            "add role root",
            "grant root its role",
            "add role shop",
            "grant '/shop/' to shop",
            "add user shop",
            "grant shop its role",
            "enable authentication",
        ]
        assert changes(fake)[-1] == ("auth/enable", {})
        assert ("auth/user/add", {"name": "shop", "password": "hunter2"}) in fake.requests

    def test_changes_before_authentication_was_enabled_are_reverted_and_marked(self, fake: Fake) -> None:
        planted = {"auth/user/list": {"users": ["evil", "root", "shop"]}, "auth/user/get": {"roles": ["root", "shop"]}}
        fake.enabled = self.ENABLED | planted
        with pytest.raises(EtcdError, match=r"another client changes users at the same time; .* remove user evil"):
            apply_users(fake.client, "r00t", {"shop": self.SHOP})
        requests = changes(fake)
        enabled = requests.index(("auth/enable", {}))
        assert [path for path, _body in requests].count("kv/put") > 2
        assert requests[enabled + 1][0] == "kv/put"
        assert ("auth/user/revoke", {"name": "shop", "role": "root"}) in requests[enabled:]
        assert ("auth/user/delete", {"name": "evil"}) in requests[enabled:]

    def test_check_mode_or_no_root_password_changes_nothing(self, fake: Fake) -> None:
        checked = apply_users(fake.client, "r00t", {"shop": self.SHOP}, check_mode=True)
        assert (len(checked.done), checked.revoked) == (8, "(generated by the run)")
        assert apply_users(fake.client, "", {}) == UserChanges()
        assert changes(fake) == []

    def test_users_in_the_desired_state_are_not_changed(self, fake: Fake) -> None:
        fake.answers |= self.ENABLED
        assert apply_users(fake.client, "r00t", {"shop": self.SHOP}) == UserChanges([])
        fake.answers["kv/range"] = {"kvs": [{"value": base64.b64encode(b"5f0c").decode()}]}
        assert apply_users(fake.client, "r00t", {"shop": self.SHOP}) == UserChanges([], "5f0c")
        assert changes(fake) == []

    def test_undesired_permissions_roles_and_users_are_removed(self, fake: Fake) -> None:
        fake.answers |= self.ENABLED | {"auth/user/get": {"roles": ["root", "shop"]}}
        moved = apply_users(fake.client, "r00t", {"shop": User("hunter2", ["/new/"])}, check_mode=True)
        assert moved.done == ["revoke '/shop/' from shop", "grant '/new/' to shop", "revoke the role root from shop"]
        assert apply_users(fake.client, "r00t", {}, check_mode=True).done == ["remove user shop", "remove role shop"]

    def test_wrong_root_password_is_reported(self, fake: Fake) -> None:
        fake.answers["auth/authenticate"] = {"message": "etcdserver: authentication failed, invalid user ID or password"}
        with pytest.raises(
            EtcdError, match=r"etcd_root_password: is not the password of root; .*invalid user ID or password"
        ) as caught:
            apply_users(fake.client, "wr0ng", {})
        assert "wr0ng" not in str(caught.value)

    def test_users_require_a_root_password(self, fake: Fake) -> None:
        with pytest.raises(EtcdError, match="etcd_users: requires etcd_root_password"):
            apply_users(fake.client, "", {"shop": self.SHOP})
        assert fake.requests == []

    def test_missing_root_password_is_reported(self, fake: Fake) -> None:
        fake.answers["auth/authenticate"] = {"message": "etcdserver: authentication failed, invalid user ID or password"}
        with pytest.raises(EtcdError, match="etcd_root_password: is missing, but the cluster requires it"):
            apply_users(fake.client, "", {})

    def test_unreachable_member_is_reported(self) -> None:
        with pytest.raises(UnreachableError, match=r"etcd at http://127\.0\.0\.1:1 does not answer: .*refused"):
            apply_users(Client("http://127.0.0.1:1"), "r00t", {})

    def test_passwords_are_excluded_from_repr(self) -> None:
        things = (self.SHOP, Cluster("a", {"a": "127.0.0.1"}, root_password="hunter2"), Client("http://a:1", token="hunter2"))
        assert "hunter2" not in repr(things)
