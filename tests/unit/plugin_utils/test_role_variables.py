"""Detection of misspelled role variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.funnel.tornado.plugins.filter.fleet_problems import fleet_problems, role_options
from ansible_collections.funnel.tornado.plugins.plugin_utils.role_variables import (
    likely_variable,
    role_of,
    role_variable_problems,
    yaml_type_problems,
)

ROOT = Path(__file__).parents[3]

OPTIONS = {
    "nginx": {"nginx_upstreams": "dict", "nginx_listen": "list"},
    "app": {"app_names": "list", "app_versions": "dict", "app_wait": "int"},
}


def likely(name: str) -> str | None:
    """Return the variable of the collection that a name is a likely misspelling of."""
    role = role_of(name, role_options())
    return likely_variable(name, role, role_options().get(role, ()))


class Undefined(Mapping[str, Any]):
    """A host whose only variable depends on an undefined one."""

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(["app_version"])

    def __len__(self) -> int:
        return 1


def test_a_misspelled_variable_of_all_hosts_is_reported_with_the_likely_name() -> None:
    hosts: dict[str, dict[str, Any]] = {"web1": {"nginx_upstraems": {}}, "web2": {"nginx_upstraems": {"shop": {}}}}
    assert list(role_variable_problems(hosts, OPTIONS)) == [
        "nginx_upstraems: no such variable of the role nginx; did you mean nginx_upstreams?"
    ]


def test_the_value_decides_between_singular_and_plural() -> None:
    assert list(role_variable_problems({"web1": {"app_version": {"shop": "1.2"}, "nginx_upstraems": "{}"}}, OPTIONS)) == [
        "app_version: no such variable of the role app; did you mean app_versions?",
        "nginx_upstraems: no such variable of the role nginx; did you mean nginx_upstreams?",
    ]


def test_hosts_are_named_unless_all_have_the_variable() -> None:
    hosts: dict[str, dict[str, Any]] = {"web1": {"app_wiat": 5}, "web2": {}, "web3": {"app_wiat": 9, "nginx_lsiten": []}}
    assert list(role_variable_problems(hosts, OPTIONS)) == [
        "app_wiat of web1, web3: no such variable of the role app; did you mean app_wait?",
        "nginx_lsiten of web3: no such variable of the role nginx; did you mean nginx_listen?",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nginx_upstraems", "nginx_upstreams"),
        ("nginx_site", "nginx_sites"),
        ("nginx_trusted_proxy", "nginx_trusted_proxies"),
        ("limits_open_file", "limits_open_files"),
        ("app_tsl", "app_tls"),
        ("python_uv_verison", "python_uv_version"),
        ("mongodb_backup_nmae", "mongodb_backup_name"),
        ("fleet_adress", "fleet_address"),
        ("keepalived_adress", "keepalived_address"),
        ("unattended_upgrades_enabeld", "unattended_upgrades_enabled"),
    ],
)
def test_misspellings(name: str, expected: str) -> None:
    assert likely(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "python_version",
        "app_host",
        "app_set",
        "app_port",
        "logs_dir",
        "logs_server",
        "nginx_version",
        "mongodb_host",
        "mongodb_password",
        "unattended_upgrades_mail",
    ],
)
def test_names_that_only_share_the_prefix_are_free(name: str) -> None:
    assert likely(name) is None


@pytest.mark.parametrize(
    "variables",
    [
        {"app_name": "shop", "app_version": "1.2", "nginx_upstream": ["127.0.0.1:8000"], "app_waits": [1]},
        {"redis_listen": [], "nginx": {}, "": 1},
        {"nginx_listen": [], "app_wait": 60},
        Undefined(),
    ],
)
def test_other_variables_are_ignored(variables: Mapping[str, Any]) -> None:
    assert list(role_variable_problems({"web1": variables}, OPTIONS)) == []


def test_no_variable_of_the_collection_is_taken_for_a_misspelling() -> None:
    files = [*(ROOT / "roles").glob("*/*/*.yml"), *(ROOT / "playbooks").glob("**/*.yml")]
    names = {name for file in files for name in re.findall(r"^ *(?:register: |)(\w+)(?::|$)", file.read_text(), re.MULTILINE)}
    assert {"nginx_applied", "app_host", "certificates_placed"} <= names
    assert [name for name in names if likely(name)] == []


def test_only_hosts_in_groups_of_the_fleet_are_checked() -> None:
    hostvars: dict[str, dict[str, Any]] = {host: {"mongodb_usres": {}} for host in ("db1", "mail1")}
    assert fleet_problems({"app_hosts": [], "mongodb": ["db1"], "mail": ["mail1"]}, hostvars) == [
        "mongodb_usres: no such variable of the role mongodb; did you mean mongodb_users?"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("etcd_backup_schedule: 12:30", "a number"),
        ("etcd_root_password: 0123", "a number"),
        ("python_uv_version: 0.13", "a number"),
        ("nginx_access_log: off", "a boolean"),
        ("mongodb_backup_name: 2026-01-31", "a date"),
        ("nginx_worker_processes: 1.5", "a number"),
        ("app_names: [shop, no]", "a boolean"),
        ("unattended_upgrades_held: [2.4]", "a number"),
    ],
)
def test_a_string_that_yaml_reads_as_another_type_is_refused(text: str, found: str) -> None:
    variables = yaml.safe_load(text)
    [name] = variables
    expected = f"{name} of web1: must be a string, but YAML reads it as {found}; put it in quotes"
    assert fleet_problems({"app_hosts": ["web1", "web2"]}, {"web1": variables, "web2": {}}) == [expected]


def test_numbers_where_they_are_valid_are_accepted() -> None:
    variables = yaml.safe_load("{nginx_worker_processes: 2, nginx_listen: [8080], limits_open_files: 9000, app_tls: no}")
    assert list(yaml_type_problems({"web1": variables}, role_options())) == []
    assert list(yaml_type_problems({"web1": Undefined()}, {"app": {"app_version": "str"}})) == []
