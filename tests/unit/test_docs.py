from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools.docs import ROOT, pages

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


@pytest.mark.parametrize("page", pages())
def test_what_is_written_from_the_model_is_up_to_date(page: Path) -> None:
    assert page.read_text() == pages()[page], "stale: run `make docs`"


@pytest.mark.parametrize("role", [role for role in ROLES if role != "app"])
def test_a_roles_defaults_argument_specs_and_readme_name_the_same_variables(role: str) -> None:
    directory = ROOT / "roles" / role
    defaults = set(yaml.safe_load((directory / "defaults/main.yml").read_text()))
    specs = yaml.safe_load((directory / "meta/argument_specs.yml").read_text())["argument_specs"]
    readme = (directory / "README.md").read_text()
    assert defaults == set(specs["main"]["options"])
    assert all(f"`{name}`" in readme for name in defaults)
    assert all(name.startswith(f"{role}_") for name in defaults)
