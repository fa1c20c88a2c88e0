"""MongoDB: access control, changes during operation, invalid configuration, backups, and a replica set of three."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from bson import Decimal128, Int64
from pymongo import ASCENDING, IndexModel, MongoClient
from pymongo.errors import OperationFailure
from testinfra.host import Host

from tests.support.remote import ROOT, address, eventually, expect_success, hosts, run_playbook

VARIABLES = yaml.safe_load((ROOT / "molecule/shared/group_vars/mongodb.yml").read_text())
ADMIN = ("admin", VARIABLES["mongodb_admin_password"], "admin")
NOTES = ("notes", VARIABLES["mongodb_users"]["notes"]["password"], "notes")

#: The members of the replica set, which are hosts of other groups.
MEMBERS = ("debian12", "debian13", "lock")

#: Tries on a host to create an administrator in a mongod that has none, until the stop file exists.
ACCESS_PROBE = """
import json, pathlib, time
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
refused = 0
while not pathlib.Path("/run/access-probe.stop").exists():
    client = MongoClient("mongodb://127.0.0.1/?directConnection=true", serverSelectionTimeoutMS=100)
    try:
        client.admin.command("createUser", "probe", pwd="in", roles=["root"])
        break
    except OperationFailure:
        refused += 1
    except PyMongoError:
        time.sleep(0.02)
    client.close()
