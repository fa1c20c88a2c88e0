from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.backing import mongodb_client
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_client import MongodbError, ReplicaSet
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import bootstrap_configuration, mongodb_plan
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_server import create_directory, last_errors
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError
from tools.docs import ROOT

SET = {"name": "rs0", "members": ["db1", "db2:27018"], "key": "c2VjcmV0"}


def variables(**changes: Any) -> dict[str, Any]:
    """Return the role's defaults, with ``changes``."""
    defaults: dict[str, Any] = {
        "source": {"series": "8.0"},
        "addresses": ["127.0.0.1"],
        "port": 27017,
        "open_files": 64000,
        "admin_password": "hush",
        "users": {},
        "replica_set": None,
        "member": "db1",
        "settings": {},
        "backup_keep": 7,
    }
    return defaults | changes


def problems(**changes: Any) -> list[str]:
    with pytest.raises(InvalidDataError) as caught:
        mongodb_plan(variables(**changes))
    return caught.value.problems


def test_standalone_mongod_enforces_authentication() -> None:
    configuration = mongodb_plan(variables())["configuration"]
    assert configuration["security"] == {"authorization": "enabled"}
    assert configuration["setParameter"] == {"enableLocalhostAuthBypass": False}
    assert configuration["net"] == {"bindIp": "127.0.0.1", "port": 27017, "unixDomainSocket": {"enabled": False}}
    assert "replication" not in configuration


@pytest.mark.parametrize(
    ("addresses", "bound"),
    [
        ([], ["127.0.0.1"]),
        (["db1", "localhost"], ["127.0.0.1", "db1"]),
        (["0.0.0.0", "db1"], ["0.0.0.0"]),
        (["10.0.0.5", "fd00::5"], ["127.0.0.1", "10.0.0.5", "fd00::5"]),
    ],
)
def test_loopback_address_is_always_bound_and_addresses_are_unique(addresses: list[str], bound: list[str]) -> None:
    derived = mongodb_plan(variables(addresses=addresses))
    assert derived["addresses"] == bound
    assert derived["configuration"]["net"]["bindIp"] == ",".join(bound)
    assert derived["configuration"]["net"].get("ipv6", False) is any(":" in address for address in bound)


def test_settings_are_merged_into_the_configuration() -> None:
    storage = {"wiredTiger": {"engineConfig": {"cacheSizeGB": 2}}}
    settings = {"storage": storage, "setParameter": {"ttlMonitorEnabled": False}}
    configuration = mongodb_plan(variables(settings=settings))["configuration"]
    assert configuration["storage"] == {"dbPath": "/var/lib/mongodb/data", **storage}
    assert configuration["setParameter"] == {"enableLocalhostAuthBypass": False, "ttlMonitorEnabled": False}


def test_roles_apply_to_the_database_of_the_user_by_default() -> None:
    users = {
        "notes": {"password": "hush", "database": "notes"},
        "clerk": {"password": "h", "database": "a", "roles": ["read", "read@b"]},
    }
    derived = mongodb_plan(variables(users=users))
    assert derived["users"]["notes"] == {"database": "notes", "roles": [{"role": "readWrite", "db": "notes"}]}
    assert derived["users"]["clerk"]["roles"] == [{"role": "read", "db": "a"}, {"role": "read", "db": "b"}]
    assert derived["passwords"] == {"notes": "hush", "clerk": "h"}


def test_members_use_the_port_of_mongod_by_default() -> None:
    derived = mongodb_plan(variables(replica_set=SET, addresses=["db1"]))
    assert (derived["members"], derived["member"], derived["set"]) == (["db1:27017", "db2:27018"], "db1:27017", "rs0")
    assert derived["configuration"]["replication"] == {"replSetName": "rs0"}
    assert derived["configuration"]["security"]["keyFile"] == "/etc/mongodb/replica-set.key"


def test_all_problems_are_reported_at_once_without_secrets() -> None:
    found = problems(
        source={},
        port=0,
        admin_password="",
        users={"notes": {"database": "no tes", "roles": "read", "password": 7}},
        replica_set={"name": "rs0", "members": [], "key": "s3cret!"},
        backup_keep=0,
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "mongodb_source",
        "mongodb_port",
        "mongodb_admin_password",
        "mongodb_users.notes.password",
        "mongodb_users.notes.database",
        "mongodb_users.notes.roles",
        "mongodb_replica_set.key",
        "mongodb_backup_keep",
    ]
    assert "s3cret" not in "\n".join(found)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"settings": {"net": {"port": 1}}}, "mongodb_settings.net.port: is set by mongodb_port"),
        ({"settings": {"processManagement": {"fork": False}}}, "mongodb_settings.processManagement: is set by the role"),
        (
            {"users": {"admin": {"password": "x", "database": "admin"}}},
            "mongodb_users.admin: is created from mongodb_admin_password",
        ),
        ({"users": {"a b": {"password": "x", "database": "a"}}}, "mongodb_users.a b: must be a name"),
        (
            {"replica_set": SET, "addresses": ["db3"], "member": "db3"},
            "mongodb_replica_set.members: must include this host, db3:27017",
        ),
        ({"replica_set": SET}, "mongodb_addresses: must include an address that the other members can reach"),
        (
            {"replica_set": SET | {"members": ["db1", "db1:27017"]}, "addresses": ["db1"]},
            "mongodb_replica_set.members: lists db1:27017 twice",
        ),
    ],
)
def test_contradictory_variables_are_refused(changes: dict[str, Any], problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(**changes))


