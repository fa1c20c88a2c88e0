"""Whatever a deploy is broken off by, and wherever: no client notices, and the next run makes it good."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients
from tests.support.remote import (
    ALL,
    CODE,
    Site,
    address,
    apps,
    deploy,
    done,
    extra,
    kill_playbook,
    left_behind,
    put_code,
    run_site,
    start_playbook,
)

GENTLE = {"poll": "/sleep?seconds=1", "polls": 2, "websockets": 2}

#: With every step that there is, each long enough to be hit; another number of processes lets nginx reload, too.
HOOKS = {"build": "sleep 0.5", "before_switch": "sleep 0.5", "after_switch": "sleep 0.5"}
LIGHT: dict[str, Any] = {"drain": 1, "soak": 1, "processes": 2, "hooks": HOOKS, "env": {"SAMPLE_THEME": "light"}}
DARK = LIGHT | {"processes": 3, "env": {"SAMPLE_THEME": "dark"}}

#: Switches to a release as the module does, and kills itself as it begins the step ``fatal``; prints the steps that it did.
DRIVER = """
import json, os, signal, sys
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.lock import deploy_lock
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.switch import Switcher, SwitchRequest
release, fatal = sys.argv[1:]
if fatal == "renamed":  # after traffic has moved, and before anything says so
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
def own_entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End with the scenario's entries, and nothing left to do."""
    yield
    done(run_site(ALL, tmp_path_factory.mktemp("own"), {}))


@pytest.fixture(autouse=True)
def nothing_left(hosts: dict[str, Host]) -> Iterator[None]:
    """Whatever a test does, nothing of it is left but what is served."""
    yield
    assert {name: left_behind(host, "sample") for name, host in hosts.items()} == {name: [] for name in hosts}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put the collection's code on the hosts; it needs nothing of Ansible's."""
    put_code(ALL, tmp_path_factory.mktemp("code"))


def drive(host: Host, release: str, fatal: str = "") -> list[str]:
    """Switch a host to a release, killed as the step ``fatal`` begins; return the steps otherwise."""
    command = f"PYTHONPATH={CODE} python3 -c %s %s %s; exit $?"  # a shell that stays tells of a signal, ssh does not
    ended = host.run_expect([128 + signal.SIGKILL if fatal else 0], command, DRIVER, release, fatal)
    return [] if fatal else list(json.loads(ended.stdout))


def everywhere(hosts: dict[str, Host], command: str) -> None:
    """Run a command on all hosts at the same time."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda host: host.run_expect([0], command), hosts.values()))


def served(host: Host) -> str:
    """Return the release that a host serves."""
    (release,) = {Site(address(host)).get("/whoami").json["release"] for _ in range(20)}
    return str(release)


def serve(hosts: dict[str, Host], directory: Path, entry: dict[str, Any]) -> dict[str, str]:
    """Deploy the sample app to all hosts; return the release of each."""
    done(deploy("sample", ALL, directory, apps(sample=entry)))
    return {name: served(host) for name, host in hosts.items()}


def at_step(step: str) -> str:
    """Return a command that ends as soon as a deploy is at a step."""
    return f"timeout 60 sh -c 'until grep -q {step} /srv/sample/.lock; do sleep 0.02; done'"


@pytest.mark.usefixtures("code")
def test_the_switch_is_killed_in_every_step(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    light, dark = serve(hosts, tmp_path, LIGHT), serve(hosts, tmp_path, DARK)

    def kill(number: int, name: str) -> list[str]:
        """Kill every second step on this host, the others on the other one."""
        host, target, other = hosts[name], light[name], dark[name]
        steps = drive(host, target)
        for step in ["renamed", *steps][number::2]:
            target, other = other, target
            drive(host, target, step)
            drive(host, target)
            assert served(host) == target, step
            assert left_behind(host, "sample") == [], step
            assert json.loads(host.check_output("cat /srv/sample/history.json"))[-1]["release"] == target, step
        return steps

    with clients("switch killed in every step", reload=True, **GENTLE), ThreadPoolExecutor() as threads:
        steps, others = threads.map(kill, range(2), hosts)
    assert steps == others
    assert {"start", "health", "switch", "reload", "after_switch", "soak", "drain", "stop"} <= set(steps)


@pytest.mark.usefixtures("code")
def test_going_back_is_killed(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    before = serve(hosts, tmp_path, LIGHT)
    status, output = deploy("sample", ALL, tmp_path, apps(sample=DARK | {"hooks": {"after_switch": "false"}}))
    assert status != 0, output
    with clients("going back killed", reload=True, **GENTLE):
        for name, host in hosts.items():
            refused = newest(host)
            drive(host, refused, "undo")
            assert served(host) == refused
            drive(host, before[name])
            assert served(host) == before[name]


def newest(host: Host) -> str:
    """Return the release of the sample app that was built last."""
    return host.check_output("ls -t /srv/sample/releases | head -n 1")


def test_the_controller_is_killed(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    wanted = itertools.cycle([DARK, LIGHT])
    with clients("controller killed before, in and after the switch", reload=True, **GENTLE):
        for step in ("build", "before_switch", "drain"):
            variables = apps(sample=next(wanted) | {"env": {"SAMPLE_THEME": step}})
            playbook = start_playbook("playbooks/deploy.yml", ALL, "-e", "app=sample", *extra(tmp_path, variables))
            hosts["debian12"].run_expect([0], at_step(step))
            kill_playbook(playbook)
            done(deploy("sample", ALL, tmp_path, variables))
            assert all(f'data-theme="{step}"'.encode() in Site(address(host)).get("/").body for host in hosts.values()), step
            assert [left for host in hosts.values() for left in left_behind(host, "sample")] == [], step


def test_nginx_is_reloaded_meanwhile(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    before = serve(hosts, tmp_path, LIGHT)
    with clients("nginx reloaded meanwhile", reload=True, **GENTLE):
        playbook = start_playbook("playbooks/deploy.yml", ALL, "-e", "app=sample", *extra(tmp_path, apps(sample=DARK)))
        reload = "for number in $(seq 8); do systemctl reload nginx || exit 1; sleep 0.5; done"
        everywhere(hosts, f"{at_step('health')} && {reload}")
        output, _ = playbook.communicate(timeout=120)
    assert playbook.returncode == 0, output
    assert all(served(host) != before[name] for name, host in hosts.items())


def test_nginx_is_stopped_meanwhile(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    before = serve(hosts, tmp_path, LIGHT)
    with clients("nginx stopped meanwhile", requests_fail=True, websockets_break=True, **GENTLE):
        playbook = start_playbook("playbooks/deploy.yml", ALL, "-e", "app=sample", *extra(tmp_path, apps(sample=DARK)))
        everywhere(hosts, f"{at_step('before_switch')} && systemctl stop nginx")
        playbook.communicate(timeout=120)  # however it ends
        done(run_site(ALL, tmp_path, apps(sample=DARK)))
    assert all(served(host) != before[name] for name, host in hosts.items())
