"""Who is a member of a cluster of etcd, and who may do what, as a stand-in for etcd's JSON interface sees it asked."""

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
    Applied,
    Client,
    Cluster,
    EtcdError,
    Membership,
    UnreachableError,
    User,
    apply_users,
    key_range,
    own_version,
    register_member,
)
from tests.support.pki import Authority


class Fake(ThreadingHTTPServer):
    """Answers each path as it is told to, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        #: What the answers become when it is told to ask for passwords.
        self.enabled: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def speak_tls(self, directory: Path) -> None:
        """Speak TLS, by the certificate of an authority that nobody has heard of."""
        Authority("unknown", datetime.now(UTC)).leaf("a", "127.0.0.1").write(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: Any) -> None:
        """Say nothing."""

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.server_port}")


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v3/")
        self.server.asked.append((path, body))
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
        """Say nothing."""


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
    """Return what was asked for that changes something."""
    return [(path, body) for path, body in fake.asked if path.rpartition("/")[2] not in ("list", "get", "range", "authenticate")]


@pytest.mark.parametrize(
    ("prefix", "start", "end"),
    [("/shop/", b"/shop/", b"/shop0"), ("a", b"a", b"b"), ("ü", b"\xc3\xbc", b"\xc3\xbd"), ("", b"\0", b"\0")],
)
def test_a_prefix_is_a_range_of_keys(prefix: str, start: bytes, end: bytes) -> None:
    assert {name: base64.b64decode(text) for name, text in key_range(prefix).items()} == {"key": start, "range_end": end}


def test_the_version_is_read_from_what_etcd_says() -> None:
    assert own_version("etcd Version: 3.4.23\nGit SHA: Not provided\n") == "3.4.23"
    with pytest.raises(EtcdError, match="something else than a version: bash"):
        own_version("bash")


class TestBelong:
    def test_the_first_of_the_members_founds_the_cluster(self, tmp_path: Path) -> None:
        found = register_member(cluster("a", a="127.0.0.1", b="127.0.0.9"), tmp_path, "3.4.23")
        assert found == Membership("founder", initial_cluster="a=http://127.0.0.1:2380")
        assert register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23").alone

    def test_nobody_else_does(self, tmp_path: Path) -> None:
        with pytest.raises(
            EtcdError, match=r"b has no member to join\. a comes first, .*\(serial: 1\): etcd at http://127\.0\.0\.9:"
        ):
            register_member(cluster("b", a="127.0.0.9", b="127.0.0.1"), tmp_path, "3.4.23")

    def test_before_the_first_run_it_is_said_who_would_join(self, tmp_path: Path) -> None:
        found = register_member(cluster("b", a="127.0.0.9", b="127.0.0.1"), tmp_path, "3.4.23", check_mode=True)
        assert (found.state, found.changed) == ("joining", True)
        assert found.warnings[0].startswith(
            "etcd_members: b joins when another member answers; now none does: etcd at http://127"
        )

    def test_the_others_are_added_without_a_vote(self, fake: Fake, tmp_path: Path) -> None:
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1")]}
        fake.answers["cluster/member/add"] = {
            "members": [member("a", 1, "127.0.0.1"), member("", 2, "127.0.0.2", isLearner=True)]
        }
        wanted = Membership("joining", changed=True, initial_cluster="a=http://127.0.0.1:2380,b=http://127.0.0.2:2380")
        assert register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.5.16", check_mode=True) == wanted
        assert changes(fake) == []
        assert register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.5.16") == wanted
        assert changes(fake) == [("cluster/member/add", {"peerURLs": ["http://127.0.0.2:2380"], "isLearner": True})]

    def test_one_that_was_added_and_never_started_is_not_added_again(self, fake: Fake, tmp_path: Path) -> None:
        members = [member("a", 1, "127.0.0.1"), {"ID": "2", "peerURLs": ["http://127.0.0.2:2380"], "isLearner": True}]
        fake.answers["cluster/member/list"] = {"members": members}
        found = register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")
        assert found == Membership("joining", initial_cluster="a=http://127.0.0.1:2380,b=http://127.0.0.2:2380")
        assert changes(fake) == []

    def test_one_that_has_lost_its_data_is_replaced(self, fake: Fake, tmp_path: Path) -> None:
        lost = member("b", 2, "127.0.0.2")
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1"), lost]}
        fake.answers["cluster/member/add"] = {"members": [member("a", 1, "127.0.0.1"), member("", 3, "127.0.0.2")]}
        found = register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")
        assert found.initial_cluster == "a=http://127.0.0.1:2380,b=http://127.0.0.2:2380"
        assert [path for path, _ in changes(fake)] == ["cluster/member/remove", "cluster/member/add"]
        assert changes(fake)[0][1] == {"ID": "2"}

    def test_a_cluster_whose_members_have_just_met_is_asked_again(
        self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1")]}
        fake.answers["cluster/member/add"] = {"message": "etcdserver: unhealthy cluster"}

        def healthy(_: float) -> None:
            fake.answers["cluster/member/add"] = {"members": [member("a", 1, "127.0.0.1")]}

        monkeypatch.setattr("time.sleep", healthy)
        register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")
        assert [path for path, _ in changes(fake)] == ["cluster/member/add"] * 2

    def test_one_that_stays_unhealthy_is_given_up(self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_model, "CATCH_UP_SECONDS", 0.0)
        fake.answers["cluster/member/list"] = {"members": [member("a", 1, "127.0.0.1")]}
        fake.answers["cluster/member/add"] = {"message": "etcdserver: unhealthy cluster"}
        with pytest.raises(EtcdError, match="unhealthy cluster"):
            register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, "3.4.23")

    @pytest.mark.parametrize("version", ["3.3.25", "3.6.1", "4.4.0"])
    def test_a_version_that_cannot_join_is_refused(self, fake: Fake, tmp_path: Path, version: str) -> None:
        with pytest.raises(EtcdError, match=rf"this host has etcd {version}, and the cluster speaks 3\.4: "):
            register_member(cluster("b", a="127.0.0.1", b="127.0.0.2"), tmp_path, version)
        assert changes(fake) == []

    def test_a_member_stays_one_and_strangers_are_told_of(self, fake: Fake, tmp_path: Path) -> None:
        (tmp_path / "member").mkdir()
        members = [member("a", 1, "127.0.0.1"), member("old", 255, "127.0.0.3")]
        fake.answers["cluster/member/list"] = {"header": {"member_id": "1"}, "members": members}
        found = register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23")
        assert (found.state, found.changed, found.initial_cluster) == ("member", False, "")
        assert found.warnings == [
            "the cluster has a member old, which etcd_members does not name; if it is gone for good: etcdctl member remove ff"
        ]

    def test_an_address_is_not_changed_behind_the_clusters_back(self, fake: Fake, tmp_path: Path) -> None:
        (tmp_path / "member").mkdir()
        fake.answers["cluster/member/list"] = {"header": {"member_id": "1"}, "members": [member("a", 1, "127.0.0.7")]}
        with pytest.raises(EtcdError, match=r"etcd_members\.a: the cluster knows it as http://127\.0\.0\.7:2380, not "):
            register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23")

    @pytest.mark.parametrize("wanted", [True, False])
    def test_tls_is_not_changed_behind_the_clusters_back(self, fake: Fake, tmp_path: Path, *, wanted: bool) -> None:
        (tmp_path / "member").mkdir()
        if not wanted:
            fake.speak_tls(tmp_path)
        before, after = ("http", "https") if wanted else ("https", "http")
        known = member("a", 1, "127.0.0.1") | {"peerURLs": [f"{before}://127.0.0.1:2380"]}
        fake.answers["cluster/member/list"] = {"header": {"member_id": "1"}, "members": [known]}
        with pytest.raises(EtcdError, match=rf"the cluster knows it as {before}://127\.0\.0\.1:2380, not {after}://") as caught:
            register_member(Cluster("a", {"a": "127.0.0.1"}, tls=wanted), tmp_path, "3.4.23")
        assert "or etcd_tls, back" in str(caught.value)

    def test_a_member_that_has_stopped_is_still_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(etcd_model, "CLIENT_PORT", 1)
        (tmp_path / "member").mkdir()
        assert register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23") == Membership("member", alone=True)

    def test_whoever_has_the_port_of_one_that_has_stopped_is_not_asked(self, tmp_path: Path, fake: Fake) -> None:
        (tmp_path / "member").mkdir()
        assert register_member(cluster("a", a="127.0.0.1"), tmp_path, "3.4.23", runs=False) == Membership("member", alone=True)
        assert fake.asked == []


def test_several_members_with_passwords_need_certificates(tmp_path: Path) -> None:
    open_port = Cluster("b", {"a": "127.0.0.9", "b": "127.0.0.1"}, root_password="r00t")
    with pytest.raises(EtcdError, match="etcd_tls: is missing; several members with passwords need it"):
        register_member(open_port, tmp_path, "3.4.23")


def test_an_address_of_ipv6_is_in_brackets() -> None:
    found = Cluster("a", {"a": "fd00::1"})
    assert (found.peer_url("a"), found.client("a").url) == ("http://[fd00::1]:2380", "http://[fd00::1]:2379")


class TestUsers:
    SHOP = User("hunter2", ["/shop/"])

    #: What etcd says of it once it has been made.
    ENABLED: ClassVar[dict[str, Any]] = {
        "auth/authenticate": {"token": "t"},
        "auth/user/list": {"users": ["root", "shop"]},
        "auth/role/list": {"roles": ["root", "shop"]},
        "auth/role/get": {"perm": [{"permType": "READWRITE", **key_range("/shop/")}]},
        "auth/user/get": {"roles": ["shop"]},
    }

    def test_root_comes_first_and_passwords_are_asked_for_last(self, fake: Fake) -> None:
        fake.enabled = self.ENABLED
        assert apply_users(fake.client, "r00t", {"shop": self.SHOP}, served=False).done == [
            "add user root",
            "add role root",
            "give root its role",
            "add role shop",
            "give '/shop/' to shop",
            "add user shop",
            "give shop its role",
            "ask everybody for a password",
        ]
        assert changes(fake)[-1] == ("auth/enable", {})
        assert ("auth/user/add", {"name": "shop", "password": "hunter2"}) in fake.asked

    def test_what_others_changed_before_passwords_were_asked_for_is_changed_back_and_marked(self, fake: Fake) -> None:
        planted = {"auth/user/list": {"users": ["evil", "root", "shop"]}, "auth/user/get": {"roles": ["root", "shop"]}}
        fake.enabled = self.ENABLED | planted
        with pytest.raises(EtcdError, match=r"somebody else changes users at the same time; .* remove user evil"):
            apply_users(fake.client, "r00t", {"shop": self.SHOP})
        asked = changes(fake)
        enabled = asked.index(("auth/enable", {}))
        assert [path for path, _body in asked].count("kv/put") > 2
        assert asked[enabled + 1][0] == "kv/put"
        assert ("auth/user/revoke", {"name": "shop", "role": "root"}) in asked[enabled:]
        assert ("auth/user/delete", {"name": "evil"}) in asked[enabled:]

    def test_nothing_is_changed_in_check_mode_nor_without_a_password_of_root(self, fake: Fake) -> None:
        checked = apply_users(fake.client, "r00t", {"shop": self.SHOP}, check_mode=True)
        assert (len(checked.done), checked.revoked) == (8, "to be chosen")
        assert apply_users(fake.client, "", {}) == Applied()
        assert changes(fake) == []

    def test_what_is_right_is_left_alone(self, fake: Fake) -> None:
        fake.answers |= self.ENABLED
        assert apply_users(fake.client, "r00t", {"shop": self.SHOP}) == Applied([])
        fake.answers["kv/range"] = {"kvs": [{"value": base64.b64encode(b"5f0c").decode()}]}
        assert apply_users(fake.client, "r00t", {"shop": self.SHOP}) == Applied([], "5f0c")
        assert changes(fake) == []

    def test_what_is_not_named_is_taken_away(self, fake: Fake) -> None:
        fake.answers |= self.ENABLED | {"auth/user/get": {"roles": ["root", "shop"]}}
        moved = apply_users(fake.client, "r00t", {"shop": User("hunter2", ["/new/"])}, check_mode=True)
        assert moved.done == ["take '/shop/' from shop", "give '/new/' to shop", "take the role root from shop"]
        assert apply_users(fake.client, "r00t", {}, check_mode=True).done == ["remove user shop", "remove role shop"]

    def test_a_wrong_password_of_root_is_named(self, fake: Fake) -> None:
        fake.answers["auth/authenticate"] = {"message": "etcdserver: authentication failed, invalid user ID or password"}
        with pytest.raises(
            EtcdError, match=r"etcd_root_password: is not the password of root; .*invalid user ID or password"
        ) as caught:
            apply_users(fake.client, "wr0ng", {})
        assert "wr0ng" not in str(caught.value)

    def test_users_are_not_left_out_for_want_of_one(self, fake: Fake) -> None:
        with pytest.raises(EtcdError, match="etcd_users: goes with etcd_root_password"):
            apply_users(fake.client, "", {"shop": self.SHOP})
        assert fake.asked == []

    def test_a_missing_one_is_too(self, fake: Fake) -> None:
        fake.answers["auth/authenticate"] = {"message": "etcdserver: authentication failed, invalid user ID or password"}
        with pytest.raises(EtcdError, match="etcd_root_password: is missing, and the cluster asks for it"):
            apply_users(fake.client, "", {})

    def test_nobody_there_is_said_as_such(self) -> None:
        with pytest.raises(UnreachableError, match=r"etcd at http://127\.0\.0\.1:1 does not answer: .*refused"):
            apply_users(Client("http://127.0.0.1:1"), "r00t", {})

    def test_passwords_are_in_no_representation(self) -> None:
        things = (self.SHOP, Cluster("a", {"a": "127.0.0.1"}, root_password="hunter2"), Client("http://a:1", token="hunter2"))
        assert "hunter2" not in repr(things)
