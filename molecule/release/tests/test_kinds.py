"""Every kind of program that an app can be: WSGI, a Procfile with a worker, a script from the web."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.remote import ROOT, Site, address, apps, deploy, eventually, processes, run_playbook, run_site

HOST = "debian12"

WSGI = """
import os, threading, time

waiting = threading.Semaphore(0)


def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(5)
    start_response("200 OK", [("Content-Type", "text/plain")])
    words = environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], os.environ["TORNADO_PROCESS"], os.environ["GREETING"]
    return [" ".join(words).encode()]
"""

PROCFILE = """
# as a PaaS has it
web: python plain.py --port=${PORT:-none}
worker: python worker.py
release: touch $HOME/released
idle: sleep 1000
"""

WORKER = """
import os, pathlib, time

beats = pathlib.Path(os.environ["HOME"], "beats")
while True:
    with beats.open("a") as file:
        file.write(f"{os.environ['TORNADO_SLOT']} {os.getpid()} {os.environ.get('PORT')}\\n")
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def host(hosts: dict[str, Host]) -> Host:
    return hosts[HOST]


@pytest.fixture(scope="module")
def site(host: Host) -> Site:
    return Site(address(host))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources")
    (directory / "wsgi").mkdir()
    (directory / "wsgi/legacy.py").write_text(WSGI)
    (directory / "wsgi/requirements.txt").write_text("tornado==6.6.1\n")
    (directory / "procfile").mkdir()
    (directory / "procfile/plain.py").write_text((ROOT / "molecule/shared/plain/plain.py").read_text())
    (directory / "procfile/requirements.txt").write_text("tornado==6.6.1\n")
    (directory / "procfile/worker.py").write_text(WORKER)
    (directory / "procfile/Procfile").write_text(PROCFILE)
    return directory


