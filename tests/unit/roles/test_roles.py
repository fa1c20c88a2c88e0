"""Consistency of the defaults, argument specs and files of each role."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, nodes
from jinja2.nativetypes import NativeEnvironment

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE

ROOT = Path(__file__).parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())

#: Keys of a task whose value is an expression without braces.
EXPRESSIONS = {"when", "that", "until", "changed_when", "failed_when"}


def load(role: str, file: str) -> Any:
    return yaml.safe_load((ROOT / "roles" / role / file).read_text())


@functools.cache
def defaults(role: str) -> dict[str, Any]:
    return dict(load(role, "defaults/main.yml"))


@functools.cache
def options(role: str) -> dict[str, dict[str, Any]]:
    """Return the variables in the argument specs of all entry points, except ``tornado_apps``."""
    entries = load(role, "meta/argument_specs.yml")["argument_specs"].values()
    return {name: option for entry in entries for name, option in entry["options"].items() if name != VARIABLE}


def names(text: str) -> set[str]:
    """Return the variables in a Jinja template."""
    return {node.name for node in Environment().parse(text).find_all(nodes.Name)}


def templated(value: object) -> bool:
    return "{{" in str(value)


def rendered(role: str, name: str) -> Any:
    """Return a default, evaluated with the other defaults."""
    value = defaults(role)[name]
    if not templated(value):
        return value
    others = {other: rendered(role, other) for other in names(value) & defaults(role).keys()}
    return NativeEnvironment().from_string(value).render(others)


def variables_in(value: object, key: str = "") -> Iterator[str]:
    """Yield the variables in the templates and expressions of a YAML value."""
    if isinstance(value, dict):
        for inside, item in value.items():
            yield from variables_in(str(inside))
            yield from variables_in(item, str(inside))
    elif isinstance(value, list):
        for item in value:
            yield from variables_in(item, key)
    elif isinstance(value, str):
        text = f"{{{{ {value} }}}}" if key in EXPRESSIONS else value
        yield from names(text)


@functools.cache
def used(role: str) -> set[str]:
    """Return the variables that the role's files use."""
    directory = ROOT / "roles" / role
    files = [file for part in ("defaults", "tasks", "handlers", "vars") for file in directory.glob(f"{part}/**/*.yml")]
    found = {name for file in files for name in variables_in(yaml.safe_load(file.read_text()))}
    for template in directory.glob("templates/*"):
        found |= names(template.read_text())
    return found


@functools.cache
def internal_variables() -> set[str]:
    """Return the variables that the roles set: registered results and vars."""
    registered = re.compile(r"^ *register: (\w+)", re.MULTILINE)
    found = {name for file in (ROOT / "roles").glob("*/tasks/*.yml") for name in registered.findall(file.read_text())}
    return found | {name for file in (ROOT / "roles").glob("*/vars/**/*.yml") for name in yaml.safe_load(file.read_text())}


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_has_the_prefix_of_its_role(role: str) -> None:
    assert [name for name in options(role) if not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_have_the_same_variables(role: str) -> None:
    optional = {name for name, option in options(role).items() if not option.get("required")}
    assert set(defaults(role)) - set(options(role)) == set()
    assert optional - set(defaults(role)) == set(), "the role fails without an optional variable that has no default"


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_document_the_defaults(role: str) -> None:
    documented = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert documented == {name: rendered(role, name) for name in documented}
    undocumented = [
        name for name, value in defaults(role).items() if name not in documented and not options(role)[name].get("required")
    ]
    assert [name for name in undocumented if not templated(defaults(role)[name])] == []


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    assert set(options(role)) - used(role) == set()


@pytest.mark.parametrize("role", ROLES)
def test_every_used_variable_of_a_role_is_documented(role: str) -> None:
    ours = {name for name in used(role) if name.startswith(tuple(f"{other}_" for other in ROLES))}
    assert ours
    assert ours - internal_variables() - {name for other in ROLES for name in options(other)} == set()


def test_preflight_validates_the_variables_that_site_yml_does_not() -> None:
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/provision.yml").read_text())
    imports = [task.get("ansible.builtin.import_role", {}) for task in tasks]
    unvalidated = [task["name"].removeprefix("funnel.tornado.") for task in imports if task.get("rolespec_validate") is False]
    check = yaml.safe_load((ROOT / "roles/app/tasks/preflight.yml").read_text())[0]["funnel.tornado.preflight"]
    assert unvalidated == check["roles"] != []


@pytest.mark.parametrize(
    ("open_files", "connections", "most"),
    [
        (1_048_576, None, 523_788),
        (20_000, None, 9500),
        (20_000, 9500, 9500),
        (20_000, 9501, 9500),
        (4096, None, 1843),
        (4096, 1844, 1843),
    ],
)
def test_haproxy_may_use_all_open_files_but_a_few_for_connections(open_files: int, connections: int | None, most: int) -> None:
    def render(text: str) -> Any:
        return NativeEnvironment().from_string(text).render(variables)

    variables: dict[str, Any] = {"__haproxy_host": {"open_files": open_files}, "__haproxy_files": {}}
    variables["__haproxy_max_connections"] = render(load("haproxy", "vars/main.yml")["__haproxy_max_connections"])
    variables["haproxy_connections"] = connections or render(defaults("haproxy")["haproxy_connections"])
    task = load("haproxy", "tasks/preflight.yml")[1]
    variables["__haproxy_allowed"] = render(task["vars"]["__haproxy_allowed"])
    check = task["ansible.builtin.assert"]
    accepted = all(render(f"{{{{ {condition} }}}}") for condition in check["that"])
    assert accepted == (connections is None or connections <= most)
    assert f"{open_files - 2 * most} are for all else; set at most {most}" in render(check["fail_msg"])


@pytest.mark.parametrize(
    ("host", "listen"), [({"ipv6": False}, ["80"]), ({"ipv6": True}, ["80", "[::]:80"]), ({}, ["80", "[::]:80"])]
)
def test_haproxy_does_not_listen_on_ipv6_if_the_kernel_lacks_it(host: dict[str, bool], listen: list[str]) -> None:
    def render(text: str, **variables: Any) -> Any:
        environment = NativeEnvironment()
        environment.tests |= {"contains": lambda text, part: part in text}
        environment.filters |= {"funnel.tornado.haproxy_files": lambda _backends, **addresses: addresses["listen"]}
        return environment.from_string(text).render({**defaults("haproxy"), **variables})

    texts = load("haproxy", "vars/main.yml")
    skipped = render(texts["__haproxy_not_listened"], __haproxy_host=host)
    assert render(texts["__haproxy_files"], __haproxy_not_listened=skipped) == listen


@pytest.mark.parametrize("entry_point", ["main", "remove"])
def test_the_app_role_checks_the_host_before_it_uses_the_result(entry_point: str) -> None:
    """Without the playbooks, the role must know which push keys and certificates to revoke, and the number of CPUs."""
    files = [file for task in load("app", f"tasks/{entry_point}.yml") for name, file in task.items() if name.endswith("_tasks")]
    assert "preflight.yml" in files
    others = [file for file in files if file != "preflight.yml"]
    assert files.index("preflight.yml") < min(map(files.index, others))
