"""A user's project with the installed collection: site.yml, two roles in a role of its own, and a playbook by name."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.support.artefact import build, install, run
from tests.support.remote import ROOT, Site, address, eventually, hosts

SCENARIO = ROOT / "molecule/consumer"


@pytest.fixture(scope="module")
def host() -> Host:
    return hosts("web1")["web1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("consumer")
    install(build(directory), directory / "home")
    return directory / "home"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Path:
    directory = tmp_path_factory.mktemp("project")
    shutil.copytree(SCENARIO / "project", directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    variables: dict[str, Any] = host.ansible.get_variables()  # type: ignore[attr-defined]  # as in tests/support/remote.py
    connection = {name: value for name, value in variables.items() if name.startswith("ansible_")}
    (directory / "prod/hosts.yml").write_text(yaml.safe_dump({"app_hosts": {"hosts": {"web1": connection}}}))
    return directory


def test_two_line_playbook_serves_the_app(home: Path, project: Path, host: Host) -> None:
    assert {path.name for path in project.iterdir()} == {"site.yml", "prod", "shop"}
    run(project, "ansible-playbook", "site.yml", "-i", "prod", home=home)
    assert Site(address(host), "shop.test").get("/").body == b"Hello"
    assert "changed=0 " in run(project, "ansible-playbook", "site.yml", "-i", "prod", home=home)


def test_project_role_includes_two_collection_roles(home: Path, project: Path, host: Host) -> None:
    shutil.copytree(SCENARIO / "addition", project, dirs_exist_ok=True)
    text = ["-e", "wiki_text=Welcome"]
    run(project, "ansible-playbook", "wiki.yml", "-i", "prod", *text, home=home)
    wiki = Site(address(host), "wiki.test")
    assert eventually(lambda: (response := wiki.get("/")).status == 200 and response).body == b"Welcome\n"
    pid = host.check_output("systemctl show --value --property MainPID wiki")
    assert host.check_output(f"grep 'Max open files' /proc/{pid}/limits").split()[3] == "2048"
    assert "changed=0 " in run(project, "ansible-playbook", "wiki.yml", "-i", "prod", *text, home=home)
    assert Site(wiki.address, "shop.test").get("/").body == b"Hello"


def test_collection_playbook_deploys_by_name(home: Path, project: Path, host: Host) -> None:
    code = project / "shop/web.py"
    code.write_text(code.read_text().replace("Hello", "Hello again"))
    run(project, "ansible-playbook", "funnel.tornado.deploy", "-i", "prod", "-e", "app=shop", home=home)
    assert Site(address(host), "shop.test").get("/").body == b"Hello again"


def test_ansible_pull_provisions_the_host_itself(home: Path, project: Path, host: Host) -> None:
    page = (ROOT / "docs/scale.md").read_text()
    url = "https://git.example.com/fleet.git"
    (pull,) = re.findall(rf"^ansible-pull --url {url} .*$", page, re.MULTILINE)
    (install_ansible,) = re.findall(r"^uv tool install .*$", page, re.MULTILINE)
    (project / "prod/hosts.yml").write_text(yaml.safe_dump({"app_hosts": {"hosts": {"web1": {}}}}))
    code = project / "shop/web.py"
    code.write_text(code.read_text().replace("Hello again", "Pulled"))
    archive = project / "pull.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(project, "srv/fleet", filter=lambda member: None if member.name.endswith("pull.tar") else member)
        tar.add(home / ".ansible/collections", "usr/share/ansible/collections")
    unpack = f"src={archive} dest=/ owner=root group=root"
    host.ansible("ansible.builtin.unarchive", unpack, check=False)  # type: ignore[call-arg]  # testinfra types its modules as one
    commit = "git init -q && git add . && git -c user.name=a -c user.email=a@a.test commit -qm a"
    host.run_expect([0], f"{install_ansible} && cd /srv/fleet && {commit}")
    host.check_output(f"PATH=/root/.local/bin:$PATH && {pull.replace(url, '/srv/fleet')}")
    assert Site(address(host), "shop.test").get("/").body == b"Pulled"
