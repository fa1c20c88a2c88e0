"""Fixtures of the recipes scenario: a project with the entries of all recipes, half of them on each host."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.support.recipes import Project, User, entries, serve_repository
from tests.support.remote import hosts

#: The host of each recipe: the more expensive ones are spread over both.
HOSTS = {
    "debian13": ["chat", "gallery", "explorer", "thumbnails", "ticker", "books", "wiki"],
    "ubuntu2404": ["notes", "library", "guestbook", "lab", "dashboard", "pipeline", "primes", "shop"],
}

#: Seconds in which a process must become healthy.
HEALTH_TIMEOUT = 240

#: The password or token of each variable in a vault.
SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Deploy all recipes with site.yml, and return the project."""
    directory = tmp_path_factory.mktemp("recipes")
    key = directory / "deploy_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30)
    machines = hosts(*HOSTS)
    git_host_key = machines["ubuntu2404"].check_output("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    variables: dict[str, Any] = {
        "limits_open_files": 16384,
        "vault_wiki_deploy_key": key.read_text(),
        "git_host_key": f"git.example.com {git_host_key}",
        **{f"vault_{name}": SECRET for name in ("chat_cookie_secret", "notes_secret_key", "gallery_secret_key")},
        **{f"vault_{name}": SECRET for name in ("gallery_password", "guestbook_secret_key", "lab_token")},
    }
    found = entries()
    for keys in found.values():
        # All apps of a host start at once, on processors that other scenarios use, too.
        keys["health"] = {**keys.get("health", {}), "timeout": HEALTH_TIMEOUT}
    assert sorted(found) == sorted(name for names in HOSTS.values() for name in names)
    project = Project(
        directory,
        {
            name: connection(host) | variables | {"tornado_apps": {app: found[app] for app in HOSTS[name]}}
            for name, host in machines.items()
        },
    )
    serve_repository(machines["ubuntu2404"], directory / "wiki", key.with_suffix(".pub").read_text().strip())
    project.run("site.yml")
    return project


def connection(host: Any) -> dict[str, Any]:
    """Return the variables with which Ansible connects to a host."""
    return {name: value for name, value in host.ansible.get_variables().items() if name.startswith("ansible_")}


@pytest.fixture(scope="session")
def users(project: Project) -> dict[str, User]:
    """Return a user of each app."""
    return project.users
