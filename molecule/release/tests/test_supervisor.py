"""A killed supervisord: its processes keep serving until the next supervisord replaces them."""

from __future__ import annotations

import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.load import Clients
from tests.support.remote import (
    APP_GROUP,
    PORT_APP,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    find_leftovers,
    processes,
    run_playbook,
    run_site,
    start_playbook,
)

SAMPLE: dict[str, Any] = {"drain": 5, "processes": 2}

#: Long-polls short enough to finish within the drain.
SHORT_POLLS = {"poll": "/sleep?seconds=2"}

#: Prints the running processes of the apps.
LIST_APP_PROCESSES = "pgrep --full '[s]ample_app|[p]lain.py' || echo none"

KILL = "kill -9 $(pgrep --exact supervisord) && sleep 0.2"

#: Waits until a supervisord has started a process.
CHILD_EXISTS = "pgrep --parent $(pgrep --exact supervisord || echo none) >/dev/null 2>&1"
WAIT_FOR_CHILD = f"timeout 30 sh -c 'until {CHILD_EXISTS}; do sleep 0.01; done'"


MODULE_VARIABLES = apps(sample=SAMPLE, ported=PORT_APP | SAMPLE)


@pytest.fixture(scope="module", autouse=True)
def module_entries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Deploy two processes of each app."""
    expect_success(run_site(APP_GROUP, tmp_path_factory.mktemp("own"), MODULE_VARIABLES))


def supervised(hosts: dict[str, Host], app: str) -> dict[str, dict[str, int]]:
    """Wait until each host runs two processes of an app and has no leftovers; return the processes by host and name."""
    eventually(lambda: not any(find_leftovers(host, app) for host in hosts.values()), 60)
    found = {name: processes(host, app) for name, host in hosts.items()}
    assert [len(running) for running in found.values()] == [2, 2]
    return found


def run_on_all(hosts: dict[str, Host], command: str) -> dict[str, str]:
    """Run a command on all hosts in parallel and return the outputs."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(hosts, threads.map(lambda host: host.check_output(command), hosts.values()), strict=True))


def parent_pids(host: Host, pids: list[int]) -> set[int]:
    """Return the parent process IDs of processes."""
    return {int(pid) for pid in host.check_output(f"ps -o ppid= -p {','.join(map(str, pids))}").split()}


def assert_replaced(hosts: dict[str, Host], app: str, before: dict[str, dict[str, int]]) -> None:
    """Verify that each process has been replaced by a child of the current supervisord."""
    for name, after in supervised(hosts, app).items():
        assert after.keys() == before[name].keys()
        assert not set(after.values()) & set(before[name].values())
        assert parent_pids(hosts[name], list(after.values())) == {int(hosts[name].check_output("supervisorctl pid"))}


def test_killed_supervisord_loses_no_request_of_runner_apps(hosts: dict[str, Host], clients: Clients) -> None:
    before = supervised(hosts, "sample")
    with clients("supervisord killed", **SHORT_POLLS):
        run_on_all(hosts, KILL)
        for name, host in hosts.items():
            assert parent_pids(host, list(before[name].values())) == {1}, "processes must survive"
            assert Site(address(host)).get("/whoami").json["pid"] in before[name].values(), "processes must keep serving"
        assert_replaced(hosts, "sample", before)
        time.sleep(1)
    for name, host in hosts.items():
        for process, pid in before[name].items():
            log = host.check_output("cat /var/log/sample/%s.log", process.removeprefix("sample-").replace(":", "-"))
            takeover = re.search(rf"replacing pid {pid}\n(.*\n)*.* 200 (GET|POST) ", log)
            assert takeover, "the log must continue"


def test_second_kill_during_takeover_loses_no_request(hosts: dict[str, Host], clients: Clients) -> None:
    before = supervised(hosts, "sample")
    with clients("supervisord killed twice", **SHORT_POLLS):
        run_on_all(hosts, f"{KILL} && {WAIT_FOR_CHILD} && {KILL}")
        assert_replaced(hosts, "sample", before)
        time.sleep(1)


