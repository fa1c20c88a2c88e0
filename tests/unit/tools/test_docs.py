from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import site_owner
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from tests.support.pages import (
    GUIDES,
    PAGES,
    broken_links,
    command_problem,
    commands,
    host_command_problem,
    message_sources,
    quoted_messages,
    untested_parts,
)
from tests.support.recipes import RECIPES, recipe
from tests.support.variations import VARIATIONS
from tools.docs import ALTERNATIVES, EXAMPLES, ROOT, example, pages, role_page


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=relative)
def test_generated_files_are_up_to_date(page: Path) -> None:
    assert page.read_text() == pages()[page](), "stale: run `make docs`"


def test_a_role_page_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/argument_specs.yml").write_text("argument_specs: {main: {options: {}}}")
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(
        ValueError,
        match=r"README.md: has no lines <!-- variables: begin --> and <!-- variables: end --> for the output of `make docs`",
    ):
        role_page(tmp_path / "README.md")


def test_the_annotated_entry_is_valid() -> None:
    accounts = {"source": {"path": "."}, "run": {"app": "a:b"}, "domains": ["accounts.test"]}  # on which the entry depends
    assert list(load(yaml.safe_load(example())["tornado_apps"] | {"accounts": accounts})) == ["shop", "accounts"]


#: Entries that use the alternatives of the annotated entry, by the path of each key.
VARIANTS: list[set[str]] = [
    {"source.path", "run.wsgi", "run.threads", "tls.provider", "tls.certificate", "tls.key"},
    {"source.archive", "source.checksum", "run.command"},
    {"source.package", "source.requirements", "source.version", "run.app", "prefix"},
    {"source.push", "source.keys", "source.subdirectory", "run.procfile", "port"},
    {"source.directory", "run.asgi", "run.loop", "debug", "watch"},
]


@pytest.mark.parametrize("paths", VARIANTS, ids=lambda paths: min(paths - {"port", "debug"}))
def test_the_alternatives_of_the_annotated_entry_are_valid(paths: set[str]) -> None:
    entry: dict[str, Any] = {"domains": EXAMPLES["domains"]}
    for path in paths:
        key, _, nested = path.partition(".")
        value = {"tls.provider": "files", "source.version": "1.4.0"}.get(path, EXAMPLES[path])
        if nested:
            entry.setdefault(key, {})[nested] = value
        else:
            entry[key] = value
    site = {"source": {"path": "."}, "run": {"app": "a:b"}, "domains": entry["domains"]}
    assert "shop" in load({"shop": entry} | ({"site": site} if "prefix" in entry else {}))


def test_every_alternative_of_the_annotated_entry_is_tested() -> None:
    assert set().union(*VARIANTS) >= ALTERNATIVES


def test_the_entries_of_the_readme_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", textwrap.dedent((ROOT / "README.md").read_text()), re.DOTALL)
    entries = [found["tornado_apps"] for block in blocks if "tornado_apps" in (found := yaml.safe_load(textwrap.dedent(block)))]
    assert [name for entry in entries for name in load(entry)] == ["shop", "shop", "blog", "queue"]


@pytest.mark.parametrize("page", RECIPES, ids=relative)
def test_the_entry_of_a_recipe_is_short_and_valid(page: Path) -> None:
    text = recipe(page)
    assert len(text.splitlines()) <= 15
    [app] = load(yaml.safe_load(text)["tornado_apps"]).values()
    assert (ROOT / f"molecule/recipes/apps/{app.name}").is_dir()
    assert f"(../../molecule/recipes/apps/{app.name})" in page.read_text()
    assert f"({page.name})" in (page.parent / "README.md").read_text()


@pytest.mark.parametrize("page", RECIPES, ids=relative)
def test_a_recipe_says_how_to_migrate_its_data(page: Path) -> None:
    text = "".join(re.findall(r"^\*\*Migrate:\*\* (.+)", page.read_text(), re.MULTILINE))
    assert text
    for name, entry in yaml.safe_load(recipe(page))["tornado_apps"].items():
        assert "shared" not in entry or f"/srv/{name}/shared/" in text, "where the data go"


