"""The service bindings of an app: environment variables and validation."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App, to_entry
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from ansible_collections.funnel.tornado.plugins.module_utils.core.schema import InvalidDataError

MONGODB = {"hosts": ["db1"], "database": "notes"}
USER = {"user": "notes", "password": "p@ss/word"}
ETCD = {"endpoints": ["http://etcd1:2379"]}


def app(services: dict[str, Any], **keys: Any) -> App:
    entry = {"source": {"path": "files/shop"}, "run": {"app": "shop:make_app"}, "services": services, **keys}
    return load({"shop": entry})["shop"]


def problem(services: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(InvalidDataError) as caught:
        app(services, **keys)
    (found,) = caught.value.problems
    return found.removeprefix("tornado_apps.shop.")


def test_app_without_services_has_no_variables() -> None:
    assert app({}).environment == {}
    assert app({}).secret_environment == {}


def test_database_is_described_by_a_uri_and_its_parts() -> None:
    found = app({"mongodb": MONGODB})
    assert found.environment == {"MONGODB_HOST": "db1", "MONGODB_PORT": "27017", "MONGODB_NAME": "notes"}
    assert found.secret_environment == {"MONGODB_URI": "mongodb://db1/notes"}


@pytest.mark.parametrize(
    ("host", "name", "port"),
    [("db1:27018", "db1", "27018"), ("[fd00::7]", "fd00::7", "27017"), ("[fd00::7]:27018", "fd00::7", "27018")],
)
def test_host_may_include_a_port(host: str, name: str, port: str) -> None:
    found = app({"mongodb": MONGODB | {"hosts": [host]}})
    assert (found.environment["MONGODB_HOST"], found.environment["MONGODB_PORT"]) == (name, port)
    assert found.secret_environment["MONGODB_URI"] == f"mongodb://{host}/notes"


def test_variables_with_passwords_are_secret_and_quoted() -> None:
    found = app({"mongodb": MONGODB | USER | {"auth_database": "admin"}, "etcd": ETCD | USER})
    assert found.secret_environment == {
        "MONGODB_URI": "mongodb://notes:p%40ss%2Fword@db1/notes?authSource=admin",
        "MONGODB_PASSWORD": "p@ss/word",
        "ETCD_PASSWORD": "p@ss/word",
    }
    assert "p@ss" not in str(found.environment)


def test_uri_lists_all_members_of_a_replica_set() -> None:
    found = app({"mongodb": MONGODB | {"hosts": ["db1", "db2:27018"], "replica_set": "rs0"}})
    assert found.secret_environment["MONGODB_URI"] == "mongodb://db1,db2:27018/notes?replicaSet=rs0"


def test_etcd_and_syslog_set_their_variables() -> None:
    services = {"etcd": {"endpoints": ["https://a:2379", "https://b:2379"], "ca": "/etc/etcd/ca.pem"}, "syslog": {"host": "logs"}}
    assert app(services).environment == {
        "ETCD_ENDPOINTS": "https://a:2379,https://b:2379",
        "ETCD_CA": "/etc/etcd/ca.pem",
        "LOG_HOST": "logs",
        "LOG_PORT": "514",
    }


def test_entry_round_trips_to_the_host() -> None:
    sent = app({"mongodb": MONGODB | USER, "etcd": ETCD, "syslog": {"host": "logs"}})
    assert load({"shop": to_entry(sent)})["shop"] == sent


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ({"mongodb": MONGODB | {"user": "a"}}, "services.mongodb: requires both user and password; password is missing"),
        ({"etcd": ETCD | {"password": "x"}}, "services.etcd: requires both user and password; user is missing"),
        ({"mongodb": MONGODB | {"hosts": []}}, "services.mongodb.hosts: is empty; list at least one host"),
        (
            {"mongodb": MONGODB | {"hosts": ["a", "b"]}},
            "services.mongodb.replica_set: is missing; several hosts must be members of a replica set",
        ),
        ({"mongodb": MONGODB | {"auth_database": "admin"}}, "services.mongodb.auth_database: requires user and password"),
        ({"etcd": {"endpoints": []}}, "services.etcd.endpoints: is empty; list at least one URL"),
        ({"etcd": ETCD | {"ca": "/ca.pem"}}, "services.etcd.ca: requires endpoints that begin with https"),
        ({"redis": {}}, "services.redis: unknown key; valid keys are mongodb, etcd, syslog"),
    ],
)
def test_invalid_services_are_reported(services: dict[str, Any], message: str) -> None:
    assert problem(services) == message


@pytest.mark.parametrize("host", ["db1:99999", "db 1", "mongodb://db1", "db1:", "fd00::7"])
def test_invalid_hosts_are_refused(host: str) -> None:
    assert problem({"mongodb": MONGODB | {"hosts": [host]}}).startswith("services.mongodb.hosts[0]: must be a host, such as")


@pytest.mark.parametrize("where", ["env", "secrets"])
def test_variables_of_services_cannot_be_set_twice(where: str) -> None:
    found = problem({"mongodb": MONGODB}, **{where: {"MONGODB_URI": "mongodb://elsewhere"}})
    assert found == f"{where}.MONGODB_URI: is set by services; remove it here"


def test_invalid_password_is_not_shown() -> None:
    assert "(not shown)" in problem({"mongodb": MONGODB | {"user": "a", "password": 12345}})
