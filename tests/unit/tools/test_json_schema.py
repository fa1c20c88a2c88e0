"""The JSON Schema of ``tornado_apps``, with which editors complete and check inventories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tools.docs import JSON_SCHEMA, ROOT, example

VALIDATOR = Draft7Validator(json.loads(JSON_SCHEMA.read_text()))

#: Files with entries: variables of inventories, and playbooks of the tests.
FILES = [ROOT / "README.md", *ROOT.glob("inventories/*/group_vars/*.yml"), *ROOT.glob("molecule/**/*.yml")]
ENTRY = {"source": {"path": "."}, "run": {"app": "shop.web:make_app"}}


class Loader(yaml.SafeLoader):
    """Reads tags of Ansible, such as ``!vault``, as strings."""


Loader.add_multi_constructor("!", lambda _loader, _tag, node: node.value)


def documents(path: Path) -> Iterator[Any]:
    """Yield the YAML documents of a file; those of a page are its blocks."""
    text = path.read_text()
    blocks = re.findall(r"^( *)```yaml\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL) if path.suffix == ".md" else [("", text)]
    for indentation, block in blocks:
        yield yaml.load(re.sub(rf"^{indentation}", "", block, flags=re.MULTILINE), Loader)


def entries(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the entries of ``tornado_apps`` at any depth."""
    children = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    if isinstance(data, dict) and isinstance(data.get("tornado_apps"), dict):  # otherwise a template
        yield {"tornado_apps": data["tornado_apps"]}
    for child in children:
        yield from entries(child)


EXAMPLES = [
    pytest.param(found, id=f"{path.relative_to(ROOT)}-{number}")
    for path in FILES
    for number, found in enumerate(entry for document in documents(path) for entry in entries(document))
]


def mistakes(**keys: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors({"tornado_apps": {"shop": {**ENTRY, **keys}}})]


def test_the_annotated_entry_is_valid() -> None:
    assert list(VALIDATOR.iter_errors(yaml.safe_load(example()))) == []


@pytest.mark.parametrize("variables", EXAMPLES)
def test_entries_of_inventories_and_scenarios_are_valid(variables: dict[str, Any]) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(variables)] == []


def test_inventories_the_readme_and_scenarios_have_entries() -> None:
    files = {str(example.id).rpartition("-")[0] for example in EXAMPLES}
    assert files >= {"README.md", "inventories/prod/group_vars/all.yml", "molecule/shared/group_vars/app_hosts.yml"}


@pytest.mark.parametrize(
    "keys",
    [
        {"processes": "{{ ansible_facts.processor_nproc }}"},
        {"tls": "{{ common_tls }}"},
        {"domains": "{{ [inventory_hostname] }}"},
        {"env": {"SIZE": "{% if big %}9{% endif %}"}},
        {"static": None},
        {"tls": {"provider": False}},
    ],
    ids=str,
)
def test_templates_and_unquoted_words_are_valid(keys: dict[str, Any]) -> None:
    assert mistakes(**keys) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"drian": 5},
        {"health": {"pth": "/"}},
        {"workers": {"queue": {"comand": "x"}}},
        {"processes": "many"},
        {"processes": 0},
        {"drain": "30"},
        {"domains": "shop.example.com"},
        {"domains": ["Shop.example.com"]},
        {"run": {}},
        {"run": {"app": "a:b", "wsgi": "a:b"}},
        {"source": None},
        {"tls": {"provider": "letsencrypt"}},
    ],
    ids=str,
)
def test_mistakes_are_found(keys: dict[str, Any]) -> None:
    assert mistakes(**keys)


def test_patterns_mean_the_same_in_javascript() -> None:
    """Editors compile patterns with the flag ``u``, which refuses needless escapes and Python's own syntax."""
    patterns = re.findall(r'"pattern": (".*")', JSON_SCHEMA.read_text())
    assert patterns
    for pattern in map(json.loads, patterns):
        assert not re.search(r"\(\?[^:=!<]|\(\?<[^=!]|\\[^\\wWdDsSnrtbx0.*+?^$(){}|\[\]/]|\[[^]]*\\w-[^]]", pattern), pattern


@pytest.mark.parametrize("inventory", ["prod", "dev"])
def test_inventories_name_the_schema_for_editors(inventory: str) -> None:
    file = ROOT / f"inventories/{inventory}/group_vars/all.yml"
    (path,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", file.read_text(), re.MULTILINE)
    assert (file.parent / path).resolve() == JSON_SCHEMA
