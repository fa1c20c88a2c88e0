"""The archive of `ansible-galaxy collection build` contains everything that users need."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.support.artefact import build, install, run, tracked_files
from tests.support.remote import ROOT

#: Files and directories that users need, beside the documents in the root.
NEEDED = ("changelogs", "docs", "LICENSE", "meta", "playbooks", "plugins", "roles")

#: An unreachable host: no task must run on it.
WEB1 = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("artefact"))


@pytest.fixture(scope="module")
def home(artefact: Path) -> Path:
    directory = artefact.parent / "home"
    install(artefact, directory)
    return directory


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "site.yml").write_text(yaml.safe_dump([{"import_playbook": "funnel.tornado.site"}]))
    (tmp_path / "prod").mkdir()
    inventory = {"app_hosts": {"hosts": {"web1": WEB1}, "vars": {"tornado_apps": {}, "nginx_upstraems": {}}}}
    (tmp_path / "prod/hosts.yml").write_text(yaml.safe_dump(inventory))
    return tmp_path


def test_archive_contains_only_what_users_need(artefact: Path) -> None:
    with tarfile.open(artefact) as archive:
        found = {member.name for member in archive if not member.isdir()}
        assert all(member.isfile() or member.isdir() for member in archive)
    needed = {name for name in tracked_files() if name.split("/")[0] in NEEDED or re.fullmatch(r"[^/]+\.md", name)}
    assert found == needed | {"FILES.json", "MANIFEST.json"}
    assert {
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "meta/runtime.yml",
        "playbooks/site.yml",
        "roles/nginx/tasks/main.yml",
    } <= needed


def test_playbooks_are_found_by_name(home: Path, project: Path) -> None:
    playbooks = [f"funnel.tornado.{path.stem}" for path in (ROOT / "playbooks").glob("*.yml")]
    assert "funnel.tornado.site" in playbooks
    output = run(project, "ansible-playbook", "-i", "prod", "--syntax-check", "site.yml", *playbooks, home=home)
    assert output.count("playbook: ") == len(playbooks) + 1


@pytest.mark.parametrize("kind", ["module", "filter"])
def test_plugins_are_documented(home: Path, project: Path, kind: str) -> None:
    directory = ROOT / "plugins" / ("modules" if kind == "module" else kind)
    names = {f"funnel.tornado.{path.stem}" for path in directory.glob("*.py")}
    assert names
    documented = json.loads(run(project, "ansible-doc", "--json", "--type", kind, *names, home=home))
    assert {name for name, page in documented.items() if page["doc"]["short_description"] and page["examples"]} == names


def test_mistake_is_reported_without_contacting_hosts(home: Path, project: Path) -> None:
    output = run(project, "ansible-playbook", "site.yml", "-i", "prod", home=home, status=2)
    assert "nginx_upstraems: no such variable of the role nginx; did you mean nginx_upstreams?" in output
    assert re.search(r"web1 +: ok=0 +changed=0 +unreachable=0 +failed=1", output)