pathlib.Path("/run/access-probe.json").write_text(json.dumps(refused))
"""

Client = MongoClient[dict[str, Any]]


def client(server: Host | str, login: tuple[str, str, str] | None = NOTES, **options: Any) -> Client:
    named = dict(zip(("username", "password", "authSource"), login or (), strict=False))
    at = server if isinstance(server, str) else address(server)
    return MongoClient(at, **{"directConnection": True, "serverSelectionTimeoutMS": 10_000, **named, **options})


def provision(directory: Path, names: str = "db", *options: str, serial: int = 0, **variables: Any) -> tuple[int, str]:
    """Apply the role with ``variables`` over those of the scenario; return the exit status and the output on one line."""
    playbook, values = directory / "mongodb.yml", directory / "variables.yml"
    play = {
        "hosts": names.replace(",", ":"),
        "gather_facts": False,
        "any_errors_fatal": True,
        "roles": ["funnel.tornado.mongodb"],
    }
    playbook.write_text(yaml.safe_dump([play | {"serial": serial}]))
    values.write_text(yaml.safe_dump(VARIABLES | variables))
    status, output = run_playbook(str(playbook), names, "-e", f"@{values}", *options)
    assert all(secret not in output for secret in (ADMIN[1], NOTES[1], "another-one"))
    return status, re.sub(r"\s+", " ", output)


def provision_rejected(directory: Path, db: Host, **variables: Any) -> str:
    """Provision with invalid variables; verify that nothing changed and mongod serves, and return the output."""
    before = db.check_output("sha256sum /etc/mongodb/* /etc/systemd/system/mongod.service")
    status, output = provision(directory, "db", **variables)
    assert status != 0, output
    assert db.check_output("sha256sum /etc/mongodb/* /etc/systemd/system/mongod.service") == before
    client(db).notes.things.insert_one({"after": "a rejection"})
    return output


def pid(host: Host) -> int:
    return int(host.check_output("systemctl show --property=MainPID --value mongod"))


@contextmanager
def insert_continuously(server: Host | str, login: tuple[str, str, str], **options: Any) -> Iterator[list[int]]:
    """Insert documents in sequence on one connection; yield the acknowledged ones. No insert may fail."""
    acknowledged: list[int] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def insert() -> None:
        with client(server, login, maxPoolSize=1, **options) as connection:
            while not stop.wait(0.005):
                try:
                    connection.notes.written.insert_one({"_id": len(acknowledged)})
                except Exception as error:  # the test reports every error
                    errors.append(error)
                    return
                acknowledged.append(len(acknowledged))

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        yield acknowledged
        count = len(acknowledged)
        eventually(lambda: errors or len(acknowledged) > count)
    finally:
        stop.set()
        thread.join(30)
    assert errors == []
    assert len(acknowledged) > 20


@pytest.fixture(scope="module")
def db() -> Host:
    return hosts("db")["db"]


@pytest.fixture(autouse=True)
def drop_databases(db: Host) -> None:
    """Remove all data before each test."""
    with client(db, ADMIN) as admin:
        admin.drop_database("notes")
        admin.drop_database("other")


def test_users_must_authenticate_and_access_only_their_databases(db: Host) -> None:
    for login in (None, ("notes", "guessed", "notes"), ("notes", NOTES[1], "admin"), ("admin", "admin", "admin")):
        with pytest.raises(OperationFailure, match=r"requires authentication|Authentication failed"):
            client(db, login).notes.things.find_one()
    notes = client(db)
    notes.notes.things.insert_one({"_id": 1})
    assert notes.notes.things.find_one() == {"_id": 1}
    with pytest.raises(OperationFailure, match="not authorized"):
        notes.other.things.insert_one({})
    with pytest.raises(OperationFailure, match="not authorized"):
        notes.admin.command("usersInfo", 1)


def test_listeners_limits_and_file_permissions(db: Host) -> None:
    listeners = db.check_output("ss -Hltn 'sport = :27017'").splitlines()
    assert {line.split()[3] for line in listeners} == {"127.0.0.1:27017", f"{address(db)}:27017"}
    assert db.run("ls /tmp/mongodb-27017.sock").rc != 0
    assert db.check_output("ps -o user= -p %s", str(pid(db))).strip() == "mongodb"
    assert re.search(r"Max open files\s+16384\s+16384", db.check_output("cat /proc/%s/limits", str(pid(db))))
    modes = "/etc/mongodb/mongod.conf /etc/mongodb/admin.password /var/lib/mongodb /var/lib/mongodb/data"
    assert db.check_output(f"stat -c '%a %U' {modes}").splitlines() == ["640 root", "600 root", "700 mongodb", "700 mongodb"]
    assert db.run("ls /etc/mongodb/bootstrap.conf").rc != 0
    assert db.check_output("systemctl is-enabled mongod mongodb-backup.timer").split() == ["enabled", "enabled"]
    assert "mongodb-backup.service" in db.check_output("systemctl list-timers --no-pager mongodb-backup.timer")


def test_users_are_managed_without_restart(db: Host, tmp_path: Path) -> None:
    with client(db, ADMIN) as admin:
        admin.notes.command("createUser", "by_hand", pwd="x", roles=["read"])
    before = pid(db)
    users = {
        "notes": {"password": "another-one", "database": "notes"},
        "notes2": {"password": "another-one", "database": "notes", "roles": ["readWrite", "read@other"]},
    }
    with insert_continuously(db, NOTES):
        output = expect_success(provision(tmp_path, "db", "--diff", mongodb_users=users, mongodb_admin_password="another-one"))
        assert "user notes2 of notes: read@other, readWrite@notes" in output
        second = client(db, ("notes2", "another-one", "notes"))
        assert list(second.other.things.find()) == []
        client(db, ("notes", "another-one", "notes")).notes.things.insert_one({})
        with pytest.raises(OperationFailure, match="Authentication failed"):
            client(db).notes.things.find_one()
        assert client(db, ("admin", "another-one", "admin")).list_database_names()
        output = expect_success(provision(tmp_path, "db", mongodb_users=users, mongodb_admin_password="another-one"))
        assert "changed=0" in output
        assert "mongodb_users: does not list the user by_hand of notes: read@notes" in output
    with client(db, ("admin", "another-one", "admin")) as admin:
        admin.notes.written.drop()
    with insert_continuously(db, ("notes", "another-one", "notes")):
        expect_success(provision(tmp_path, "db"))
    with pytest.raises(OperationFailure, match="Authentication failed"):
        client(db, ("notes2", "another-one", "notes")).notes.things.find_one()
    with pytest.raises(OperationFailure, match=r"requires authentication|not authorized|Could not find user"):
        list(second.other.things.find())  # on a connection from before its removal
    client(db, ("by_hand", "x", "notes")).notes.things.find_one()
    client(db, ADMIN).notes.command("dropUser", "by_hand")
    assert pid(db) == before


def test_invalid_variables_are_reported_together_without_changes(db: Host, tmp_path: Path) -> None:
    before = pid(db)
    output = provision_rejected(
        tmp_path,
        db,
        mongodb_users={"notes": {"database": "notes"}, "x y": {"password": "another-one", "database": "notes", "roles": ["a b"]}},
        mongodb_settings={"net": {"port": 1}},
        mongodb_replica_set={"name": "rs0", "members": ["one", "two"], "key": "another-one!"},
    )
    for problem in (
        "mongodb_users.notes.password: is required",
        "mongodb_users.x y.roles[0]: must be a role",
        "mongodb_replica_set.key",
    ):
        assert problem in output
    output = provision_rejected(
        tmp_path, db, mongodb_settings={"net": {"port": 1}, "storage": {"wiredTiger": {"engineConfig": {"x": 1}}}}
    )
    assert "mongodb_settings.net.port: is set by mongodb_port" in output
    settings = VARIABLES["mongodb_settings"] | {"storage": {"wiredTiger": {"engineConfig": {"cacheSizeGb": 1}}}}
    output = provision_rejected(tmp_path, db, mongodb_settings=settings)
    assert "Unrecognized option: storage.wiredTiger.engineConfig.cacheSizeGb" in output
    assert "/etc/mongodb was not changed" in output
    assert re.search(
        r"mongodb_port: 22 on db is in use by (sshd|systemd|another)", provision_rejected(tmp_path, db, mongodb_port=22)
    )
    output = provision_rejected(tmp_path, db, mongodb_addresses=["192.0.2.1"], mongodb_open_files=64000)
    assert "mongodb_addresses: mongod cannot listen on 192.0.2.1" in output
    assert "mongodb_open_files: 64000 exceeds the maximum of this host" in output
    assert pid(db) == before


def test_host_with_data_does_not_join_a_replica_set(db: Host, tmp_path: Path) -> None:
    client(db).notes.things.insert_one({"_id": 1})
    replica_set_variables = {"name": "rs0", "members": ["other", "db"], "key": "bm90LWZvci1vdGhlcnM="}
    output = provision_rejected(tmp_path, db, mongodb_replica_set=replica_set_variables)
    assert "mongodb_replica_set.members: db:27017 has databases, notes, and would lose them" in output
    assert client(db).notes.things.find_one({"_id": 1})


def test_stored_administrator_password_is_correct_after_rejected_user(db: Host, tmp_path: Path) -> None:
    users = {"notes": {"password": "another-one", "database": "notes", "roles": ["noSuchRole"]}}
    try:
        status, output = provision(tmp_path, "db", mongodb_admin_password="another-one", mongodb_users=users)
        assert status != 0
        assert "mongodb_users.notes: " in output
        db.check_output("mongodb-backup create")
    finally:
        expect_success(provision(tmp_path))
    db.check_output("rm -rf /var/backups/mongodb")


def test_setting_that_prevents_start_is_rolled_back(db: Host, tmp_path: Path) -> None:
    settings = VARIABLES["mongodb_settings"] | {"storage": {"directoryPerDB": True}}
    output = provision_rejected(tmp_path, db, mongodb_settings=settings)
    assert "directoryPerDB" in output
    assert "The previous files were restored, and mongod runs with them" in output


def test_unknown_administrator_password_is_reported(db: Host, tmp_path: Path) -> None:
    before = pid(db)
    db.check_output("cp -p /etc/mongodb/admin.password /root/kept && printf wrong > /etc/mongodb/admin.password")
    try:
        output = provision_rejected(tmp_path, db, mongodb_admin_password="another-one")
    finally:
        db.check_output("mv /root/kept /etc/mongodb/admin.password")
    assert "mongodb_admin_password: mongod at 127.0.0.1:27017 rejects it for the user admin" in output
    assert pid(db) == before


def test_log_is_rotated_without_restart(db: Host) -> None:
    before, log = pid(db), "/var/log/mongodb/mongod.log"
    db.check_output("rm -f %s.*", log)
    inode = db.check_output("stat -c %%i %s", log)
    db.check_output("logrotate --force /etc/logrotate.d/mongod")
    eventually(lambda: db.run("test -e %s", log).rc == 0)
    client(db, ADMIN).admin.command("ping")
    eventually(
        lambda: (
            "Authentication succeeded" in db.check_output("cat %s", log) or "client metadata" in db.check_output("cat %s", log)
        )
    )
    assert db.check_output("stat -c %%i %s.1", log) == inode
    assert pid(db) == before


def test_killed_mongod_restarts_with_acknowledged_documents(db: Host) -> None:
    notes = client(db, w="majority", journal=True)
    for number in range(100):
        notes.notes.things.insert_one({"_id": number})
    before = pid(db)
    db.check_output("kill -KILL %s", str(before))
    eventually(lambda: pid(db) not in (0, before))
    assert client(db).notes.things.count_documents({}) == 100


def create_collections(notes: Client) -> None:
    """Create one collection of each kind, with the relevant kinds of indexes."""
    database = notes.notes
    database.create_collection("things", validator={"n": {"$gte": 0}})
    indexes = [
        IndexModel([("n", ASCENDING), ("when", -1)], name="both", unique=True),
        IndexModel("when", expireAfterSeconds=86_400_000),
        IndexModel([("text", "text")], default_language="german"),
        IndexModel("n", name="some", partialFilterExpression={"n": {"$gt": 5}}),
    ]
    database.things.create_indexes(indexes)
    when = datetime(2026, 11, 21, 3, tzinfo=UTC)
    database.things.insert_many(
        [
            {"n": n, "when": when, "price": Decimal128("1.10"), "big": Int64(n), "raw": bytes([n % 256]), "text": "Wörter"}
            for n in range(2500)
        ]
    )
    database.create_collection("capped", capped=True, size=4096)
    database.capped.insert_many([{"_id": n} for n in range(10)])
    database.command({"create": "view", "viewOn": "things", "pipeline": [{"$match": {"n": 1}}]})
    database.create_collection("series", timeseries={"timeField": "at", "metaField": "of"})
    database.series.insert_many([{"at": when, "of": "a", "value": n} for n in range(50)])


def contents(server: Host | str, login: tuple[str, str, str] = ADMIN) -> dict[str, Any]:
    """Return the documents, options and indexes of the database."""
    database = client(server, login).notes
    found = {}
    for collection in database.list_collections():
        name = collection["name"]
        if not name.startswith("system."):
            indexes = list(database[name].list_indexes()) if collection["type"] == "collection" else []
            found[name] = (collection["options"], indexes, sorted(map(str, database[name].find())))
    return found


def test_backup_is_restored_after_data_loss(db: Host, tmp_path: Path) -> None:
    create_collections(client(db, ADMIN))
    before = contents(db)
    assert set(before) == {"things", "capped", "view", "series"}
    relative = os.path.relpath(tmp_path, os.environ["PWD"])  # the working directory of ansible-playbook
    expect_success(run_playbook("playbooks/backup.yml", "db", "-e", f"fetch={relative}/fetched"))
    fetched = list((tmp_path / "fetched").iterdir())
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "fetched", *fetched)] == [0o700, 0o600]
    assert set(db.check_output("find /var/backups/mongodb -type f -printf '%m %u\\n'").splitlines()) == {"600 root"}

    db.check_output("systemctl stop mongod && rm -rf /var/lib/mongodb/data /var/backups/mongodb")
    assert db.run("systemctl start mongod").rc != 0  # without an administrator, any client could become one
    expect_success(provision(tmp_path))
    assert contents(db) == {}
    assert "notes.things: 2500 documents" in expect_success(
        run_playbook("playbooks/restore.yml", "db", "-e", f"mongodb={fetched[0]}")
    )
    assert contents(db) == before
    client(db).notes.things.insert_one({"n": 9999})

    status, output = run_playbook("playbooks/restore.yml", "db", "-e", "mongodb=latest")
    assert status != 0
    assert "there is data in notes" in output
    assert client(db).notes.things.count_documents({}) == 2501
    expect_success(run_playbook("playbooks/restore.yml", "db", "-e", "mongodb=latest", "-e", "host=db", "-e", "force=true"))
    assert contents(db) == before

    backup = db.check_output("mongodb-backup list | tail -n 1")
    db.check_output("truncate --size=-20 /var/backups/mongodb/%s/notes/things.bson.gz", backup)
    damaged = db.run("mongodb-backup restore latest --force")
    assert (damaged.rc, damaged.stderr.count("\n")) == (1, 1), damaged.stderr
    assert contents(db) == before
    unknown = db.run("mongodb-backup restore yesterday")
    assert (unknown.rc, unknown.stderr) == (1, f"mongodb-backup: /var/backups/mongodb has no backup yesterday; it has {backup}\n")
    db.check_output("rm -rf /var/backups/mongodb")


def test_scheduled_backups_are_pruned_to_the_configured_number(db: Host) -> None:
    client(db).notes.things.insert_one({})
    db.check_output(
        "mkdir -p /var/backups/mongodb && cd /var/backups/mongodb && mkdir .1999.new 2001 2002 2003 2004 2005 2006 2007"
    )
    db.check_output("systemctl start mongodb-backup.service")
    names = db.check_output("ls -A /var/backups/mongodb").split()
    assert names[:7] == [".lock", "2002", "2003", "2004", "2005", "2006", "2007"]
    assert len(names) == 8
    db.check_output("rm -rf /var/backups/mongodb")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    """Create a replica set of three hosts while a client tries to become its administrator; remove it after the module."""
    found = hosts(*MEMBERS)
    directory = tmp_path_factory.mktemp("set")
    first = found["debian12"]
    first.check_output(
        "rm -f /run/access-probe.*; apt-get -q update && apt-get -qy --no-install-recommends install python3-pymongo"
    )
    first.check_output("systemd-run --quiet --collect --unit=access-probe python3 -c %s", ACCESS_PROBE)
    try:
        expect_success(provision(directory, ",".join(MEMBERS), **replica_set(found)))
        yield found
    finally:
        for host in found.values():
            host.run("systemctl stop access-probe; systemctl kill --signal=KILL mongod")
            host.run("systemctl disable --now mongod mongodb-backup.timer")
            directories = "/etc/mongodb /var/lib/mongodb /var/log/mongodb /var/backups/mongodb /opt/mongodb /usr/local/bin/mongod"
            units = "/etc/systemd/system/mongod.service /etc/systemd/system/mongodb-backup.*"
            host.check_output(f"rm -rf {directories} {units} /usr/local/sbin/mongodb-backup /etc/logrotate.d/mongod")
            host.check_output("systemctl daemon-reload; userdel mongodb")


def replica_set(members: dict[str, Host], **overrides: Any) -> dict[str, Any]:
    """Return the variables of the replica set, by addresses, which also the controller resolves."""
    addresses = [address(host) for host in members.values()]
    replica_set_variables = {"name": "rs0", "members": addresses, "key": "bm90LWZvci1vdGhlcnM="}
    # Stopping members would otherwise wait 15 s for other members to finish their operations.
    parameters = VARIABLES["mongodb_settings"]["setParameter"] | {"shutdownTimeoutMillisForSignaledShutdown": 2000}
    settings = VARIABLES["mongodb_settings"] | {"setParameter": parameters}
    own = {
        "mongodb_settings": settings,
        "mongodb_addresses": ["{{ ansible_host }}"],
        "mongodb_member": "{{ ansible_host }}",
        "mongodb_replica_set": replica_set_variables,
    }
    return own | overrides


def replica_set_client(members: dict[str, Host], login: tuple[str, str, str] = NOTES) -> Client:
    """Return a client of the replica set, like apps: it waits 30 s for a primary, and an election starts after 10 s."""
    seeds = ",".join(address(host) for host in members.values())
    return client(seeds, login, directConnection=False, replicaSet="rs0", w="majority", serverSelectionTimeoutMS=30_000)


def has_document(host: Host) -> bool:
    return client(host, readPreference="secondaryPreferred").notes.things.find_one() == {"_id": 1}


def test_three_members_form_one_database(members: dict[str, Host]) -> None:
    first = members["debian12"]
    first.check_output("touch /run/access-probe.stop")
    assert int(eventually(lambda: first.check_output("cat /run/access-probe.json"))) > 0
    admin = replica_set_client(members, ADMIN)
    assert [user["user"] for user in admin.admin.command("usersInfo", {"forAllDBs": True})["users"]] == ["admin", "notes"]
    status = admin.admin.command("replSetGetStatus")
    assert sorted(member["stateStr"] for member in status["members"]) == ["PRIMARY", "SECONDARY", "SECONDARY"]
    notes = replica_set_client(members)
    notes.notes.things.insert_one({"_id": 1})
    for host in members.values():
        eventually(partial(has_document, host))
        with pytest.raises(OperationFailure, match="requires authentication"):
            client(host, None).notes.things.find_one()


def test_rolling_change_of_replica_set_loses_no_write(members: dict[str, Host], tmp_path: Path) -> None:
    variables = replica_set(members, mongodb_open_files=8192)
    before = {name: pid(host) for name, host in members.items()}
    seeds = ",".join(address(host) for host in members.values())
    with insert_continuously(seeds, NOTES, directConnection=False, replicaSet="rs0", w="majority") as acknowledged:
        expect_success(provision(tmp_path, ",".join(MEMBERS), serial=1, **variables))
    assert not {pid(host) for host in members.values()} & set(before.values())
    assert replica_set_client(members).notes.written.count_documents({}) == len(acknowledged)
    assert expect_success(provision(tmp_path, ",".join(MEMBERS), **variables)).count("changed=0") == 3


def test_killed_primary_loses_no_document(members: dict[str, Host]) -> None:
    notes = replica_set_client(members)
    notes.notes.things.drop()
    primary = notes.primary
    assert primary
    victim = next(host for host in members.values() if address(host) == primary[0])
    for number in range(50):
        notes.notes.things.insert_one({"_id": number})
    victim.check_output("systemctl kill --signal=KILL mongod && systemctl stop mongod")
    try:
        assert replica_set_client(members).notes.things.count_documents({}) == 50
        replica_set_client(members).notes.things.insert_one({"_id": 50})
    finally:
        victim.check_output("systemctl start mongod")
    eventually(lambda: client(victim, readPreference="secondaryPreferred").notes.things.count_documents({}) == 51)


def test_backup_of_replica_set_is_consistent(members: dict[str, Host]) -> None:
    """Transactions write to two collections; a concurrent backup must contain the same documents in both."""
    notes, host = replica_set_client(members), members["lock"]
    for name in ("left", "right"):
        notes.notes[name].insert_many([{"_id": -n - 1} for n in range(3000)])
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with notes.start_session() as session, session.start_transaction():
                for name in ("left", "right"):
                    notes.notes[name].insert_one({"_id": number}, session=session)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        eventually(lambda: notes.notes.right.count_documents({"_id": {"$gte": 0}}) > 5)
        host.check_output("mongodb-backup create")
        host.check_output("mongodb-backup create")
    finally:
        stop.set()
        thread.join(30)
    restored = replica_set_client(members, ADMIN)
    host.check_output("mongodb-backup restore latest --force")
    ids = {name: {document["_id"] for document in restored.notes[name].find()} for name in ("left", "right")}
    assert ids["left"] == ids["right"]
    assert len(ids["left"]) > 3005


def test_different_replica_set_key_is_rejected(members: dict[str, Host], tmp_path: Path) -> None:
    variables = replica_set(members)
    variables["mongodb_replica_set"] |= {"key": "YW5vdGhlci1vbmU="}
    before = pid(members["lock"])
    status, output = provision(tmp_path, "lock", **variables)
    assert status != 0
    assert "mongodb_replica_set.key: differs from the key that this host shares with" in output
    assert members["lock"].check_output("cat /etc/mongodb/replica-set.key") == "bm90LWZvci1vdGhlcnM="
    assert pid(members["lock"]) == before


def test_primary_can_be_removed_from_replica_set(members: dict[str, Host], tmp_path: Path) -> None:
    """Run this test last: the remaining two members have no majority without each other."""
    with replica_set_client(members) as notes:
        notes.notes.staying.insert_one({"_id": 1})
        primary = notes.primary
    assert primary
    remaining = {name: host for name, host in members.items() if address(host) != primary[0]}
    expect_success(provision(tmp_path, ",".join(remaining), **replica_set(remaining)))
    reply = client(next(iter(remaining.values())), None).admin.command("hello")
    assert sorted(reply["hosts"]) == sorted(f"{address(host)}:27017" for host in remaining.values())
    assert replica_set_client(remaining).notes.staying.find_one({"_id": 1}) == {"_id": 1}
    replica_set_client(remaining).notes.staying.insert_one({"_id": 2})