@pytest.mark.parametrize("framework", ["Streamlit", "Panel", "Bokeh", "JupyterLab", "Socket.IO"])
def test_the_readme_names_the_key_of_apps_with_state_in_memory(framework: str) -> None:
    section = (ROOT / "README.md").read_text().partition(" Apps that keep state in memory need")[2].partition("\n\n| to |")[0]
    rows = [line for line in section.splitlines() if framework in line]
    assert len(rows) == 1
    assert "| `affinity: cookie`" in rows[0] or "| `processes: 1`" in rows[0]


def test_the_entries_of_apps_that_share_a_site_have_at_most_twelve_lines() -> None:
    entries: dict[str, object] = {}
    for name in ("reporting_app", "rest_api"):
        [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / f"files/{name}/README.md").read_text(), re.DOTALL)
        assert len(block.splitlines()) <= 12
        entries |= yaml.safe_load(block)["tornado_apps"]
    apps = load(entries)
    assert site_owner(apps["rest_api"], apps.values()) == apps["reporting_app"]


@pytest.mark.parametrize("name", ["sample_app", "procfile_app"])
def test_the_entries_of_sample_apps_have_at_most_twelve_lines(name: str) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / f"files/{name}/README.md").read_text(), re.DOTALL)
    assert len(block.splitlines()) <= 12
    [app] = load(yaml.safe_load(block)["tornado_apps"]).values()
    assert (ROOT / str(app.source.path)).is_dir()


def test_the_entries_of_the_development_inventory_are_valid() -> None:
    text = (ROOT / "inventories/dev/group_vars/all.yml").read_text().replace("{{ code }}", str(ROOT / "files"))
    apps = load(yaml.safe_load(text)["tornado_apps"])
    assert all(app.debug and Path(str(app.source.directory)).is_dir() for app in apps.values())


def test_the_production_inventory_uses_acme() -> None:
    entries = yaml.safe_load((ROOT / "inventories/prod/group_vars/all.yml").read_text())["tornado_apps"]
    assert {entry["tls"]["provider"] for entry in entries.values()} == {"acme"}


def test_the_page_on_certificates_begins_with_one_screen_of_answers() -> None:
    screen = (ROOT / "docs/operations/certificates.md").read_text().partition("\n## ")[0].splitlines()
    assert len(screen) <= 30
    assert len([line for line in screen if line.startswith("| ") and "?" in line]) > 10


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_commands_refer_to_existing_files_and_options(page: Path) -> None:
    found = {command: command_problem(command) for command in commands(page)}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_commands_are_covered_by_tests(page: Path) -> None:
    found = {command: untested_parts(command) for command in commands(page)}
    assert {command: what for command, what in found.items() if what} == {}


def test_untested_commands_are_detected() -> None:
    assert untested_parts("ansible-playbook playbooks/deploy.yml -i prod -e app=shop -e nobody_tests=this") != []
    assert untested_parts("ansible-playbook playbooks/deplyo.yml -i prod") != []
    assert untested_parts("python3 -m tools.hosts unplug web1") != []


