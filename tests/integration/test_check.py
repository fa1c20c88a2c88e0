"""Mistakes that playbooks/check.yml, and so site.yml, reports. All hosts of the inventory are this machine."""

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

from tests.support.remote import PLAIN_ENV, ROOT

SHOP = {"source": {"path": "files/sample_app"}, "run": {"app": "sample_app.web:make_app"}}
#: A source on the controller that cannot be sent, and its message.
BROKEN: dict[str, Any] = SHOP | {"source": {"archive": "README.md", "checksum": f"sha256:{'0' * 64}"}}
BROKEN_MESSAGE = f"tornado_apps.shop.source.checksum: {ROOT}/README.md hashes to sha256:"
#: An unreachable host: nothing listens on this port.
UNREACHABLE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


def fleet(apps: dict[str, Any] | None = None, web3: dict[str, Any] | None = None, **balancers: Any) -> dict[str, Any]:
    """Return an inventory of three app hosts and two load balancers with the variables ``balancers``."""
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
    """Run check.yml or another playbook; return its exit status and output, with white space folded."""
    file = directory / "hosts.yml"
    file.write_text(yaml.safe_dump(inventory))
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", "-i", str(file), *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | PLAIN_ENV, capture_output=True, text=True, check=False, timeout=120)
    assert "--check" in options or re.search(r"changed=[1-9]", done.stdout) is None, done.stdout
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def network() -> str:
    """Return an unused address in a network of this machine, with its prefix length."""
    shown = json.loads(subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, text=True, check=True).stdout)
    for link in shown:
        for found in link["addr_info"]:
            own = ip_interface(f"{found['local']}/{found['prefixlen']}")
            if link["ifname"] != "lo" and own.network.num_addresses > 3:
                free = next(host for host in own.network.hosts() if host != own.ip)
                return f"{free}/{found['prefixlen']}"
    raise AssertionError("this machine has no network")


def test_valid_fleet_passes_without_changes(tmp_path: Path) -> None:
    status, output = check(tmp_path, fleet(keepalived_address=network()), "-e", "batch=25%", "-e", "canary=true")
    assert status == 0, output
    assert output.count("failed=0") == 5


def test_firewall_rules_of_templated_variables(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump(
            {
                "balancers": {"hosts": {"lb1": {"ansible_host": "192.0.2.1"}}},
                "logs": {"hosts": {"lb1": {}}, "vars": {"logs_listen": ["{{ ansible_host }}"], "logs_senders": ["{{ net }}/24"]}},
                "all": {"vars": {"net": "192.0.2.0", "keepalived_address": "192.0.2.9/24", "keepalived_peers": ["{{ net }}"]}},
            }
        )
    )
    shown = "msg={{ groups | funnel.tornado.firewall_rules(hostvars, inventory_hostname) | map(attribute='sources') | flatten }}"
    command = ["ansible", "lb1", "-i", str(tmp_path / "hosts.yml"), "-c", "local", "-m", "ansible.builtin.debug", "-a", shown]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | PLAIN_ENV, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"192[\d./]+", done.stdout) == ["192.0.2.0", "192.0.2.0/24"], done.stdout


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
                haproxy_backends={"shop": {"servers": {"web1": "192.0.2.11"}, "affinty": "cookie"}},
                web3={"fleet_address": "192.0.2.11"},
            ),
            ["--limit", "lb1"],
            "haproxy_backends.shop.affinty: unknown key; did you mean affinity?",
        ),
        (fleet(fleet_tls_at="nginx"), [], "fleet_tls_at: must be balancers or app_hosts; found 'nginx'"),
        (
            fleet(haproxy_listne=["80"], app_version="{{ version }}"),
            [],
            "haproxy_listne of lb1, lb2: no such variable of the role haproxy; did you mean haproxy_listen?",
        ),
        (fleet(), ["-e", "batch=0"], "batch: must be a number of hosts, 1 or more, or a share of them, such as"),
        (fleet(), ["-e", "pause=soon"], "pause: must be seconds, such as 60; found soon"),
        (
            fleet(web3=UNREACHABLE),
            ["-e", "strict=true"],
            "web3: unreachable, and strict=true requires every host; nothing was changed",
        ),
        (
            fleet(
                {
                    "blog": SHOP | {"source": {"path": "~no-such-user/blog"}},
                    "shop": SHOP | {"source": {"archive": "/proc/self/mem"}, "domains": ["shop.test"]},
                }
            ),
            [],
            "tornado_apps.blog.source.path: there is no user whose home directory is meant by ~no-such-user/blog "
            "tornado_apps.shop.source.archive: /proc/self/mem cannot be read: Input/output error ",
        ),
        (fleet({"shop": BROKEN}), [], f"nothing was changed {BROKEN_MESSAGE}"),
        (fleet(keepalived_address="198.51.100.7/24"), [], "keepalived_address: 198.51.100.7/24 is in no network of"),
        (fleet(keepalived_address="192.0.2.300/24"), [], "keepalived_address: must be"),
        (
            fleet(keepalived_address=network(), keepalived_priority=150),
            [],
            "keepalived_priority: 150 of lb1 is not unique; each host needs a different one",
        ),
    ],
)
def test_mistake_is_reported_before_any_change(
    tmp_path: Path, inventory: dict[str, Any], options: list[str], message: str
) -> None:
    status, output = check(tmp_path, inventory, *options)
    assert status == 2, output
    assert message in output.replace('\\"', '"'), output


