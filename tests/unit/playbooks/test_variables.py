"""Settings of the user, such as variables and the strategy, must not interfere with the playbooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "playbooks").glob("**/*.yml"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def role_variables() -> set[str]:
    """Return the names in the argument specs of all roles."""
    specs = [yaml.safe_load(file.read_text()) for file in ROOT.glob("roles/*/meta/argument_specs.yml")]
    return {name for spec in specs for entry in spec["argument_specs"].values() for name in entry["options"]}


def variables(value: Any) -> Iterator[str]:
    """Yield the variables that a playbook or a task file sets, and the groups that it creates."""
    if isinstance(value, list):
        for item in value:
            yield from variables(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in ("vars", "ansible.builtin.set_fact"):
            yield from item
        elif key == "register":
            yield item
        elif key == "ansible.builtin.group_by" and "{{" not in item["key"]:
            yield item["key"]
        else:
            yield from variables(item)


@pytest.mark.parametrize("file", FILES)
def test_every_variable_is_private_or_of_a_role(file: str) -> None:
    content = yaml.safe_load((ROOT / file).read_text())
    found = set(content if file.startswith("playbooks/vars/") else variables(content))
    private = tuple(f"__{prefix}_" for prefix in ("funnel", *ROLES))
    assert {name for name in found - role_variables() if not name.startswith(private)} == set()


@pytest.mark.parametrize("file", [file for file in FILES if file.count("/") == 1])
def test_the_strategy_is_fixed_where_the_order_of_hosts_matters(file: str) -> None:
    for play in yaml.safe_load((ROOT / file).read_text()):
        if {"any_errors_fatal", "max_fail_percentage", "serial"} & set(play):
            assert play["strategy"] == "linear", play["name"]
