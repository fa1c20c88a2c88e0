"""supervisord is killed: its processes serve on, and the next one starts others in their place."""

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
    ALL,
    PORTED,
    Site,
    address,
    apps,
    deploy,
    done,
    eventually,
    extra,
    left_behind,
    processes,
    run_playbook,
    run_site,
    start_playbook,
)

SAMPLE: dict[str, Any] = {"drain": 5, "processes": 2}

#: A long-poll that begins while its process drains has to end before that does.
SHORT_POLLS = {"poll": "/sleep?seconds=2"}

#: Tells which programs of the apps run.
LEFT = "pgrep --full '[s]ample_app|[p]lain.py' || echo none"

KILL = "kill -9 $(pgrep --exact supervisord) && sleep 0.2"

#: Ends when a supervisord has started something.
STARTED = "timeout 30 sh -c 'until pgrep --parent $(pgrep --exact supervisord || echo none) >/dev/null 2>&1; do sleep 0.01; done'"


OWN = apps(sample=SAMPLE, ported=PORTED | SAMPLE)


@pytest.fixture(scope="module", autouse=True)
def own_entries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Begin with two processes of each app."""
    done(run_site(ALL, tmp_path_factory.mktemp("own"), OWN))


def supervised(hosts: dict[str, Host], app: str) -> dict[str, dict[str, int]]:
    """Return the processes of an app by host and by name, when there are two of each and nothing else is left of it."""
    eventually(lambda: not any(left_behind(host, app) for host in hosts.values()), 60)
    found = {name: processes(host, app) for name, host in hosts.items()}
    assert [len(one) for one in found.values()] == [2, 2]
    return found


def at_once(hosts: dict[str, Host], command: str) -> dict[str, str]:
    """Run a command on all hosts at the same time, and return what it printed."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(hosts, threads.map(lambda host: host.check_output(command), hosts.values()), strict=True))


def parents(host: Host, pids: list[int]) -> set[int]:
    """Return the parents of processes."""
    return {int(pid) for pid in host.check_output(f"ps -o ppid= -p {','.join(map(str, pids))}").split()}


def require_replaced(hosts: dict[str, Host], app: str, before: dict[str, dict[str, int]]) -> None:
    """See that each process has been replaced by one of the supervisord that runs now."""
    for name, after in supervised(hosts, app).items():
        assert after.keys() == before[name].keys()
        assert not set(after.values()) & set(before[name].values())
        assert parents(hosts[name], list(after.values())) == {int(hosts[name].check_output("supervisorctl pid"))}


def test_no_client_of_the_runner_notices(hosts: dict[str, Host], clients: Clients) -> None:
    before = supervised(hosts, "sample")
    with clients("supervisord killed", **SHORT_POLLS):
        at_once(hosts, KILL)
        for name, host in hosts.items():
            assert parents(host, list(before[name].values())) == {1}, "they live on"
            assert Site(address(host)).get("/whoami").json["pid"] in before[name].values(), "and serve"
        require_replaced(hosts, "sample", before)
        time.sleep(1)
    for name, host in hosts.items():
        for process, pid in before[name].items():
            log = host.check_output("cat /var/log/sample/%s.log", process.removeprefix("sample-").replace(":", "-"))
            told = re.search(rf"replacing pid {pid}\n(.*\n)*.* 200 (GET|POST) ", log)
            assert told, "and the log goes on"


def test_killed_again_while_it_takes_over(hosts: dict[str, Host], clients: Clients) -> None:
    before = supervised(hosts, "sample")
    with clients("supervisord killed twice", **SHORT_POLLS):
        at_once(hosts, f"{KILL} && {STARTED} && {KILL}")
        require_replaced(hosts, "sample", before)
        time.sleep(1)


