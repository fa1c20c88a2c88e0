"""Output, check mode and input validation of deploy.yml, restart.yml and rollback.yml."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import Site, address, deploy, find_leftovers, processes, run_playbook, run_site

HOST = "debian13"


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    return hosts[HOST]


def plain_page(host: Host) -> bytes:
    return Site(address(host), "plain.test").get("/").body


def state(host: Host) -> tuple[Any, ...]:
    """Return the state that check mode must not change."""
    found = host.check_output("ls -lR /srv/sample/releases /srv/plain/releases /srv/plain/slots /etc/nginx/funnel")
    return processes(host, "sample"), processes(host, "plain"), found


def collapsed(output: str) -> str:
    return re.sub(r"\s+", " ", output)


def test_deploy_of_version_changes_one_app_until_site_restores_inventory(host: Host, tmp_path: Path) -> None:
    sample = processes(host, "sample")
    status, output = deploy("plain", HOST, tmp_path, {}, "-e", "version=v2")
    assert status == 0, output
    assert plain_page(host) == b"plain v2\n"
    assert processes(host, "sample") == sample
    release = json.loads(host.check_output("cat /srv/plain/current/release.json"))
    assert re.fullmatch(r"\S+@\S+", release["by"])
    assert release["revision"] in host.check_output("git --git-dir /srv/plain/source.git rev-parse v2")
    history = json.loads(host.check_output("cat /srv/plain/history.json"))
    assert (history[-1]["release"], history[-1]["by"]) == (release["id"], release["by"])

    status, output = run_site(HOST, tmp_path, {})
    assert status == 0, output
    assert plain_page(host) == b"plain v1\n"
    assert find_leftovers(host, "plain") == []


def test_check_mode_reports_release_and_slot_without_changes(host: Host, tmp_path: Path) -> None:
    before = state(host)
    live = host.check_output("readlink /srv/plain/live").strip().removeprefix("slots/")
    other = "ab".replace(live, "")
    now = host.check_output("readlink /srv/plain/live/release").strip().rpartition("/")[2]

    status, output = deploy("plain", HOST, tmp_path, {}, "-e", "version=v2", "--check", "--diff")
    assert status == 0, output
    [built] = re.findall(r"^\+release (\w{12})\b.*2 processes", output, re.MULTILINE)
    assert built != now
    assert f"-release {now}, slot {live}, 2 processes\n" in output
    assert f"+release {built}, slot {other}" in output

    status, output = run_playbook("playbooks/restart.yml", HOST, "-e", "app=plain", "--check", "--diff")
    assert status == 0, output
    assert f"-release {now}, slot {live}, 2 processes\n+release {now}, slot {other}, 2 processes\n" in output

    status, output = run_playbook("playbooks/rollback.yml", HOST, "-e", "app=plain", "--check", "--diff")
    assert status == 0, output
    assert re.search(
        rf"^-release {now}, slot {live}, 2 processes\n\+release (?!{now})\w+, slot {other}, 2 processes$", output, re.MULTILINE
    )
    assert state(host) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-e", "app=plian"], "tornado_apps: no such app plian; did you mean plain?"),
        (["-e", "app=sample", "-e", "version=v2"], "tornado_apps.sample.source.version: requires source.git or source.package"),
        (["-e", "app=plain", "-e", "version=v3"], "tornado_apps.plain.source.version: /srv/plain.bundle has no branch"),
    ],
)
def test_invalid_deploy_is_rejected_before_any_change(host: Host, options: list[str], message: str) -> None:
    before = state(host)
    status, output = run_playbook("playbooks/deploy.yml", HOST, *options)
    assert status != 0
    assert message in collapsed(output)
    assert "changed=0" in output
    assert state(host) == before


def test_app_name_cannot_traverse_paths(host: Host) -> None:
    before = state(host)
    status, output = run_playbook("playbooks/restart.yml", HOST, "-e", "app=../srv/plain")
    assert status != 0
    assert "tornado_apps: no such app ../srv/plain" in collapsed(output)
    assert state(host) == before


def test_restart_of_app_without_live_release_is_rejected(host: Host) -> None:
    status, output = run_playbook("playbooks/restart.yml", HOST, "-e", "app=nosuch")
    assert status != 0
    assert "tornado_apps: no such app nosuch" in collapsed(output)
    assert host.check_output("ls -A /srv").split() == ["plain", "plain.bundle", "sample"]