@pytest.fixture
def broken_sources(tmp_path: Path) -> dict[str, str]:
    """Create directories that cannot be sent; return the message of each."""
    messages = {
        "piped": "piped/pipe is neither a file, a directory nor a link; remove it, or exclude it in .gitignore",
        "pointer": "pointer/logo.png is a Git LFS pointer instead of the file; run `git lfs pull`",
        "linked": "linked/passwd is a link to /etc/passwd, outside of the source; copy the file, or exclude it in .gitignore",
        "nested": "the submodule nested/lib is not checked out; run `git submodule update --init --recursive`",
    }
    for name in messages:
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "piped/pipe")
    (tmp_path / "pointer/logo.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "linked/passwd").symlink_to("/etc/passwd")
    (tmp_path / "nested/lib").mkdir()
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "nested")], check=True)
    gitlink = ["update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib"]
    subprocess.run(["git", "-C", str(tmp_path / "nested"), *gitlink], check=True)
    return {
        name: f"tornado_apps.{name}.source.path: {message.replace(f'{name}/', f'{tmp_path}/{name}/')}"
        for name, message in messages.items()
    }


def test_sources_that_cannot_be_sent_are_reported_with_all_other_mistakes(tmp_path: Path, broken_sources: dict[str, str]) -> None:
    apps = {name: SHOP | {"source": {"path": str(tmp_path / name)}, "domains": [f"{name}.test"]} for name in broken_sources}
    status, output = check(tmp_path, fleet(apps | {"shop": BROKEN, "blog": SHOP | {"drian": 3}}))
    assert status == 2, output
    mistakes = ["tornado_apps.blog.drian: unknown key; did you mean drain?", BROKEN_MESSAGE, *broken_sources.values()]
    assert [mistake for mistake in mistakes if mistake not in output] == [], output


def test_unreachable_host_is_reported_and_the_others_are_checked(tmp_path: Path) -> None:
    status, output = check(tmp_path, fleet(web3=UNREACHABLE))
    assert status == 4, output
    assert re.search(r"web3 : ok=\d+ changed=0 unreachable=1", output), output
    assert len(re.findall(r"(web[12]|lb[12]) : ok=\d+ changed=0 unreachable=0 failed=0", output)) == 4


#: The messages for an app that was never live.
NOTHING_LIVE = {
    "rollback": "shop: no earlier release that served well is left to roll back to",
    "restart": "shop: no release is live on this host",
}


@pytest.mark.parametrize("playbook", ["rollback", "restart"])
def test_unreachable_host_does_not_block_rollback_and_restart(tmp_path: Path, playbook: str) -> None:
    inventory = fleet()
    inventory["app_hosts"]["hosts"]["web1"] |= UNREACHABLE
    status, output = check(tmp_path, inventory, "-e", "app=shop", "-e", "batch=1", playbook=playbook)
    assert status != 0
    assert re.search(r"web1 : ok=\d+ changed=0 unreachable=1", output), output
    assert NOTHING_LIVE[playbook] in output
    status, output = check(tmp_path, inventory, "-e", "app=shop", "-e", "strict=true", playbook=playbook)
    assert "web1: unreachable, and strict=true requires every host; nothing was changed" in output
    assert NOTHING_LIVE[playbook] not in output


