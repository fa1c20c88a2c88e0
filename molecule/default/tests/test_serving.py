"""What the network sees of a provisioned host."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.remote import Site, address, eventually, processes, python

testinfra_hosts = ["ansible://app_hosts"]

MEGABYTE = 1_000_000


@pytest.fixture
def site(host: Host) -> Site:
    return Site(address(host))


def test_as_many_processes_as_cpus_each_on_its_own_socket(host: Host) -> None:
    pids = python(
        host,
        """
import http.client, json, os, pathlib, socket
pids = []
for path in sorted(pathlib.Path("/srv/sample/live/run").glob("*.sock")):
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/whoami")
    pids.append(json.load(connection.getresponse())["pid"])
print(json.dumps(pids))
""",
    )
    assert len(pids) == int(host.check_output("nproc"))
    assert sorted(pids) == sorted(processes(host, "sample").values())


def test_requests_reach_all_processes(host: Host, site: Site) -> None:
    reached = {site.get("/whoami").json["pid"] for _ in range(20)}
    assert reached == set(processes(host, "sample").values())


def test_the_app_sees_the_client_and_the_scheme(site: Site) -> None:
    seen = site.get("/whoami").json
    assert (seen["remote_ip"], seen["protocol"]) == (site.client_address, "http")


@pytest.mark.parametrize("header", ["X-Real-IP", "X-Forwarded-For", "X-Scheme", "X-Forwarded-Proto"])
def test_a_spoofed_header_has_no_effect(site: Site, header: str) -> None:
    value = "https" if header in ("X-Scheme", "X-Forwarded-Proto") else "6.6.6.6"
    seen = site.get("/whoami", **{header: value}).json
    assert (seen["remote_ip"], seen["protocol"]) == (site.client_address, "http")


def test_a_websocket_echoes(site: Site) -> None:
    async def talk(connection: WebSocketClientConnection) -> object:
        await connection.write_message("funnel")
        return await connection.read_message()

    assert site.websocket("/ws", talk) == "funnel"


@pytest.mark.parametrize(("megabytes", "status"), [(40, 200), (60, 413)])
def test_uploads_pass_up_to_their_limit(site: Site, megabytes: int, status: int) -> None:
    body = b"x" * (megabytes * MEGABYTE)
    try:
        answer = site.request("POST", "/upload", body, {"Content-Type": "application/octet-stream"})
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # nginx answers 413 at the headers and closes, which can overtake its own answer
        answer = site.request("POST", "/upload", headers={"Content-Length": str(len(body))})
    assert answer.status == status
    if status == 200:
        assert answer.json["bytes"] == len(body)


def test_a_versioned_static_file_is_cached_for_long_and_an_unversioned_one_is_not(site: Site) -> None:
    versioned = re.search(r'"(/static/[^"]+\?v=[^"]+)"', site.get("/").body.decode())
    assert versioned
    with_version, without = site.get(versioned[1]), site.get(versioned[1].partition("?")[0])
    assert (with_version.status, without.status) == (200, 200)
    assert with_version.body == without.body
    assert "max-age=31" in with_version.headers["cache-control"]
    assert "max-age=31" not in without.headers.get("cache-control", "")


@pytest.mark.parametrize("path", ["/favicon.ico", "/robots.txt"])
def test_well_known_files_come_from_the_static_directory(site: Site, path: str) -> None:
    assert site.get(path).body == site.get(f"/static{path}").body != b""


@pytest.mark.parametrize("path", ["/", "/static/style.css"])
def test_what_compresses_is_compressed(site: Site, path: str) -> None:
    """By the app, or by nginx, which serves the static files."""
    assert site.get(path, Accept_Encoding="gzip").headers["content-encoding"] == "gzip"


def test_an_app_of_another_domain_answers_there_only(site: Site) -> None:
    assert Site(site.address, "plain.test").get("/").body == b"plain v1\n"
    assert b"plain v1" not in site.get("/").body


def test_a_reload_of_nginx_loses_no_request(host: Host, site: Site) -> None:
    stop = threading.Event()

    def reload_nginx() -> None:
        for _ in range(5):
            host.run_expect([0], "systemctl reload nginx")
            time.sleep(0.2)
        stop.set()

    thread = threading.Thread(target=reload_nginx)
    thread.start()
    statuses = []
    while not stop.is_set():
        statuses.append(site.get("/whoami").status)
    thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_killed_process_costs_no_request_and_comes_back(host: Host, site: Site) -> None:
    before = processes(host, "sample")
    victim = next(iter(before))
    statuses = []
    for number in range(200):
        if number == 50:
            host.run_expect([0], f"kill -{signal.SIGKILL} {before[victim]}")
        statuses.append(site.get("/whoami").status)
    assert set(statuses) == {200}
    after = eventually(lambda: (now := processes(host, "sample")).get(victim, before[victim]) != before[victim] and now)
    assert after.keys() == before.keys()
    eventually(lambda: {site.get("/whoami").json["pid"] for _ in range(20)} == set(after.values()))


def test_every_process_may_open_as_many_files_as_asked_for(host: Host) -> None:
    limits = python(
        host,
        """
