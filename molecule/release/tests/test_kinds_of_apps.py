"""The kinds of apps: WSGI, a Procfile with workers, and a plain script."""

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
# in the format of a PaaS
web: python plain.py --port=${PORT:-none}
worker: python worker.py
release: echo $TORNADO_RELEASE {} >> $HOME/released
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
def deploy_apps(sources: Path, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Deploy both apps; after the module, verify that remove.yml removes them without leftovers."""
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
            "run": {"procfile": "web"},
            "workers": {"worker": {"count": 2}, "idle": {"count": 0}},
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
    find_remains = "find /srv /var/log /run /etc/supervisor /etc/nginx -name '*legacy*' -o -name '*paas*'"
    assert host.check_output(find_remains) == ""
    groups = {line.partition("-")[0] for line in host.check_output("supervisorctl status").splitlines()}
    assert groups == {"sample", "plain"}
    assert Site(address(host), "paas.test").get("/").status == Site(address(host), "unknown.test").get("/").status
    assert Site(address(host)).get("/whoami").status == 200


def test_wsgi_app_serves_requests_while_another_is_slow(site: Site) -> None:
    legacy = Site(site.address, "legacy.test")
    assert legacy.get("/").body.decode() == f"{site.client_address} http 0 hello"
    slow = threading.Thread(target=legacy.get, args=("/slow",))
    slow.start()
    time.sleep(0.3)
    assert legacy.get("/").status == 200
    assert slow.is_alive()
    slow.join()


def test_procfile_app_is_served_with_its_workers(host: Host, site: Site) -> None:
    assert Site(site.address, "paas.test").get("/").body == b"plain v1\n"
    running = processes(host, "paas")
    slot = host.check_output("readlink /srv/paas/live").strip().removeprefix("slots/")
    assert sorted(running) == [f"paas-{slot}.worker:0", f"paas-{slot}.worker:1", f"paas-{slot}:0"]
    beats = host.check_output("tail -n 20 /srv/paas/shared/beats").splitlines()
    assert {beat.split()[0] for beat in beats} == {slot}
    assert {beat.split()[2] for beat in beats} == {"None"}
    release = host.check_output("readlink /srv/paas/live/release").rpartition("/")[2]
    assert host.check_output("cat /srv/paas/shared/released") == f"{release} {{}}", "the release command runs once per release"


def test_status_counts_restarts_of_workers_of_app_missing_in_inventory(host: Host, tmp_path: Path) -> None:
    name, pid = next((name, pid) for name, pid in processes(host, "paas").items() if ".worker:0" in name)
    host.check_output("kill -9 %s", str(pid))
    eventually(lambda: processes(host, "paas").get(name, pid) != pid)
    status, output = run_playbook("playbooks/status.yml", HOST, "-e", f"json={tmp_path}/status.json")
    assert status != 0
    assert "paas: is on this host but not in tornado_apps; run remove.yml -e app=paas to remove it" in re.sub(r"\s+", " ", output)
    found = json.loads((tmp_path / "status.json").read_text())["hosts"][HOST]["processes"]
    assert {(process["worker"], process["process"]): process["restarts"] for process in found if process["app"] == "paas"} == {
        ("", 0): 0,
        ("worker", 0): 1,
        ("worker", 1): 0,
    }


def test_restart_replaces_workers_with_their_release(host: Host) -> None:
    before = processes(host, "paas")
    status, output = run_playbook("playbooks/restart.yml", HOST, "-e", "app=paas")
    assert status == 0, output
    after = processes(host, "paas")
    assert len(after) == len(before) == 3
    assert len(host.check_output("cat /srv/paas/shared/released").splitlines()) == 1, "only a new release runs its command"
    assert not set(after) & set(before)
    slot = host.check_output("readlink /srv/paas/live").strip().removeprefix("slots/")
    host.check_output("rm /srv/paas/shared/beats")
    beats = eventually(lambda: host.check_output("cat /srv/paas/shared/beats").splitlines())
    assert {beat.split()[0] for beat in beats} == {slot}
    assert f"{slot}-worker-0.log" in host.check_output("ls /var/log/paas").split()


def test_release_with_crashing_worker_is_rejected(host: Host, sources: Path, tmp_path: Path) -> None:
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
    collapsed = re.sub(r"\s+", " ", output)
    assert "worker 0 does not stay up" in collapsed
    assert "No module named" in collapsed
    assert processes(host, "paas") == before


def test_release_whose_worker_exits_during_soak_is_rolled_back(host: Host, sources: Path, tmp_path: Path) -> None:
    before = processes(host, "paas")
    entry = {
        "source": {"path": str(sources / "procfile")},
        "run": {"procfile": "web"},
        "domains": ["paas.test"],
        "processes": 1,
        "port": 8300,
        "soak": 60,
        "workers": {"brief": {"command": "sh -c 'sleep 6; echo no more work; exit 3'"}},
    }
    status, output = deploy("paas", HOST, tmp_path, apps(paas=entry))
    assert status != 0
    collapsed = re.sub(r"\s+", " ", output)
    assert re.search(r"was live for \d+ s and was rolled back: brief 0 (exited and was restarted|does not stay up)", collapsed)
    assert "no more work" in collapsed
    assert processes(host, "paas") == before
