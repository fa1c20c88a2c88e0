"""Variables of the role app that depend on other hosts of the play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

VARIABLES = yaml.safe_load((Path(__file__).parents[3] / "roles/app/vars/main.yml").read_text())
HOSTS = ["web1", "web2", "web3"]


def builds(*apps: str) -> dict[str, Any]:
    """Return the registered builds of apps, of which ``plain`` has no hook with ``once``."""
    return {"results": [{"item": app, "once": app != "plain", "settled": False, "waiting": False} for app in apps]}


def run_once(registered: dict[str, dict[str, Any]], host: str) -> list[str]:
    """Return the apps whose hooks with ``once`` run on a host."""
    templates = {name: trust_as_template(value) for name, value in VARIABLES.items()}
    hostvars = {name: {"__app_releases": registered[name]} if name in registered else {} for name in HOSTS}
    play = {"inventory_hostname": host, "ansible_play_hosts_all": HOSTS, "hostvars": hostvars, "__app_failures": {}}
    variables = templates | play | {"__app_releases": registered[host]}
    return list(Templar(loader=DataLoader(), variables=variables).template(trust_as_template("{{ __app_once }}")))


@pytest.mark.parametrize(("host", "apps"), [("web1", ["shop"]), ("web2", ["notes"]), ("web3", ["wiki"])])
def test_hooks_run_once_on_the_first_host_that_has_the_app(host: str, apps: list[str]) -> None:
    registered = {"web1": builds("shop", "plain"), "web2": builds("notes", "shop"), "web3": builds("notes", "plain", "wiki")}
    assert run_once(registered, host) == apps


@pytest.mark.parametrize("lost", [{}, {"web1": {"unreachable": True}}])
def test_hooks_run_on_the_next_host_if_the_first_one_built_nothing(lost: dict[str, Any]) -> None:
    assert run_once({**lost, "web2": builds("shop"), "web3": builds("shop")}, "web2") == ["shop"]