def test_what_it_costs_on_ports(hosts: dict[str, Host], clients: Clients) -> None:
    """A port is free only when the process that was left has been stopped: what that has in progress is cut.

    One after the other is replaced, so that there is always another one to send requests to.
    """
    before = supervised(hosts, "ported")
    title = "supervisord killed, on ports"
    with clients(title, host="ported.test", requests_fail=True, websockets_break=True, **SHORT_POLLS) as loads:
        at_once(hosts, KILL)
        require_replaced(hosts, "ported", before)
        time.sleep(1)
        ended = time.time()
    for name, load in loads.items():
        assert load.result.failed < load.result.requests / 50
        served = sorted(begin for begin, _ in load.result.exchanges)
        gap = max(later - earlier for earlier, later in itertools.pairwise(served))
        assert gap < 1, "seconds in which nothing was served"
        assert served[-1] > ended - 1, f"{name} serves again"
        answers = {Site(address(hosts[name]), "ported.test").get("/whoami").status for _ in range(20)}
        assert answers == {200}


@pytest.mark.parametrize("step", ["before_switch", "drain"])
def test_killed_in_the_middle_of_a_deploy(hosts: dict[str, Host], clients: Clients, tmp_path: Path, step: str) -> None:
    hooks = {"before_switch": "sleep 1"}
    variables = apps(sample=SAMPLE | {"env": {"SAMPLE_THEME": step}, "hooks": hooks}, ported=PORTED)
    with clients(f"supervisord killed at step {step}", reload=True, polls=2, websockets=2, **SHORT_POLLS):
        playbook = start_playbook("playbooks/deploy.yml", ALL, "-e", "app=sample", *extra(tmp_path, variables))
        at_once(hosts, f"timeout 60 sh -c 'until grep -q {step} /srv/sample/.lock; do sleep 0.01; done'; {KILL}")
        playbook.communicate(timeout=200)  # however it ends
        eventually(lambda: all(host.run("supervisorctl pid").rc == 0 for host in hosts.values()))
        done(deploy("sample", ALL, tmp_path, variables))
        supervised(hosts, "sample")
    for host in hosts.values():
        assert f'data-theme="{step}"'.encode() in Site(address(host)).get("/").body


def test_afterwards_all_is_well_and_nothing_to_do(tmp_path: Path) -> None:
    done(run_playbook("playbooks/status.yml", ALL, *extra(tmp_path, OWN)))
    done(run_site(ALL, tmp_path, OWN))
    assert "changed=0" in (again := done(run_site(ALL, tmp_path, OWN))), again


def test_stopped_on_purpose_it_ends_all_of_them_and_cuts_no_request(hosts: dict[str, Host]) -> None:
    with ThreadPoolExecutor() as threads:
        slow = [threads.submit(Site(address(host)).get, "/sleep?seconds=3") for host in hosts.values()]
        time.sleep(0.5)
        at_once(hosts, "systemctl stop supervisor")
        assert {answer.result().status for answer in slow} == {200}
    assert set(at_once(hosts, LEFT).values()) == {"none"}
    at_once(hosts, "systemctl start supervisor")
    supervised(hosts, "sample")


def test_stopped_in_vain_it_is_killed_with_all_of_them(hosts: dict[str, Host]) -> None:
    drop_in = "/run/systemd/system/supervisor.service.d/60-test.conf"
    at_once(hosts, f"mkdir -p {Path(drop_in).parent} && printf '[Service]\\nTimeoutStopSec=1\\n' > {drop_in}")
    at_once(hosts, "systemctl daemon-reload")
    try:
        with ThreadPoolExecutor() as threads:
            slow = [threads.submit(Site(address(host)).get, "/sleep?seconds=20") for host in hosts.values()]
            time.sleep(0.5)
            at_once(hosts, "systemctl stop supervisor")
            assert set(at_once(hosts, LEFT).values()) == {"none"}
            assert {answer.result().status for answer in slow} == {502}
    finally:
        at_once(hosts, f"rm {drop_in} && systemctl daemon-reload && systemctl start supervisor")
    supervised(hosts, "sample")


def test_systemd_is_told_to_leave_the_others_alone_when_memory_is_out(hosts: dict[str, Host]) -> None:
    assert set(at_once(hosts, "systemctl show --property OOMPolicy --value supervisor").values()) == {"continue"}