def test_killed_supervisord_interrupts_apps_on_ports_only_briefly(hosts: dict[str, Host], clients: Clients) -> None:
    """A port is free only after the old process stopped, so its in-flight requests fail.

    Processes are replaced one at a time, so that another one always accepts requests.
    """
    before = supervised(hosts, "ported")
    title = "supervisord killed, on ports"
    with clients(title, host="ported.test", requests_fail=True, websockets_break=True, **SHORT_POLLS) as loads:
        run_on_all(hosts, KILL)
        assert_replaced(hosts, "ported", before)
        time.sleep(1)
        end = time.time()
    for name, load in loads.items():
        assert load.result.failed < load.result.requests / 50
        begins = sorted(begin for begin, _ in load.result.exchanges)
        gap = max(later - earlier for earlier, later in itertools.pairwise(begins))
        assert gap < 1, "longest gap in seconds without a response"
        assert begins[-1] > end - 1, f"{name} must serve again"
        responses = {Site(address(hosts[name]), "ported.test").get("/whoami").status for _ in range(20)}
        assert responses == {200}


@pytest.mark.parametrize("step", ["before_switch", "drain"])
def test_next_deploy_succeeds_after_kill_during_deploy(
    hosts: dict[str, Host], clients: Clients, tmp_path: Path, step: str
) -> None:
    hooks = {"before_switch": "sleep 1"}
    variables = apps(sample=SAMPLE | {"env": {"SAMPLE_THEME": step}, "hooks": hooks}, ported=PORT_APP)
    with clients(f"supervisord killed at step {step}", reload=True, polls=2, websockets=2, **SHORT_POLLS):
        playbook = start_playbook("playbooks/deploy.yml", APP_GROUP, "-e", "app=sample", *extra_vars(tmp_path, variables))
        run_on_all(hosts, f"timeout 60 sh -c 'until grep -q {step} /srv/sample/.lock; do sleep 0.01; done'; {KILL}")
        playbook.communicate(timeout=200)  # success or failure
        eventually(lambda: all(host.run("supervisorctl pid").rc == 0 for host in hosts.values()))
        expect_success(deploy("sample", APP_GROUP, tmp_path, variables))
        supervised(hosts, "sample")
    for host in hosts.values():
        assert f'data-theme="{step}"'.encode() in Site(address(host)).get("/").body


def test_status_is_healthy_and_site_reports_no_change_afterwards(tmp_path: Path) -> None:
    expect_success(run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(tmp_path, MODULE_VARIABLES)))
    expect_success(run_site(APP_GROUP, tmp_path, MODULE_VARIABLES))
    assert "changed=0" in (output := expect_success(run_site(APP_GROUP, tmp_path, MODULE_VARIABLES))), output


def test_stop_of_supervisor_stops_all_processes_gracefully(hosts: dict[str, Host]) -> None:
    with ThreadPoolExecutor() as threads:
        slow = [threads.submit(Site(address(host)).get, "/sleep?seconds=3") for host in hosts.values()]
        time.sleep(0.5)
        run_on_all(hosts, "systemctl stop supervisor")
        assert {response.result().status for response in slow} == {200}
    assert set(run_on_all(hosts, LIST_APP_PROCESSES).values()) == {"none"}
    run_on_all(hosts, "systemctl start supervisor")
    supervised(hosts, "sample")


def test_stop_timeout_of_supervisor_kills_all_processes(hosts: dict[str, Host]) -> None:
    drop_in = "/run/systemd/system/supervisor.service.d/60-test.conf"
    run_on_all(hosts, f"mkdir -p {Path(drop_in).parent} && printf '[Service]\\nTimeoutStopSec=1\\n' > {drop_in}")
    run_on_all(hosts, "systemctl daemon-reload")
    try:
        with ThreadPoolExecutor() as threads:
            slow = [threads.submit(Site(address(host)).get, "/sleep?seconds=20") for host in hosts.values()]
            time.sleep(0.5)
            run_on_all(hosts, "systemctl stop supervisor")
            assert set(run_on_all(hosts, LIST_APP_PROCESSES).values()) == {"none"}
            assert {response.result().status for response in slow} == {502}
    finally:
        run_on_all(hosts, f"rm {drop_in} && systemctl daemon-reload && systemctl start supervisor")
    supervised(hosts, "sample")


def test_out_of_memory_policy_of_supervisor_is_continue(hosts: dict[str, Host]) -> None:
    assert set(run_on_all(hosts, "systemctl show --property OOMPolicy --value supervisor").values()) == {"continue"}
