"""Each role and playbook runs on each supported distribution in the scenarios, as the README claims."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.docs import ROOT

#: The releases by the name in the README.
DISTRIBUTIONS = {"Debian 12": "bookworm", "Debian 13": "trixie", "Ubuntu 24.04": "noble", "Ubuntu 26.04": "resolute"}

#: The playbook that applies a role, and the group of hosts to which it does.
ROLES = {
    "app": ("deploy", "app_hosts"),
    "certificates": ("balancers", "balancers"),
    "etcd": ("services", "etcd"),
    "firewall": ("firewall", "firewall_enabled"),
    "fleet": ("reboot", "all"),
    "haproxy": ("balancers", "balancers"),
    "keepalived": ("balancers", "balancers"),
    "limits": ("site", "app_hosts"),
    "logs": ("services", "logs"),
    "metrics": ("metrics", "metrics"),
    "mongodb": ("services", "mongodb"),
    "nginx": ("site", "app_hosts"),
    "python": ("site", "app_hosts"),
    "supervisor": ("site", "app_hosts"),
    "unattended_upgrades": ("unattended_upgrades", "unattended_upgrades_enabled"),
}

#: The functions of `tests.support.remote` that run a playbook: its name or the position of it, and the position of its hosts.
FUNCTIONS = {
    "run_playbook": ("", 0, 1),
    "start_playbook": ("", 0, 1),
    "run_site": ("site", None, 0),
    "deploy": ("deploy", None, 1),
}


#: The pattern of the hosts that a playbook changes, if not app_hosts.
PLAYBOOKS = {
    "backends": "balancers",
    "backup": "mongodb:etcd",
    "balancers": "balancers",
    "firewall": "firewall_enabled",
    "metrics": "metrics",
    "reboot": "all",
    "restore": "mongodb:etcd",
    "services": "mongodb",
    "unattended_upgrades": "unattended_upgrades_enabled",
    "upgrade": "all",
}


class Scenario:
    """The hosts of a scenario, and its playbooks with the pattern of their hosts."""

    def __init__(self, directory: Path) -> None:
        """Read the configuration."""
        self.directory = directory
        self.settings = yaml.safe_load((directory / "molecule.yml").read_text())
        self.members = [(host["name"], host["release"], self.groups(host)) for host in self.settings["platforms"]]

    def hosts(self, pattern: str) -> dict[str, str]:
        """Return the release of each host of a pattern."""
        words = set(pattern.split(":"))
        return {
            name: release for name, release, groups in self.members if {"all", name, *groups} & words and f"!{name}" not in words
        }

    def groups(self, host: dict[str, Any]) -> set[str]:
        """Return the groups of a host, and the optional roles that the variables of its groups enable."""
        links = self.settings.get("provisioner", {}).get("inventory", {}).get("links", {})
        variables = self.directory / links.get("group_vars", "../shared/group_vars")
        found = {*host.get("groups", ())}
        files = [variables / f"{group}.yml" for group in ("all", *found)]
        text = "\n".join(file.read_text() for file in files if file.exists())
        return found | set(re.findall(r"^(\w+_enabled): true", text, re.MULTILINE))

    def runs(self) -> Iterator[tuple[str, str]]:
        """Yield the playbooks that Molecule and the tests run, as far as the code names them and their hosts."""
        converge = self.settings.get("ansible", {}).get("playbooks", {}).get("converge", "converge.yml")
        if (file := self.directory / converge).exists() and "/playbooks/site.yml" in file.read_text():
            yield "site", "all"
        for file in self.directory.glob("tests/*.py"):
            tree = ast.parse(file.read_text())
            names = {"APP_GROUP": "app_hosts"}
            for node in tree.body:
                if (
                    isinstance(node, ast.Assign)
                    and isinstance(node.targets[0], ast.Name)
                    and isinstance(node.value, ast.Constant)
                ):
                    names[node.targets[0].id] = str(node.value.value)
            for call in ast.walk(tree):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in FUNCTIONS:
                    playbook, named, pattern = FUNCTIONS[call.func.id]
                    words = [
                        names.get(word.id) if isinstance(word, ast.Name) else getattr(word, "value", None) for word in call.args
                    ]
                    found = (playbook or words[named or 0], (*words, None)[pattern])
                    if all(isinstance(word, str) for word in found):
                        yield Path(str(found[0])).stem, str(found[1]).replace(",", ":")


def imported(playbook: str) -> set[str]:
    """Return a playbook and all that it imports."""
    text = (ROOT / f"playbooks/{playbook}.yml").read_text()
    return {playbook}.union(*(imported(name) for name in re.findall(r"import_playbook: (\w+)\.yml", text)))


@pytest.fixture(scope="module")
def releases() -> dict[str, dict[str, set[str]]]:
    """Return the releases on which each playbook runs, by group."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in (ROOT / "molecule").glob("*/molecule.yml"):
        scenario = Scenario(file.parent)
        for playbook, pattern in set(scenario.runs()):
            if not (ROOT / f"playbooks/{playbook}.yml").exists():
                continue  # a playbook of the test
            hosts = scenario.hosts(pattern)
            for name in imported(playbook):
                for group in {*PLAYBOOKS.values(), *(group for _, group in ROLES.values())}:
                    found[name][group] |= {release for host, release in hosts.items() if host in scenario.hosts(group)}
    return found


def test_support_table_of_the_readme_lists_the_distributions() -> None:
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| hosts | "))
    assert re.findall(r"(?:Debian|Ubuntu) \d\d(?:\.\d\d)?", row.split(" | ")[1]) == list(DISTRIBUTIONS)
    assert "each role and playbook on each of them" in row


@pytest.mark.parametrize("playbook", sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml")))
def test_each_playbook_runs_on_each_distribution(playbook: str, releases: dict[str, dict[str, set[str]]]) -> None:
    assert releases[playbook][PLAYBOOKS.get(playbook, "app_hosts")] == set(DISTRIBUTIONS.values())


@pytest.mark.parametrize("role", sorted(path.name for path in (ROOT / "roles").iterdir()))
def test_each_role_runs_on_each_distribution(role: str, releases: dict[str, dict[str, set[str]]]) -> None:
    playbook, group = ROLES[role]
    assert releases[playbook][group] == set(DISTRIBUTIONS.values())
