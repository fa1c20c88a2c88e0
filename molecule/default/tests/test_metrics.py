"""The metrics exporters of the host, nginx and each app process."""

from __future__ import annotations

import json
import socket
import time
import uuid
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.exposure import overexposed_units
from tests.support.metrics import dashboard_metrics, names, total
from tests.support.remote import Site, address, apps, deploy, eventually, expect_success, hosts, processes, python, run_playbook

#: The host that the tests change; the other host runs other exporter versions.
HOST = "ubuntu26"

NODE, NGINX, TORNADO = 9100, 9113, 8406

testinfra_hosts = ["ansible://app_hosts"]

FETCH_METRICS = """
import json, urllib.request
with urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=10) as answer:
    print(json.dumps(answer.read().decode()))
"""

#: Kills a process and prints the value of tornado_up before, after the exporter reports it down, and after it is up again.
KILL = """
import json, os, re, signal, time, urllib.request
def up():
    with urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return re.findall(r'(?m)^tornado_up{{app="sample",.*process="0"}} ([01])$', answer.read().decode())
def wait_for(expected):
    end = time.monotonic() + 30
    while (value := up()) != expected and time.monotonic() < end:
        time.sleep(0.01)
    return value
before = up()
os.kill({pid}, signal.SIGKILL)
print(json.dumps([before, wait_for(["0"]), wait_for(["1"])]))
"""


@pytest.fixture
def site(host: Host) -> Site:
    return Site(address(host))


def fetch_metrics(host: Host, port: int) -> str:
    return str(python(host, FETCH_METRICS.format(port=port)))


def releases(host: Host) -> set[tuple[str, str]]:
    """Return the release and slot of each responding process of the sample app."""
    lines = [line for line in fetch_metrics(host, TORNADO).splitlines() if line.startswith("tornado_up") and line.endswith(" 1")]
    labels = [dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(",")) for line in lines]
    return {(row["release"].strip('"'), row["slot"].strip('"')) for row in labels if row["app"] == '"sample"'}


def live(host: Host) -> tuple[str, str]:
    """Return the live release and slot of the sample app."""
    release, slot = (host.check_output(f"readlink /srv/sample/{link}").strip() for link in ("live/release", "live"))
    return release.rpartition("/")[2], slot.rpartition("/")[2]


def test_exporters_provide_every_metric_of_the_dashboard(host: Host) -> None:
    assert dashboard_metrics("node_") - names(fetch_metrics(host, NODE)) == set()
    assert dashboard_metrics("nginx_") - names(fetch_metrics(host, NGINX)) == set()
    text = fetch_metrics(host, TORNADO)
    assert dashboard_metrics("tornado_", "process_") - names(text) == set()
    assert total(text, "tornado_up", app="sample") == len(processes(host, "sample"))
    assert releases(host) == {live(host)}


def test_metrics_are_unreachable_from_the_network(site: Site) -> None:
    assert site.get("/metrics").status == 404
    for port in (NODE, NGINX, TORNADO, 8403):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((site.address, port), timeout=10)


def test_counters_increase_by_the_number_of_requests(host: Host, site: Site) -> None:
    def counted() -> dict[str, float]:
        text = fetch_metrics(host, TORNADO)
        return {status: total(text, "tornado_requests_total", app="sample", status=status) for status in ("2xx", "4xx", "5xx")}

    def settled() -> dict[str, float] | bool:
        """Return the counters once they are stable: a response is counted after it was sent, also that of an earlier test."""
        first = counted()
        time.sleep(0.3)
        return counted() == first and first

    before = eventually(settled)
    for path, times in (("/whoami", 20), ("/none", 5)):
        for _ in range(times):
            site.get(path)
    assert eventually(settled) == {"2xx": before["2xx"] + 20, "4xx": before["4xx"] + 5, "5xx": before["5xx"]}


def test_killed_process_is_reported_down_then_up(host: Host) -> None:
    pid = next(pid for name, pid in processes(host, "sample").items() if name.endswith(":0"))
    assert python(host, KILL.format(port=TORNADO, pid=pid)) == [["1"], ["0"], ["1"]]
    eventually(lambda: len(processes(host, "sample")) == int(host.check_output("nproc")))


def test_labels_follow_deploy_and_rollback(tmp_path: Path) -> None:
    [host] = hosts(HOST).values()
    release, slot = live(host)
    expect_success(deploy("sample", HOST, tmp_path, apps(sample={"env": {"SAMPLE_MEASURED": uuid.uuid4().hex}})))
    [(new_release, new_slot)] = releases(host)
    assert (new_release, new_slot) == live(host)
    assert (new_release == release, new_slot == slot) == (False, False)
    expect_success(run_playbook("playbooks/rollback.yml", HOST, "-e", "app=sample"))
    assert releases(host) == {(release, slot)}


def test_unavailable_listen_address_is_rejected_and_exporters_keep_running() -> None:
    [host] = hosts(HOST).values()
    status, output = run_playbook("playbooks/metrics.yml", HOST, "-e", json.dumps({"metrics_listen": "192.0.2.1"}))
    assert status != 0
    assert "cannot assign requested address" in output
    assert "cannot listen on 192.0.2.1 port 8406: Cannot assign requested address" in output
    for exporter, port in (("node", NODE), ("nginx", NGINX), ("tornado", TORNADO)):
        assert f"The previous files were restored, and prometheus-{exporter}-exporter runs with them." in output
        assert names(fetch_metrics(host, port))


def test_exporter_units_stay_within_their_exposure_limits(host: Host) -> None:
    assert overexposed_units(host, *(f"prometheus-{name}-exporter" for name in ("nginx", "node", "tornado"))) == {}
