"""The conventions of CONTRIBUTING.md that a program can check: names of tasks, terms, and the size of files."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]

PRODUCT = ("plugins", "roles", "playbooks")
PROSE = (*PRODUCT, "docs", "tools", "inventories", "prod", "README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")

#: The first words of names that do not say what a play or a task does.
VAGUE = re.compile(r"(?:\w+ \| )?(See|Let|Have|Say|Tell|Lead|Be|Look|Give|Know|Go)\b")

#: What the glossary replaces, with the term to use.
REPLACED = {
    r"\bleads? to (it|them|the)\b|\bgoes? back to\b": "switch or roll back",
    r"\b(is|be|are|all) well\b|\bsick\b": "healthy, unhealthy",
    r"\btells? of itself\b|\bsays? of itself\b": "host state",
    r"\bas (it|they) (has|have) to be\b": "desired state, up to date",
    r"\bby the clock\b": "scheduled",
    r"\blets go of\b|\baddress floats\b": "floating IP, failover, hand over",
    r"\bleft out\b|\blost on the way\b": "unreachable, skipped, excluded",
    r"\bfiles of before\b": "restored, rolled back",
    r"\blet in\b": "allow, permit, accept",
    r"\bis believed\b": "trusted proxy",
    r"\bhas in progress\b": "in-flight request, graceful shutdown",
    r"\bwhoever\b": "a subject that acts",
}

MAX_LINES = 500


def tracked(*paths: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "--", *paths], cwd=ROOT, check=True, capture_output=True, text=True)
    files = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in files if path.is_file() and not path.is_symlink() and path.suffix != ".png"]


def unwrapped(text: str) -> str:
    """Return a text with each line break, and the marks of comments after it, as one space."""
    return re.sub(r"\n[\s#:|*-]*", " ", text)


def names(data: Any) -> Iterator[str]:
    """Yield the names of all plays, blocks and tasks in a YAML file."""
    if isinstance(data, list):
        for entry in data:
            yield from names(entry)
    elif isinstance(data, dict):
        if isinstance(data.get("name"), str):
            yield data["name"]
        for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from names(data.get(key))


@pytest.mark.parametrize("path", tracked("roles/*/tasks/*.yml", "playbooks/*.yml", "playbooks/tasks/*.yml"), ids=str)
def test_names_of_plays_and_tasks_begin_with_what_they_do(path: Path) -> None:
    assert [name for name in names(yaml.safe_load(path.read_text())) if VAGUE.match(name)] == []


@pytest.mark.parametrize("name", ["See that nginx runs", "sites | Let nginx check the sites"])
def test_vague_names_are_found(name: str) -> None:
    assert list(names([{"hosts": "all", "tasks": [{"block": [{"name": name}]}]}])) == [name]
    assert VAGUE.match(name)


@pytest.mark.parametrize(("pattern", "terms"), REPLACED.items(), ids=REPLACED.values())
def test_terms_of_the_glossary_are_used(pattern: str, terms: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}": terms
        for path in tracked(*PROSE)
        for match in re.finditer(pattern, unwrapped(path.read_text()), flags=re.IGNORECASE)
    }
    assert found == {}


def test_files_of_the_product_are_short() -> None:
    lengths = {path.relative_to(ROOT): path.read_text().count("\n") for path in tracked(*(f"{name}/*.py" for name in PRODUCT))}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}
    assert len(lengths) > 100


def text_accesses_without_encoding(source: str) -> list[str]:
    """Return the calls in Python source that read or write text in the encoding of the locale."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        keywords = {keyword.arg for keyword in call.keywords}
        modes = [node.value for node in call.args if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        opens_text = name == "fdopen" and not any("b" in mode for mode in modes)
        if "encoding" not in keywords and (name in {"read_text", "write_text"} or opens_text or keywords & {"text"}):
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", tracked("plugins/*.py", "roles/*.py"), ids=str)
def test_text_is_utf_8_whatever_the_locale_of_the_host(path: Path) -> None:
    assert text_accesses_without_encoding(path.read_text()) == []


def test_text_in_the_encoding_of_the_locale_is_found() -> None:
    source = "path.read_text(errors='replace'); os.fdopen(0, 'w'); run(['a'], text=True); os.fdopen(0, 'rb')"
    assert text_accesses_without_encoding(source) == source.split("; ")[:3]
