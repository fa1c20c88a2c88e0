from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from ansible_collections.funnel.tornado.plugins.module_utils.app_model import VARIABLE, load, site_owner
from tools.docs import ROOT, pages

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
PLUGINS = sorted((ROOT / "plugins").glob("modules/*.py")) + sorted((ROOT / "plugins").glob("filter/*.py"))


@pytest.mark.parametrize("page", pages())
def test_what_is_written_from_the_model_is_up_to_date(page: Path) -> None:
    assert page.read_text() == pages()[page], "stale: run `make docs`"


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


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_defaults_argument_specs_and_readme_name_the_same_variables(role: str) -> None:
    directory = ROOT / "roles" / role
    defaults = set(yaml.safe_load((directory / "defaults/main.yml").read_text()))
    specs = yaml.safe_load((directory / "meta/argument_specs.yml").read_text())["argument_specs"]
    readme = (directory / "README.md").read_text()
    assert defaults == set(specs["main"]["options"]) - {VARIABLE}
    assert all(f"`{name}`" in readme for name in defaults)
    assert all(name.startswith(f"{role}_") for name in defaults)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.stem)
def test_the_documentation_of_a_plugin_is_yaml(plugin: Path) -> None:
    found = re.findall(r'^(DOCUMENTATION|EXAMPLES|RETURN) = r"""(.*?)"""', plugin.read_text(), re.DOTALL | re.MULTILINE)
    blocks = {name: yaml.safe_load(text) for name, text in found}
    assert list(blocks) == ["DOCUMENTATION", "EXAMPLES", "RETURN"]
    assert plugin.stem in (blocks["DOCUMENTATION"].get("module"), blocks["DOCUMENTATION"].get("name"))
