"""What Prometheus is told of a host, of nginx and of each process, and where from."""

from __future__ import annotations

import json
import socket
import time
import uuid
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.exposure import too_exposed
from tests.support.metrics import asked_for, names, total
from tests.support.remote import Site, address, apps, deploy, done, eventually, hosts, processes, python, run_playbook

#: Where the changes are made; the other host has other versions of the exporters.
HOST = "debian13"

NODE, NGINX, TORNADO = 9100, 9113, 8406

testinfra_hosts = ["ansible://app_hosts"]

ASK = """
import json, urllib.request
with urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=10) as answer:
    print(json.dumps(answer.read().decode()))
"""

#: Kills a process and prints, as long as it is down, what its exporter says, and then until it is up again.
KILL = """
import json, os, re, signal, time, urllib.request
def up():
    with urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return re.findall(r'(?m)^tornado_up{{app="sample",.*process="0"}} ([01])$', answer.read().decode())
def wait_for(wanted):
    end = time.monotonic() + 30
    while (seen := up()) != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return seen
before = up()
os.kill({pid}, signal.SIGKILL)
print(json.dumps([before, wait_for(["0"]), wait_for(["1"])]))
"""


@pytest.fixture
def site(host: Host) -> Site:
    return Site(address(host))


def ask(host: Host, port: int) -> str:
    return str(python(host, ASK.format(port=port)))


def releases(host: Host) -> set[tuple[str, str]]:
    """Return release and slot of all processes of the sample app that answer."""
    lines = [line for line in ask(host, TORNADO).splitlines() if line.startswith("tornado_up") and line.endswith(" 1")]
    labels = [dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(",")) for line in lines]
    return {(one["release"].strip('"'), one["slot"].strip('"')) for one in labels if one["app"] == '"sample"'}


def live(host: Host) -> tuple[str, str]:
    """Return release and slot that are served of it."""
    release, slot = (host.check_output(f"readlink /srv/sample/{link}").strip() for link in ("live/release", "live"))
    return release.rpartition("/")[2], slot.rpartition("/")[2]


def test_the_exporters_have_all_that_the_dashboard_asks_for(host: Host) -> None:
    assert asked_for("node_") - names(ask(host, NODE)) == set()
    assert asked_for("nginx_") - names(ask(host, NGINX)) == set()
    text = ask(host, TORNADO)
    assert asked_for("tornado_", "process_") - names(text) == set()
    assert total(text, "tornado_up", app="sample") == len(processes(host, "sample"))
    assert releases(host) == {live(host)}


def test_nobody_is_told_from_outside(site: Site) -> None:
    assert site.get("/metrics").status == 404
    for port in (NODE, NGINX, TORNADO, 8403):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((site.address, port), timeout=10)


def test_counters_rise_by_exactly_the_requests_that_are_made(host: Host, site: Site) -> None:
    def counted() -> dict[str, float]:
        text = ask(host, TORNADO)
        return {status: total(text, "tornado_requests_total", app="sample", status=status) for status in ("2xx", "4xx", "5xx")}

    def settled() -> dict[str, float] | bool:
        """Return the counters once no request of an earlier test is added to them: an answer is counted after it was sent."""
        first = counted()
        time.sleep(0.3)
        return counted() == first and first

    before = eventually(settled)
    for path, times in (("/whoami", 20), ("/none", 5)):
        for _ in range(times):
            site.get(path)
    assert eventually(settled) == {"2xx": before["2xx"] + 20, "4xx": before["4xx"] + 5, "5xx": before["5xx"]}


def test_a_killed_process_is_down_and_then_up(host: Host) -> None:
    pid = next(pid for name, pid in processes(host, "sample").items() if name.endswith(":0"))
    assert python(host, KILL.format(port=TORNADO, pid=pid)) == [["1"], ["0"], ["1"]]
    eventually(lambda: len(processes(host, "sample")) == int(host.check_output("nproc")))


def test_a_deploy_gives_processes_other_labels_and_a_rollback_those_of_before(tmp_path: Path) -> None:
    [host] = hosts(HOST).values()
    release, slot = live(host)
    done(deploy("sample", HOST, tmp_path, apps(sample={"env": {"SAMPLE_MEASURED": uuid.uuid4().hex}})))
    [(new, other)] = releases(host)
    assert (new, other) == live(host)
    assert (new == release, other == slot) == (False, False)
    done(run_playbook("playbooks/rollback.yml", HOST, "-e", "app=sample"))
    assert releases(host) == {(release, slot)}


def test_an_address_that_the_host_does_not_have_is_refused_and_the_exporters_stay() -> None:
    [host] = hosts(HOST).values()
    status, output = run_playbook("playbooks/metrics.yml", HOST, "-e", json.dumps({"metrics_listen": "192.0.2.1"}))
    assert status != 0
    assert "cannot assign requested address" in output
    assert "cannot listen on 192.0.2.1 port 8406: Cannot assign requested address" in output
    for exporter, port in (("node", NODE), ("nginx", NGINX), ("tornado", TORNADO)):
        assert f"The previous files were restored, and prometheus-{exporter}-exporter runs with them." in output
        assert names(ask(host, port))


def test_no_exporter_is_more_exposed_than_it_was_measured(host: Host) -> None:
    assert too_exposed(host, *(f"prometheus-{name}-exporter" for name in ("nginx", "node", "tornado"))) == {}