import json, pathlib
limits = {}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        line = (path / "cmdline").read_bytes().replace(b"\\0", b" ").decode()
        rows = (path / "limits").read_text().splitlines()
    except OSError:
        continue
    for kind in ("supervisord", "/runner ", "nginx: worker process", "plain.py"):
        if kind in line and "import json" not in line:
            limits.setdefault(kind, []).extend(int(row.split()[3]) for row in rows if row.startswith("Max open files"))
print(json.dumps(limits))
""",
    )
    assert {kind: set(found) for kind, found in limits.items()} == {
        "supervisord": {16_384},
        "/runner ": {16_384},
        "nginx: worker process": {16_384},
        "plain.py": {4_096},  # its own open_files
    }
    assert len(limits["/runner "]) == os.cpu_count()


def test_the_backlog_reaches_the_listening_sockets(host: Host) -> None:
    listening = host.check_output("ss --listening --tcp --numeric --no-header 'sport = :80'")
    assert {line.split()[2] for line in listening.splitlines()} == {"4096"}


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("sample", "touch /srv/sample/current/src/sample_app/web.py"),
        ("sample", "rm /srv/sample/current/release.json"),
        ("sample", "touch /srv/sample/current/venv/bin/python"),
        ("sample", "ln -sfn /tmp /srv/sample/live"),
        ("sample", "cat /srv/plain/current/secrets.json"),
        ("www-data", "cat /srv/sample/current/secrets.json"),
        ("www-data", "cat /srv/sample/current/src/sample_app/web.py"),
        ("nobody", "cat /srv/sample/current/release.json"),
        ("nobody", "supervisorctl status"),
        ("nobody", "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('/srv/sample/live/run/0.sock')\""),
    ],
)
def test_another_user_is_kept_out(host: Host, user: str, command: str) -> None:
    refused = host.run(f"runuser -u {user} -- {command}")
    assert refused.rc != 0
    assert "ermission" in refused.stderr + refused.stdout or "Operation not permitted" in refused.stderr


def test_the_app_has_its_secrets_and_nobody_sees_them_in_a_process_list(host: Host) -> None:
    pid = next(iter(processes(host, "sample").values()))
    assert "COOKIE_SECRET=not-for-others" in host.check_output(f"tr '\\0' '\\n' < /proc/{pid}/environ")
    assert "not-for-others" not in host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")


def test_a_log_per_process(host: Host, site: Site) -> None:
    served = [site.get("/whoami").json for _ in range(20)]
    assert len({who["process"] for who in served}) == len(processes(host, "sample"))
    for who in served[-4:]:
        log = f"/var/log/sample/{who['slot']}-{who['process']}.log"
        line = f"pid {who['pid']}] 200 GET /whoami ({site.client_address})"
        eventually(lambda log=log, line=line: line in host.check_output(f"tail -n 50 {log}"))  # type: ignore[misc]


def test_a_log_is_rotated_without_a_restart(host: Host, site: Site) -> None:
    who = site.get("/whoami").json
    log = f"/var/log/sample/{who['slot']}-{who['process']}.log"
    host.run_expect([0], f"truncate --size 50M {log}")
    eventually(lambda: site.get("/whoami").status == 200 and host.run(f"test -e {log}.1").rc == 0)
    eventually(lambda: site.get("/whoami").status == 200 and "GET /whoami" in host.check_output(f"cat {log}"))
    assert who["pid"] in processes(host, "sample").values()
    host.run_expect([0], f"rm {log}.1")
