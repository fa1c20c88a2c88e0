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

HOST = "debian13"
testinfra_hosts = [f"ansible://{HOST}"]

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
    expect_success(run_site(HOST, tmp_path_factory.mktemp("own"), MODULE_VARIABLES))


def supervised(host: Host, app: str) -> dict[str, int]:
    """Wait until the host runs two processes of an app and has no leftovers; return the processes by name."""
    eventually(lambda: not find_leftovers(host, app), 60)
    found = processes(host, app)
    assert len(found) == 2
    return found


def parent_pids(host: Host, pids: list[int]) -> set[int]:
    """Return the parent process IDs of processes."""
    return {int(pid) for pid in host.check_output(f"ps -o ppid= -p {','.join(map(str, pids))}").split()}


def assert_replaced(host: Host, app: str, before: dict[str, int]) -> None:
    """Verify that each process has been replaced by a child of the current supervisord."""
    after = supervised(host, app)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert parent_pids(host, list(after.values())) == {int(host.check_output("supervisorctl pid"))}


def test_killed_supervisord_loses_no_request_of_runner_apps(host: Host, clients: Clients) -> None:
    before = supervised(host, "sample")
    with clients("supervisord killed", **SHORT_POLLS):
        host.check_output(KILL)
        assert parent_pids(host, list(before.values())) == {1}, "processes must survive"
        assert Site(address(host)).get("/whoami").json["pid"] in before.values(), "processes must keep serving"
        assert_replaced(host, "sample", before)
        time.sleep(1)
    for process, pid in before.items():
        log = host.check_output("cat /var/log/sample/%s.log", process.removeprefix("sample-").replace(":", "-"))
        assert re.search(rf"replacing pid {pid}\n(.*\n)*.* 200 (GET|POST) ", log), "the log must continue"


def test_second_kill_during_takeover_loses_no_request(host: Host, clients: Clients) -> None:
    before = supervised(host, "sample")
    with clients("supervisord killed twice", **SHORT_POLLS):
        host.check_output(f"{KILL} && {WAIT_FOR_CHILD} && {KILL}")
        assert_replaced(host, "sample", before)
        time.sleep(1)


def test_killed_supervisord_interrupts_apps_on_ports_only_briefly(host: Host, clients: Clients) -> None:
    """A port is free only after the old process stopped, so its in-flight requests fail.

    Processes are replaced one at a time, so that another one always accepts requests.
    """
    before = supervised(host, "ported")
    title = "supervisord killed, on ports"
    with clients(title, host="ported.test", requests_fail=True, websockets_break=True, **SHORT_POLLS) as loads:
        host.check_output(KILL)
        assert_replaced(host, "ported", before)
        time.sleep(1)
        end = time.time()
    result = loads[HOST].result
    assert result.failed < result.requests / 50
    begins = sorted(begin for begin, _ in result.exchanges)
    gap = max(later - earlier for earlier, later in itertools.pairwise(begins))
    assert gap < 1, "longest gap in seconds without a response"
    assert begins[-1] > end - 1, "the app must serve again"
    assert {Site(address(host), "ported.test").get("/whoami").status for _ in range(20)} == {200}


@pytest.mark.parametrize("step", ["before_switch", "drain"])
def test_next_deploy_succeeds_after_kill_during_deploy(host: Host, clients: Clients, tmp_path: Path, step: str) -> None:
    hooks = {"before_switch": "sleep 1"}
    variables = apps(sample=SAMPLE | {"env": {"SAMPLE_THEME": step}, "hooks": hooks}, ported=PORT_APP)
    with clients(f"supervisord killed at step {step}", reload=True, polls=2, websockets=2, **SHORT_POLLS):
        playbook = start_playbook("playbooks/deploy.yml", HOST, "-e", "app=sample", *extra_vars(tmp_path, variables))
        host.check_output(f"timeout 60 sh -c 'until grep -q {step} /srv/sample/.lock; do sleep 0.01; done'; {KILL}")
        playbook.communicate(timeout=200)  # success or failure
        eventually(lambda: host.run("supervisorctl pid").rc == 0)
        expect_success(deploy("sample", HOST, tmp_path, variables))
        supervised(host, "sample")
    assert f'data-theme="{step}"'.encode() in Site(address(host)).get("/").body


def test_status_is_healthy_and_site_reports_no_change_afterwards(tmp_path: Path) -> None:
    expect_success(run_playbook("playbooks/status.yml", HOST, *extra_vars(tmp_path, MODULE_VARIABLES)))
    expect_success(run_site(HOST, tmp_path, MODULE_VARIABLES))
    assert "changed=0" in (output := expect_success(run_site(HOST, tmp_path, MODULE_VARIABLES))), output


def test_stop_of_supervisor_stops_all_processes_gracefully(host: Host) -> None:
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(Site(address(host)).get, "/sleep?seconds=3")
        time.sleep(0.5)
        host.check_output("systemctl stop supervisor")
        assert slow.result().status == 200
    assert host.check_output(LIST_APP_PROCESSES) == "none"
    host.check_output("systemctl start supervisor")
    supervised(host, "sample")


def test_stop_timeout_of_supervisor_kills_all_processes(host: Host) -> None:
    drop_in = "/run/systemd/system/supervisor.service.d/60-test.conf"
    host.check_output(f"mkdir -p {Path(drop_in).parent} && printf '[Service]\\nTimeoutStopSec=1\\n' > {drop_in}")
    host.check_output("systemctl daemon-reload")
    try:
        with ThreadPoolExecutor() as threads:
            slow = threads.submit(Site(address(host)).get, "/sleep?seconds=20")
            time.sleep(0.5)
            host.check_output("systemctl stop supervisor")
            assert host.check_output(LIST_APP_PROCESSES) == "none"
            assert slow.result().status == 502
    finally:
        host.check_output(f"rm {drop_in} && systemctl daemon-reload && systemctl start supervisor")
    supervised(host, "sample")


def test_out_of_memory_policy_of_supervisor_is_continue(host: Host) -> None:
    assert host.check_output("systemctl show --property OOMPolicy --value supervisor") == "continue"
