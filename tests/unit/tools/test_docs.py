from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import site_owner
from ansible_collections.funnel.tornado.plugins.module_utils.app.validation import load
from tests.support.pages import GUIDES, PAGES, broken_links, commands, host_problem, problem, quoted, sources, untested
from tools.docs import ROOT, pages, role_page


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=relative)
def test_what_is_written_from_elsewhere_is_up_to_date(page: Path) -> None:
    assert page.read_text() == pages()[page](), "stale: run `make docs`"


def test_a_page_of_a_role_has_to_have_a_place_for_its_variables(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/argument_specs.yml").write_text("argument_specs: {main: {options: {}}}")
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"README.md: has no lines <!-- variables: begin --> and <!-- variables: end -->"):
        role_page(tmp_path / "README.md")


def test_the_entries_that_the_readme_shows_are_right() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", textwrap.dedent((ROOT / "README.md").read_text()), re.DOTALL)
    entries = [found["tornado_apps"] for block in blocks if "tornado_apps" in (found := yaml.safe_load(textwrap.dedent(block)))]
    assert [name for entry in entries for name in load(entry)] == ["shop", "shop", "blog", "queue"]


def test_each_of_the_two_apps_that_are_one_site_takes_twelve_lines() -> None:
    entries: dict[str, object] = {}
    for name in ("reporting_app", "rest_api"):
        [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / f"files/{name}/README.md").read_text(), re.DOTALL)
        assert len(block.splitlines()) <= 12
        entries |= yaml.safe_load(block)["tornado_apps"]
    apps = load(entries)
    assert site_owner(apps["rest_api"], apps.values()) == apps["reporting_app"]


@pytest.mark.parametrize("name", ["sample_app", "procfile_app"])
def test_an_app_to_start_from_takes_twelve_lines(name: str) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / f"files/{name}/README.md").read_text(), re.DOTALL)
    assert len(block.splitlines()) <= 12
    [app] = load(yaml.safe_load(block)["tornado_apps"]).values()
    assert (ROOT / str(app.source.path)).is_dir()


def test_the_entries_of_the_inventory_for_development_are_right() -> None:
    text = (ROOT / "inventories/dev/group_vars/all.yml").read_text().replace("{{ code }}", str(ROOT / "files"))
    apps = load(yaml.safe_load(text)["tornado_apps"])
    assert all(app.debug and Path(str(app.source.directory)).is_dir() for app in apps.values())


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_a_command_names_what_there_is(page: Path) -> None:
    found = {command: problem(command) for command in commands(page)}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_a_command_is_named_by_a_test(page: Path) -> None:
    found = {command: untested(command) for command in commands(page)}
    assert {command: what for command, what in found.items() if what} == {}


def test_a_command_that_no_test_names_is_found() -> None:
    assert untested("ansible-playbook playbooks/deploy.yml -i prod -e app=shop -e nobody_tests=this") != []
    assert untested("ansible-playbook playbooks/deplyo.yml -i prod") != []
    assert untested("python3 -m tools.hosts unplug web1") != []


def parts(name: str) -> set[str]:
    """Return the parts that a variable of the Makefile lists."""
    [found] = re.findall(rf"^{name} := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(found.split())


def test_make_test_runs_every_scenario() -> None:
    scenarios = {f"molecule-{path.parent.name}" for path in ROOT.glob("molecule/*/molecule.yml")}
    assert parts("PARTS") == scenarios | {"lint", "unit", "integration", "judges"}


def test_make_check_runs_a_part_of_make_test() -> None:
    assert parts("CHECKED") == {"lint", "unit", "integration", "molecule-default"} < parts("PARTS")


def test_the_pages_have_commands() -> None:
    assert all(commands(ROOT / name) for name in ("README.md", "CONTRIBUTING.md", "docs/operations.md", "docs/test-hosts.md"))
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
        ("make tests", "make knows no tests"),
        ("make molecule SCENARIO=nosuch", "make knows no SCENARIO=nosuch"),
        ("python3 -m tools.hosts start web1", "invalid choice: 'start'"),
        ("pytest tests/unit/test_nothing.py", "there is no tests/unit/test_nothing.py"),
        ("docker ps", "['docker'] is not known"),
    ],
)
def test_a_command_that_names_something_else_is_found(command: str, wrong: str) -> None:
    assert wrong in problem(command)


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_a_command_on_a_host_names_what_there_is(page: Path) -> None:
    found = {command: host_problem(command) for command in commands(page, "sh")}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}
    assert host_problem("service nginx restart") != ""
    assert host_problem("journalctl -u apache2") != ""


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n\n[a](page.md) [b](#one-two) [c](http://a.test/#x) [d](no.md) [e](#three) [f](page.md#four)")
    assert broken_links(page) == ["no.md", "#three", "page.md#four"]


def test_messages_are_quoted_as_they_are() -> None:
    text = sources()
    messages = quoted(ROOT / "docs/troubleshooting.md")
    assert len(messages) > 30
    # A message may be put together of several, each after a colon.
    parts = [part.strip(" :;,") for message in messages for part in re.split("(?:tornado_apps[.])?…|: ", message)]
    assert [part for part in parts if part not in text] == []


def test_what_is_said_to_prove_something_exists() -> None:
    files = [path for name in ("molecule", "tests") for path in (ROOT / name).rglob("test_*.py")]
    tests = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text()))
    assert len(named) > 20
    assert named - tests == set()
