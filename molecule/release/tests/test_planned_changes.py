"""Planned changes on both hosts under load: deploy, rollback, restart and scaling lose no request."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients, Load
from tests.support.remote import (
    APP_GROUP,
    PORT_APP,
    ROOT,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    find_leftovers,
    processes,
    python,
    run_playbook,
    run_site,
    sample_app_source,
    start_playbook,
)

#: A long-poll takes 5 s. After ``drain`` the app gets the same time again to finish in-flight requests.
SAMPLE: dict[str, Any] = {"drain": 3, "processes": 2}

#: Prints the number of processes that have the deploy lock of the sample app open: its holder, and those that wait for it.
LOCK_USERS = "ls -l /proc/[0-9]*/fd 2> /dev/null | grep -c ' /srv/sample/.lock$'"


def variables(sample: dict[str, Any] | None = None, ported: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the variables of this module with changed keys."""
    return apps(sample=SAMPLE | (sample or {}), ported=PORT_APP | (ported or {}))


@pytest.fixture(scope="module", autouse=True)
def module_entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Deploy the entries of this module; restore those of the scenario after it."""
    directory = tmp_path_factory.mktemp("own")
    expect_success(run_site(APP_GROUP, directory, variables()))
    yield
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=ported"))
    expect_success(run_site(APP_GROUP, directory, {}))


@pytest.fixture(autouse=True)
def assert_no_leftovers(hosts: dict[str, Host]) -> Iterator[None]:
    """Verify that the test leaves nothing but the live releases."""
    yield
    assert {(name, app): find_leftovers(host, app) for name, host in hosts.items() for app in ("sample", "ported")} == {
        (name, app): [] for name in hosts for app in ("sample", "ported")
    }


def live_state(hosts: dict[str, Host], app: str = "sample") -> dict[str, dict[str, Any]]:
    """Return the live release, slot and process IDs of an app for each host."""
    found = {}
    for name, host in hosts.items():
        pids = set(processes(host, app).values())
        responses = [Site(address(host), "ported.test" if app == "ported" else "").get("/whoami").json for _ in range(20)]
        assert {response["pid"] for response in responses} <= pids
        releases = {(response["release"], response["slot"]) for response in responses}
        assert len(releases) == 1, releases
        release, slot = releases.pop()
        found[name] = {"release": release, "slot": slot, "pids": pids}
    return found


def switched(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], *, release: bool = True) -> bool:
    """Return whether every host serves from new processes in the other slot, with a new release unless ``release`` is False."""
    return all(
        (then["slot"] != now["slot"], then["release"] != now["release"], then["pids"] & now["pids"]) == (True, release, set())
        for then, now in ((before[name], after[name]) for name in before)
    )


def websockets_reconnected(loads: dict[str, Load]) -> bool:
    """Return whether all websockets were closed with the request to reconnect."""
    return all(load.result.closes.get("1012", 0) >= load.shape.websockets for load in loads.values())


def test_deploy_of_new_code(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    before = live_state(hosts)
    code = (ROOT / "files/sample_app/sample_app/web.py").read_text().replace('"status": "ok"', '"status": "new"')
    changed = variables(sample_app_source(tmp_path, web=code))
    with clients("new code") as loads:
        output = expect_success(deploy("sample", APP_GROUP, tmp_path, changed, "-vvv", "--diff"))
    after = live_state(hosts)
    assert switched(before, after)
    assert websockets_reconnected(loads)
    assert all(Site(address(host)).get("/healthz").json["status"] == "new" for host in hosts.values())
    assert "not-for-others" not in output

    with clients("repeated deploy") as loads:
        output = expect_success(deploy("sample", APP_GROUP, tmp_path, changed))
    assert live_state(hosts) == after
    assert len(re.findall(r"changed=0 ", output)) == len(hosts)
    assert all(int(count) <= 10 for count in re.findall(r" : ok=(\d+) ", output)), "tasks, including those on the controller"
    assert all(load.result.closes == {} for load in loads.values())


def test_deploy_of_new_environment_and_rollback(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    expect_success(deploy("sample", APP_GROUP, tmp_path, variables()))
    before = live_state(hosts)
    with clients("another environment") as loads:
        expect_success(
            deploy("sample", APP_GROUP, tmp_path, variables({"env": {"SAMPLE_THEME": "dim", "RUN": uuid.uuid4().hex}}))
        )
    assert switched(before, live_state(hosts))
    assert websockets_reconnected(loads)
    assert all(b'data-theme="dim"' in Site(address(host)).get("/").body for host in hosts.values())

    with clients("rollback") as loads:
        expect_success(run_playbook("playbooks/rollback.yml", APP_GROUP, "-e", "app=sample"))
    after = live_state(hosts)
    assert [state["release"] for state in after.values()] == [state["release"] for state in before.values()]
    assert websockets_reconnected(loads)


def test_restart_replaces_processes(hosts: dict[str, Host], clients: Clients) -> None:
    before = live_state(hosts)
    with clients("restart") as loads:
        expect_success(run_playbook("playbooks/restart.yml", APP_GROUP, "-e", "app=sample"))
    assert switched(before, live_state(hosts), release=False)
    assert websockets_reconnected(loads)


def test_deploy_of_more_and_fewer_processes(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    for count in (4, 2):
        with clients(f"{count} processes", reload=True):
            expect_success(deploy("sample", APP_GROUP, tmp_path, variables({"processes": count})))
        assert [len(state["pids"]) for state in live_state(hosts).values()] == [count, count]


def test_site_raises_open_files_limit(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    raised = variables({"open_files": 18_000}) | {"limits_open_files": 18_000}
    with clients("more open files", reload=True):
        expect_success(run_site(APP_GROUP, tmp_path, raised))
    for host in hosts.values():
        pids = list(processes(host, "sample").values())
        limits = python(
            host, f"print([int(open(f'/proc/{{pid}}/limits').read().partition('open files')[2].split()[0]) for pid in {pids}])"
        )
        assert limits == [18_000, 18_000]


def test_concurrent_deploys_are_queued_or_rejected(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    # Wait until the second deploy was rejected, at most a minute.
    wait = "sh -c 'for _ in $(seq 600); do [ ! -e ~/go ] || exit 0; sleep 0.1; done; exit 1'"
    slow = {"env": {"SAMPLE_THEME": "light"}, "hooks": {"before_switch": wait}}
    before = live_state(hosts)
    with clients("concurrent deploys"):
        first = start_playbook("playbooks/deploy.yml", APP_GROUP, "-e", "app=sample", *extra_vars(tmp_path, variables(slow)))
        for host in hosts.values():
            eventually(lambda host=host: "before_switch" in host.check_output("cat /srv/sample/.lock"), 60)  # type: ignore[misc]
        status, rejection = deploy("sample", APP_GROUP, tmp_path, variables(), "-e", "app_wait=0")
        restart = start_playbook("playbooks/restart.yml", APP_GROUP, "-e", "app=sample", *extra_vars(tmp_path, variables()))
        for host in hosts.values():  # until the restart has opened the lock, too
            eventually(lambda host=host: int(host.run(LOCK_USERS).stdout) >= 2, 60)  # type: ignore[misc]
            host.check_output("touch /srv/sample/shared/go")
        second = deploy("sample", APP_GROUP, tmp_path, variables({"env": {"SAMPLE_THEME": "dark"}}))
        output, _ = first.communicate(timeout=60)
        restart.communicate(timeout=60)
    assert first.returncode == 0, output
    assert status != 0
    message = r"sample: another deploy is running on this host, started by \S+@\S+ at (\S+), current step: before_switch of"
    holder = re.search(message, rejection)
    assert holder, rejection
    assert datetime.now(UTC) - datetime.fromisoformat(holder[1]) < timedelta(minutes=3)
    assert restart.returncode == 0
    expect_success(second)
    for host in hosts.values():
        host.check_output("rm /srv/sample/shared/go")
    assert all(b'data-theme="dark"' in Site(address(host)).get("/").body for host in hosts.values())
    for name, host in hosts.items():
        history = [entry["release"] for entry in json.loads(host.check_output("cat /srv/sample/history.json"))]
        assert history[-3] == before[name]["release"]
        assert before[name]["release"] not in history[-2:], "the restart must use the release that was live when it got the lock"


def test_program_on_ports_is_deployed_and_restarted(hosts: dict[str, Host], clients: Clients, tmp_path: Path) -> None:
    def deploy_ported(title: str, **keys: Any) -> dict[str, dict[str, Any]]:
        with clients(f"on ports: {title}", host="ported.test", reload=True, websockets_break=True):
            expect_success(deploy("ported", APP_GROUP, tmp_path, variables(ported=keys)))
        return live_state(hosts, "ported")

    before = live_state(hosts, "ported")
    dark = deploy_ported("another environment and 4 processes", env={"SAMPLE_THEME": "dark"}, processes=4)
    assert switched(before, dark)
    assert all(len(state["pids"]) == 4 for state in dark.values())
    assert all(len(state["pids"]) == 2 for state in deploy_ported("2 processes").values())
    with clients("on ports: restart", host="ported.test", reload=True, websockets_break=True):
        expect_success(run_playbook("playbooks/restart.yml", APP_GROUP, "-e", "app=ported"))