@pytest.fixture(scope="module", autouse=True)
def deployed(sources: Path, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Deploy both; at the end they are taken off the host, and nothing of them is left there."""
    directory = tmp_path_factory.mktemp("kinds")
    entries = {
        "legacy": {
            "source": {"path": str(sources / "wsgi")},
            "run": {"wsgi": "legacy:application", "threads": 2},
            "domains": ["legacy.test"],
            "processes": 1,
            "env": {"GREETING": "hello"},
            "drain": 5,
        },
        "paas": {
            "source": {"path": str(sources / "procfile")},
            "run": {"procfile": "web", "scale": {"worker": 2, "idle": 0}},
            "domains": ["paas.test"],
            "processes": 1,
            "port": 8300,
            "drain": 2,
        },
    }
    status, output = run_site(HOST, directory, apps(**entries))
    assert status == 0, output
    yield
    users = "id -un legacy paas 2>/dev/null; true"
    assert host.check_output(users).split() == ["legacy", "paas"]

    status, output = run_playbook("playbooks/remove.yml", HOST, "-e", "app=sample")
    assert status != 0
    assert "tornado_apps still contains sample: delete the entry first" in re.sub(r"\s+", " ", output)

    status, output = run_playbook("playbooks/remove.yml", HOST, "-e", "app=paas", "--check", "--diff")
    assert status == 0, output
    assert all(f"-{line}\n" in output for line in ("/srv/paas", "/var/log/paas", "user paas"))
    assert Site(address(host), "paas.test").get("/").body == b"plain v1\n"

    for app in ("paas", "legacy"):
        status, output = run_playbook("playbooks/remove.yml", HOST, "-e", f"app={app}")
        assert status == 0, output
    assert host.check_output(users) == ""

    status, output = run_playbook("playbooks/remove.yml", HOST, "-e", "app=apt")  # has a directory in /var/log
    assert status == 0, output
    assert "changed=0" in output
    left = "find /srv /var/log /run /etc/supervisor /etc/nginx -name '*legacy*' -o -name '*paas*'"
    assert host.check_output(left) == ""
    groups = {line.partition("-")[0] for line in host.check_output("supervisorctl status").splitlines()}
    assert groups == {"sample", "plain"}
    assert Site(address(host), "paas.test").get("/").status == Site(address(host), "nobodys.test").get("/").status
    assert Site(address(host)).get("/whoami").status == 200


def test_a_wsgi_app_answers_while_another_request_takes_its_time(site: Site) -> None:
    legacy = Site(site.address, "legacy.test")
    assert legacy.get("/").body.decode() == f"{site.client_address} http 0 hello"
    slow = threading.Thread(target=legacy.get, args=("/slow",))
    slow.start()
    time.sleep(0.3)
    assert legacy.get("/").status == 200
    assert slow.is_alive()
    slow.join()


def test_a_procfile_is_served_on_its_port_beside_its_workers(host: Host, site: Site) -> None:
    assert Site(site.address, "paas.test").get("/").body == b"plain v1\n"
    running = processes(host, "paas")
    slot = host.check_output("readlink /srv/paas/live").strip().removeprefix("slots/")
    assert sorted(running) == [f"paas-{slot}.worker:0", f"paas-{slot}.worker:1", f"paas-{slot}:0"]
    beats = host.check_output("tail -n 20 /srv/paas/shared/beats").splitlines()
    assert {beat.split()[0] for beat in beats} == {slot}
    assert {beat.split()[2] for beat in beats} == {"None"}
    assert host.check_output("ls /srv/paas/shared") == "beats"


def test_a_worker_that_ends_is_started_again_and_the_status_counts_it_whatever_the_inventory_has(
    host: Host, tmp_path: Path
) -> None:
    name, pid = next((name, pid) for name, pid in processes(host, "paas").items() if ".worker:0" in name)
    host.check_output("kill -9 %s", str(pid))
    eventually(lambda: processes(host, "paas").get(name, pid) != pid)
    status, output = run_playbook("playbooks/status.yml", HOST, "-e", f"json={tmp_path}/status.json")
    assert status != 0
    assert "paas: is on this host but not in tornado_apps; run remove.yml to remove it" in re.sub(r"\s+", " ", output)
    found = json.loads((tmp_path / "status.json").read_text())["hosts"][HOST]["processes"]
    assert {(one["worker"], one["process"]): one["restarts"] for one in found if one["app"] == "paas"} == {
        ("", 0): 0,
        ("worker", 0): 1,
        ("worker", 1): 0,
    }


def test_workers_go_with_their_release(host: Host) -> None:
    before = processes(host, "paas")
    status, output = run_playbook("playbooks/restart.yml", HOST, "-e", "app=paas")
    assert status == 0, output
    after = processes(host, "paas")
    assert len(after) == len(before) == 3
    assert not set(after) & set(before)
    slot = host.check_output("readlink /srv/paas/live").strip().removeprefix("slots/")
    host.check_output("rm /srv/paas/shared/beats")
    beats = eventually(lambda: host.check_output("cat /srv/paas/shared/beats").splitlines())
    assert {beat.split()[0] for beat in beats} == {slot}
    assert f"{slot}-worker-0.log" in host.check_output("ls /var/log/paas").split()


def test_a_worker_that_does_not_stay_up_is_no_release(host: Host, sources: Path, tmp_path: Path) -> None:
    before = processes(host, "paas")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (sources / "procfile").iterdir():
        (broken / file.name).write_text(file.read_text())
    (broken / "worker.py").write_text("import no_such_module\n")
    entry = {
        "source": {"path": str(broken)},
        "run": {"procfile": "web"},
        "domains": ["paas.test"],
        "processes": 1,
        "port": 8300,
    }
    status, output = deploy("paas", HOST, tmp_path, apps(paas=entry))
    assert status != 0
    folded = re.sub(r"\s+", " ", output)
    assert "worker 0 does not stay up" in folded
    assert "No module named" in folded
    assert processes(host, "paas") == before