def parts(name: str) -> set[str]:
    """Return the words of a variable in the Makefile."""
    [found] = re.findall(rf"^{name} := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(found.split())


def test_make_test_runs_every_scenario() -> None:
    scenarios = {f"molecule-{path.parent.name}" for path in ROOT.glob("molecule/*/molecule.yml")}
    assert parts("PARTS") == scenarios | {"lint", "unit", "integration", "judges"}


def test_make_check_runs_a_subset_of_make_test() -> None:
    assert parts("CHECKED") == {"lint", "unit", "integration", "molecule-default"} < parts("PARTS")


def test_pages_have_commands() -> None:
    assert all(commands(ROOT / name) for name in ("README.md", "CONTRIBUTING.md", "docs/test-hosts.md"))
    assert all(commands(page) for page in GUIDES if page.parent.name == "operations")
    assert commands(ROOT / "docs/troubleshooting.md", "sh")


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("ansible-playbook playbooks/deplyo.yml -i prod", "there is no playbooks/deplyo.yml"),
        ("ansible-playbook site.yml -i production", "there is no production"),
        ("ansible-playbook site.yml -i prod --dryrun", "unrecognized arguments: --dryrun"),
        ("ansible-playbook playbooks/rollback.yml -i prod -e application=shop", "does not read application=shop"),
        ("ansible-playbook playbooks/restart.yml -i prod -e version=v2", "does not read version=v2"),
        ("ansible-playbook site.yml -i prod -e @nothing.yml", "there is no nothing.yml"),
        ("make tests", "make has no tests"),
        ("make molecule SCENARIO=nosuch", "make has no SCENARIO=nosuch"),
        ("python3 -m tools.hosts start web1", "invalid choice: 'start'"),
        ("pytest tests/unit/test_nothing.py", "there is no tests/unit/test_nothing.py"),
        ("docker ps", "['docker'] is not an allowed program"),
    ],
)
def test_invalid_commands_are_detected(command: str, wrong: str) -> None:
    assert wrong in command_problem(command)


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_commands_on_a_host_refer_to_existing_programs_and_units(page: Path) -> None:
    found = {command: host_command_problem(command) for command in commands(page, "sh")}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}
    assert host_command_problem("service nginx restart") != ""
    assert host_command_problem("journalctl -u apache2") != ""


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_are_valid(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_detected(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n\n[a](page.md) [b](#one-two) [c](http://a.test/#x) [d](no.md) [e](#three) [f](page.md#four)")
    assert broken_links(page) == ["no.md", "#three", "page.md#four"]


def test_quoted_messages_exist_in_the_code() -> None:
    text = message_sources()
    messages = quoted_messages(ROOT / "docs/troubleshooting.md")
    assert len(messages) > 30
    # A message may consist of several, separated by colons.
    parts = [part.strip(" :;,") for message in messages for part in re.split("(?:tornado_apps[.])?…|: ", message)]
    assert [part for part in parts if part not in text] == []


def test_tests_named_in_the_security_page_exist() -> None:
    text = (ROOT / "docs/security.md").read_text()
    tests = {name for names in tests_by_suite().values() for name in names}
    assert set(re.findall(r"`(test_\w+)`", text)) - tests == set()


def test_each_attack_of_the_security_page_has_a_test_in_the_named_suite() -> None:
    """A test is in the scenario edge, unless another suite is named before it."""
    tests = tests_by_suite()
    section = (ROOT / "docs/security.md").read_text().partition("\n## Attacks\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 25
    for attacker, attack, _prevention, named in rows:
        suite, found = "edge", re.findall(r"(\w+): |`(test_\w+)`", named)
        assert any(test for _suite, test in found), (attacker, attack)
        for other, test in found:
            suite = other or suite
            assert not test or test in tests[suite], (attacker, attack, test)


def first_cells(text: str) -> set[str]:
    """Return the words in code format of the first column of the tables in a text."""
    cells = re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_keys_equivalent_to_root_exist_and_include_all_snippets_of_configuration() -> None:
    section = (ROOT / "docs/security.md").read_text().partition("\n## Keys equivalent to root\n")[2].partition("\n## ")[0]
    keys, variables = section.split("\n| variable |")
    of_entries = first_cells((ROOT / "docs/reference.md").read_text())
    assert {key for key in of_entries if key.endswith("extra")} < first_cells(keys) <= of_entries
    specs = [yaml.safe_load(path.read_text())["argument_specs"] for path in ROOT.glob("roles/*/meta/argument_specs.yml")]
    of_roles = {name for spec in specs for entry in spec.values() for name in entry["options"]}
    assert {name for name in of_roles if name.endswith("_extra")} < first_cells(variables) <= of_roles


def tests_by_suite() -> dict[str, set[str]]:
    """Return the names of the tests of each scenario, of the unit tests and of the integration tests."""
    found: dict[str, set[str]] = {}
    for path in (*(ROOT / "molecule").rglob("test_*.py"), *(ROOT / "tests").rglob("test_*.py")):
        names = re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
        found.setdefault(path.relative_to(ROOT).parts[1], set()).update(names)
    return found


def test_files_named_in_the_architecture_exist() -> None:
    files = [str(path) for name in ("plugins", "roles", "playbooks", "tools") for path in (ROOT / name).rglob("*")]
    named = set(re.findall(r"`([\w/]+(?:/\w+|\.(?:py|yml|json)))`", (ROOT / "docs/architecture.md").read_text()))
    assert len(named) > 50
    assert {name for name in named if not any(file.endswith(f"/{name}") for file in files)} == {"release.json"}


def test_the_page_on_existing_hosts_lists_each_tested_variation() -> None:
    page = (ROOT / "docs/operations/existing-hosts.md").read_text()
    assert [name for name in VARIATIONS if name not in page] == []
