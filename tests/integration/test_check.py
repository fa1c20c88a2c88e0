"""What playbooks/check.yml, and so site.yml, refuses of a fleet. Its hosts are this machine by other names."""

from __future__ import annotations

import json
import os
import re
import subprocess
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.remote import PLAIN, ROOT

SHOP = {"source": {"path": "files/sample_app"}, "run": {"app": "sample_app.web:make_app"}}
#: A host that does not answer: nothing listens at that port.
AWAY = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


def fleet(apps: dict[str, Any] | None = None, web3: dict[str, Any] | None = None, **balancers: Any) -> dict[str, Any]:
    """Return an inventory of three app hosts and two balancers; ``balancers`` are variables of the latter."""
    hosts: dict[str, Any] = {
        name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(("web1", "web2", "web3"), 11)
    }
    hosts["web3"] |= web3 or {}
    return {
        "all": {"vars": {"ansible_connection": "local", "tornado_apps": {"shop": SHOP} if apps is None else apps}},
        "app_hosts": {"hosts": hosts},
        "balancers": {"hosts": {f"lb{number}": {"ansible_host": f"192.0.2.{number}"} for number in (1, 2)}, "vars": balancers},
    }


def check(directory: Path, inventory: dict[str, Any], *options: str, playbook: str = "check") -> tuple[int, str]:
    """Return the exit status of check.yml, or another playbook, and what it says, white space folded."""
    file = directory / "hosts.yml"
    file.write_text(yaml.safe_dump(inventory))
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", "-i", str(file), *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | PLAIN, capture_output=True, text=True, check=False, timeout=120)
    assert re.search(r"changed=[1-9]", done.stdout) is None, done.stdout
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def network() -> str:
    """Return an address in a network of this machine, with its prefix length, that the machine itself does not have."""
    shown = json.loads(subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, text=True, check=True).stdout)
    for link in shown:
        for found in link["addr_info"]:
            own = ip_interface(f"{found['local']}/{found['prefixlen']}")
            if link["ifname"] != "lo" and own.network.num_addresses > 3:
                free = next(host for host in own.network.hosts() if host != own.ip)
                return f"{free}/{found['prefixlen']}"
    raise AssertionError("this machine is in no network")


def test_a_right_fleet_is_let_through_and_nothing_is_changed(tmp_path: Path) -> None:
    status, output = check(tmp_path, fleet(keepalived_address=network()), "-e", "batch=25%", "-e", "canary=true")
    assert status == 0, output
    assert output.count("failed=0") == 5


@pytest.mark.parametrize(
    ("inventory", "options", "message"),
    [
        (fleet(haproxy_backends={}), [], "haproxy_backends of lb1: is empty; unset it"),
        (fleet(apps={}), [], "lb1: is in balancers but has no backend; app_hosts needs a host, and tornado_apps an app"),
        (
            fleet(haproxy_backends={"shop": {"servers": {"web1": "192.0.2.11", "b": {"address": "192.0.2.12:8080"}}}}),
            [],
            "web3: is in app_hosts but in no backend of any load balancer; add 192.0.2.13 to haproxy_backends",
        ),
        (
            fleet(
                haproxy_backends={"shop": {"servers": {"web1": "192.0.2.11"}, "stiky": True}},
                web3={"fleet_address": "192.0.2.11"},
            ),
            ["--limit", "lb1"],
            "haproxy_backends.shop.stiky: unknown key; did you mean sticky?",
        ),
        (fleet(fleet_tls_at="nginx"), [], "fleet_tls_at: must be balancers or app_hosts; found 'nginx'"),
        (
            fleet(apps={"shop": SHOP | {"domains": ["shop.test"], "tls": {"provider": "acme"}}}),
            [],
            "tornado_apps.shop.tls.provider: acme does not support load balancers yet",
        ),
        (
            fleet(haproxy_listne=["80"], app_version="{{ version }}"),
            [],
            "haproxy_listne of lb1, lb2: no such variable of the role haproxy; did you mean haproxy_listen?",
        ),
        (fleet(), ["-e", "batch=0"], "batch: must be a number of hosts, 1 or more, or a share of them, such as"),
        (fleet(), ["-e", "pause=soon"], "pause: must be seconds, such as 60; found soon"),
        (fleet(web3=AWAY), ["-e", "strict=true"], "web3: unreachable; strict skips no host, and nothing was changed"),
        (fleet(keepalived_address="198.51.100.7/24"), [], "keepalived_address: 198.51.100.7/24 is in no network of"),
        (fleet(keepalived_address="192.0.2.300/24"), [], "keepalived_address: must be"),
        (
            fleet(keepalived_address=network(), keepalived_priority=150),
            [],
            "keepalived_priority: 150 of lb1 is not unique; each host needs a different one",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_changes(
    tmp_path: Path, inventory: dict[str, Any], options: list[str], message: str
) -> None:
    status, output = check(tmp_path, inventory, *options)
    assert status == 2, output
    assert message in output.replace('\\"', '"'), output


def test_a_host_that_is_away_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    status, output = check(tmp_path, fleet(web3=AWAY))
    assert status == 4, output
    assert re.search(r"web3 : ok=\d+ changed=0 unreachable=1", output), output
    assert len(re.findall(r"(web[12]|lb[12]) : ok=\d+ changed=0 unreachable=0 failed=0", output)) == 4


@pytest.mark.parametrize("playbook", ["rollback", "restart"])
def test_a_host_that_is_away_does_not_hold_up_a_roll_back_or_a_restart(tmp_path: Path, playbook: str) -> None:
    inventory = fleet()
    inventory["app_hosts"]["hosts"]["web1"] |= AWAY
    status, output = check(tmp_path, inventory, "-e", "app=nosuch,other", "-e", "batch=1", playbook=playbook)
    assert status != 0
    assert "other: no release is live on this host" in output, "each app that is named"
    assert re.search(r"web1 : ok=\d+ changed=0 unreachable=1", output), output
    assert "nosuch: no release is live on this host" in output
    status, output = check(tmp_path, inventory, "-e", "app=nosuch", "-e", "strict=true", playbook=playbook)
    assert "web1: unreachable; strict skips no host, and nothing was changed" in output
    assert "no release is live" not in output


def test_the_only_app_need_not_be_named(tmp_path: Path) -> None:
    status, output = check(tmp_path, fleet(), "-e", "command=true", playbook="run")
    assert status != 0
    assert "shop: no release is live on this host" in output
    status, output = check(tmp_path, fleet({"shop": SHOP, "blog": SHOP}), "-e", "command=true", playbook="run")
    assert status != 0
    assert "app must be one of blog, shop; found none" in output


@pytest.mark.parametrize("playbook", ["site", "deploy", "rollback"])
def test_a_misspelt_group_is_refused(tmp_path: Path, playbook: str) -> None:
    inventory = fleet()
    inventory["app_host"] = inventory.pop("app_hosts")
    del inventory["balancers"]
    status, output = check(tmp_path, inventory, playbook=playbook)
    assert status != 0
    assert "group app_host: the collection has no such group; did you mean app_hosts?" in output


def test_an_inventory_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("app_hosts: [web1\n")
    command = ["ansible-playbook", "site.yml", "-i", str(tmp_path / "hosts.yml")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | PLAIN, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "the inventory has no host in the groups app_hosts" in re.sub(r"\s+", " ", done.stderr)
