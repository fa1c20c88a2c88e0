"""A deploy that is interrupted at any step loses no request, and the next run completes it."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients
from tests.support.remote import (
    CODE_PATH,
    Site,
    address,
    apps,
    copy_code,
    deploy,
    expect_success,
    extra_vars,
    find_leftovers,
    kill_playbook,
    run_site,
    start_playbook,
)

HOST = "debian12"
testinfra_hosts = [f"ansible://{HOST}"]

LIGHT_LOAD = {"poll": "/sleep?seconds=1", "polls": 2, "websockets": 2}

#: Hooks that make the deploy run every step, each long enough to interrupt. A changed number of processes reloads nginx.
HOOKS = {"build": "sleep 0.5", "before_switch": "sleep 0.5", "after_switch": "sleep 0.5"}
LIGHT: dict[str, Any] = {"drain": 1, "soak": 1, "processes": 1, "hooks": HOOKS, "env": {"SAMPLE_THEME": "light"}}
DARK = LIGHT | {"processes": 2, "env": {"SAMPLE_THEME": "dark"}}

#: Switches to a release like the module, and kills itself at the start of the step ``fatal``; prints the completed steps.
DRIVER = """
import json, os, signal, sys
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import Switcher, SwitchRequest
release, fatal = sys.argv[1:]
if fatal == "renamed":  # after the switch, before it is recorded
    Switcher._record_live = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
layout = Layout("sample")
os.umask(0o022)
with deploy_lock(layout, "driver") as tell:
    def note(step):
        tell(step)
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    outcome = Switcher(layout, SwitchRequest(release, "driver"), note).run()
print(json.dumps([step["name"] for step in outcome.steps]))
"""


@pytest.fixture(scope="module", autouse=True)
def restore_entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Restore the scenario's entries after the module."""
    yield
    expect_success(run_site(HOST, tmp_path_factory.mktemp("own"), {}))


@pytest.fixture(autouse=True)
def assert_no_leftovers(host: Host) -> Iterator[None]:
    """Verify that the test leaves nothing but the live release."""
    yield
    assert find_leftovers(host, "sample") == []


@pytest.fixture(scope="module")
def collection_code(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copy the collection's code to the host."""
    copy_code(HOST, tmp_path_factory.mktemp("code"))


def run_switch(host: Host, release: str, fatal: str = "") -> list[str]:
    """Switch to a release and return the steps, or kill the switch at the start of the step ``fatal``."""
    command = f"PYTHONPATH={CODE_PATH} python3 -c %s %s %s; exit $?"  # the shell reports signals; ssh does not
    result = host.run_expect([128 + signal.SIGKILL if fatal else 0], command, DRIVER, release, fatal)
    return [] if fatal else list(json.loads(result.stdout))


def live_release(host: Host) -> str:
    """Return the live release."""
    (release,) = {Site(address(host)).get("/whoami").json["release"] for _ in range(20)}
    return str(release)


def deploy_sample(host: Host, directory: Path, entry: dict[str, Any]) -> str:
    """Deploy the sample app and return its live release."""
    expect_success(deploy("sample", HOST, directory, apps(sample=entry)))
    return live_release(host)


def wait_for_step(step: str) -> str:
    """Return a shell command that waits until a deploy reaches a step."""
    return f"timeout 60 sh -c 'until grep -q {step} /srv/sample/.lock; do sleep 0.02; done'"


@pytest.mark.usefixtures("collection_code")
def test_next_switch_succeeds_after_kill_in_any_step(host: Host, clients: Clients, tmp_path: Path) -> None:
    instant = {"hooks": dict.fromkeys(HOOKS, "true")}
    target, other = deploy_sample(host, tmp_path, LIGHT | instant), deploy_sample(host, tmp_path, DARK | instant)
    with clients("switch killed in every step", reload=True, **LIGHT_LOAD):
        steps = run_switch(host, target)
        for step in ["renamed", *steps]:
            target, other = other, target
            run_switch(host, target, step)
            run_switch(host, target)
            assert live_release(host) == target, step
            assert find_leftovers(host, "sample") == [], step
            assert json.loads(host.check_output("cat /srv/sample/history.json"))[-1]["release"] == target, step
    assert {"start", "health", "switch", "reload", "after_switch", "soak", "drain", "stop"} <= set(steps)


@pytest.mark.usefixtures("collection_code")
def test_next_switch_succeeds_after_killed_rollback(host: Host, clients: Clients, tmp_path: Path) -> None:
    before = deploy_sample(host, tmp_path, LIGHT)
    status, output = deploy("sample", HOST, tmp_path, apps(sample=DARK | {"hooks": {"after_switch": "false"}}))
    assert status != 0, output
    with clients("rollback killed", reload=True, **LIGHT_LOAD):
        rejected = newest_release(host)
        run_switch(host, rejected, "undo")
        assert live_release(host) == rejected
        run_switch(host, before)
        assert live_release(host) == before


def newest_release(host: Host) -> str:
    """Return the release of the sample app that was built most recently."""
    return host.check_output("ls -t /srv/sample/releases | head -n 1")


def test_next_deploy_succeeds_after_killed_controller(host: Host, clients: Clients, tmp_path: Path) -> None:
    entries = itertools.cycle([DARK, LIGHT])
    with clients("controller killed before, in and after the switch", reload=True, **LIGHT_LOAD):
        for step in ("build", "before_switch", "drain"):
            variables = apps(sample=next(entries) | {"env": {"SAMPLE_THEME": step}})
            playbook = start_playbook("playbooks/deploy.yml", HOST, "-e", "app=sample", *extra_vars(tmp_path, variables))
            host.run_expect([0], wait_for_step(step))
            kill_playbook(playbook)
            expect_success(deploy("sample", HOST, tmp_path, variables))
            assert f'data-theme="{step}"'.encode() in Site(address(host)).get("/").body, step
            assert find_leftovers(host, "sample") == [], step


def test_deploy_succeeds_while_nginx_is_reloaded(host: Host, clients: Clients, tmp_path: Path) -> None:
    before = deploy_sample(host, tmp_path, LIGHT)
    with clients("nginx reloaded during a deploy", reload=True, **LIGHT_LOAD):
        playbook = start_playbook("playbooks/deploy.yml", HOST, "-e", "app=sample", *extra_vars(tmp_path, apps(sample=DARK)))
        reload = "for number in $(seq 8); do systemctl reload nginx || exit 1; sleep 0.5; done"
        host.run_expect([0], f"{wait_for_step('health')} && {reload}")
        output, _ = playbook.communicate(timeout=120)
    assert playbook.returncode == 0, output
    assert live_release(host) != before


def test_site_recovers_after_nginx_is_stopped_during_deploy(host: Host, clients: Clients, tmp_path: Path) -> None:
    before = deploy_sample(host, tmp_path, LIGHT)
    with clients("nginx stopped during a deploy", requests_fail=True, websockets_break=True, **LIGHT_LOAD):
        playbook = start_playbook("playbooks/deploy.yml", HOST, "-e", "app=sample", *extra_vars(tmp_path, apps(sample=DARK)))
        host.run_expect([0], f"{wait_for_step('before_switch')} && systemctl stop nginx")
        playbook.communicate(timeout=120)  # success or failure
        expect_success(run_site(HOST, tmp_path, apps(sample=DARK)))
    assert live_release(host) != before