def test_bootstrap_configuration_listens_on_one_socket_and_keeps_the_storage() -> None:
    settings = {"storage": {"directoryPerDB": True}, "setParameter": {"ttlMonitorEnabled": False}}
    derived = mongodb_plan(variables(replica_set=SET, addresses=["db1"], settings=settings))["configuration"]
    assert bootstrap_configuration(derived, "/new", "/run/x.sock") == {
        "storage": {"dbPath": "/new", "directoryPerDB": True},
        "security": {"authorization": "enabled"},
        "net": {"bindIp": "/run/x.sock", "unixDomainSocket": {"enabled": False}},
        "setParameter": {"ttlMonitorEnabled": False},
    }


def test_last_errors_returns_the_errors_of_a_log() -> None:
    log = '{"s":"I","msg":"fine"}\n{"s":"E","msg":"bad ","attr":{"error":"no space"}}\nno json\n{"s":"I","msg":"shutting down"}'
    assert last_errors(log) == 'bad: {"error": "no space"}'
    assert last_errors("one\ntwo") == "one\ntwo"


@pytest.mark.parametrize(
    ("codename", "source", "where"),
    [
        ("bookworm", {"series": "8.0"}, ("debian", "bookworm/mongodb-org/8.0", "main")),
        ("trixie", {"series": "8.0"}, ("debian", "bookworm/mongodb-org/8.0", "main")),
        ("trixie", {"series": "8.2", "suite": "trixie"}, ("debian", "trixie/mongodb-org/8.2", "main")),
        ("jammy", {"series": "8.0"}, ("ubuntu", "jammy/mongodb-org/8.0", "multiverse")),
        ("noble", {"series": "8.0"}, ("ubuntu", "noble/mongodb-org/8.0", "multiverse")),
    ],
)
def test_repository_matches_the_release_of_the_host_and_the_series(
    codename: str, source: dict[str, str], where: tuple[str, str, str]
) -> None:
    loader = DataLoader()
    kept = loader.load_from_file(str(ROOT / "roles/mongodb/vars/main.yml"), trusted_as_template=True)
    given = {"mongodb_source": source, "__mongodb_packages": {"codename": codename}, "ansible_managed": "Ansible managed"}
    template = (ROOT / "roles/mongodb/templates/mongodb.sources.j2").read_text()
    lines = Templar(loader=loader, variables=kept | given).template(trust_as_template(template)).splitlines()
    distribution, suite, component = where
    assert dict(line.split(": ") for line in lines[1:]) == {
        "Types": "deb",
        "URIs": f"https://repo.mongodb.org/apt/{distribution}",
        "Suites": suite,
        "Components": component,
        "Signed-By": f"/etc/apt/keyrings/mongodb-{source['series']}.asc",
    }


def test_create_directory_does_not_follow_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / ".new").symlink_to("etc")
    before = (tmp_path / "etc").stat()
    with pytest.raises(FileExistsError):
        create_directory(tmp_path / ".new")
    after = (tmp_path / "etc").stat()
    assert (after.st_mode, after.st_uid, after.st_ctime_ns) == (before.st_mode, before.st_uid, before.st_ctime_ns)


@pytest.mark.parametrize("first", [True, False])
def test_no_second_replica_set_is_initiated_while_a_member_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    monkeypatch.setattr(mongodb_client, "PROBE_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = f"127.0.0.1:{silent.getsockname()[1]}"
        members = ["db1:27017", other] if first else [other, "db1:27017"]
        replica_set = ReplicaSet("rs0", members, "db1:27017", "127.0.0.1:1", ["hush"], wait=0)
        with pytest.raises(
            MongodbError, match=f"{other} .*(a second one must not be initiated|has not initiated the replica set rs0)"
        ):
            replica_set._join()


def test_replica_set_is_initiated_when_other_members_refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt fails at the own mongod, which does not exist here."""
    monkeypatch.setattr(mongodb_client, "PROBE_TIMEOUT", 0.2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refuses = f"127.0.0.1:{closed.getsockname()[1]}"
        replica_set = ReplicaSet("rs0", ["db1:27017", refuses], "db1:27017", refuses, [], wait=0)
        with pytest.raises(MongodbError, match=f"mongod at {refuses} rejects it for the user admin"):
            replica_set._join()