@pytest.mark.parametrize("playbook", ["rollback", "restart"])
def test_source_that_cannot_be_sent_does_not_block_rollback_and_restart(tmp_path: Path, playbook: str) -> None:
    _status, output = check(tmp_path, fleet({"shop": BROKEN}), playbook=playbook)
    assert NOTHING_LIVE[playbook] in output
    assert "tornado_apps.shop.source" not in output


def test_source_that_cannot_be_sent_does_not_block_the_removal_of_another_app(tmp_path: Path) -> None:
    inventory = fleet({"shop": BROKEN | {"domains": ["shop.test"]}})
    del inventory["balancers"]
    inventory["all"]["vars"]["app_proxy"] = "haproxy"
    _status, output = check(tmp_path, inventory, "-e", "app=blog", "--check", "--limit", "web1", playbook="remove")
    assert "[funnel.tornado.app : remove | Remove the sites]" in output, output
    assert "tornado_apps.shop.source" not in output


def test_app_is_optional_with_a_single_app(tmp_path: Path) -> None:
    status, output = check(tmp_path, fleet(), "-e", "command=true", playbook="run")
    assert status != 0
    assert "shop: no release is live on this host" in output
    status, output = check(tmp_path, fleet({"shop": SHOP, "blog": SHOP}), "-e", "command=true", playbook="run")
    assert status != 0
    assert "app: name the app with -e app=NAME; there are blog, shop" in output


@pytest.mark.parametrize("playbook", ["rollback", "restart", "run", "logs", "maintenance"])
def test_unknown_app_is_rejected(tmp_path: Path, playbook: str) -> None:
    status, output = check(tmp_path, fleet(), "-e", "app=shpo", "-e", "command=true", "-e", "state=on", playbook=playbook)
    assert status != 0
    assert "tornado_apps: no such app shpo; did you mean shop?" in output


def test_deploy_requires_the_sources_of_the_named_apps_only(tmp_path: Path) -> None:
    apps = {"shop": BROKEN | {"domains": ["shop.test"]}, "blog": SHOP | {"domains": ["blog.test"]}}
    options = ["--check", "--limit", "web1"]
    _status, output = check(tmp_path, fleet(apps), "-e", "app=blog", *options, playbook="deploy")
    assert re.search(r"blog web1 - \w+ first release", output), output
    status, output = check(tmp_path, fleet(apps), "-e", "app=shop", *options, playbook="deploy")
    assert status == 2
    assert BROKEN_MESSAGE in output


def test_deploy_accepts_an_app_that_only_some_hosts_have(tmp_path: Path) -> None:
    inventory = fleet()
    inventory["app_hosts"]["hosts"]["web2"]["tornado_apps"] = {"blog": SHOP}
    status, output = check(tmp_path, inventory, "-e", "app=shop,blgo", "--check", playbook="deploy")
    assert status != 0
    assert "tornado_apps: no such app blgo; did you mean blog?" in output
    _status, output = check(tmp_path, inventory, "-e", "app=shop,blog", "--check", playbook="deploy")
    for row in (r"blog web2", r"shop web1, web3"):  # in the order in which the hosts answer
        assert re.search(rf"{row} - \w+ first release", output), output


@pytest.mark.parametrize(("playbook", "message"), [("remove", "app: name the apps to remove"), ("restore", "name the backup")])
def test_missing_option_is_rejected(tmp_path: Path, playbook: str, message: str) -> None:
    inventory = fleet() | {"mongodb": {"hosts": {"web1": {}}}}
    status, output = check(tmp_path, inventory, playbook=playbook)
    assert status != 0
    assert message in output
    assert "nothing was changed" in output


@pytest.mark.parametrize("playbook", ["site", "deploy", "rollback"])
def test_misspelled_group_is_rejected(tmp_path: Path, playbook: str) -> None:
    inventory = fleet()
    inventory["app_host"] = inventory.pop("app_hosts")
    del inventory["balancers"]
    status, output = check(tmp_path, inventory, playbook=playbook)
    assert status != 0
    assert "group app_host: the collection has no such group; did you mean app_hosts?" in output


def test_unreadable_inventory_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("app_hosts: [web1\n")
    command = ["ansible-playbook", "site.yml", "-i", str(tmp_path / "hosts.yml")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | PLAIN_ENV, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "the inventory has no host in the groups app_hosts" in re.sub(r"\s+", " ", done.stderr)
