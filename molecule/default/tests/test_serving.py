"""HTTP behavior, limits, permissions and logs of a provisioned host."""

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


def test_one_process_per_cpu_each_with_its_own_socket(host: Host) -> None:
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


def test_app_receives_client_address_and_scheme(site: Site) -> None:
    seen = site.get("/whoami").json
    assert (seen["remote_ip"], seen["protocol"]) == (site.client_address, "http")


@pytest.mark.parametrize("header", ["X-Real-IP", "X-Forwarded-For", "X-Scheme", "X-Forwarded-Proto"])
def test_spoofed_forwarding_headers_are_ignored(site: Site, header: str) -> None:
    value = "https" if header in ("X-Scheme", "X-Forwarded-Proto") else "6.6.6.6"
    seen = site.get("/whoami", **{header: value}).json
    assert (seen["remote_ip"], seen["protocol"]) == (site.client_address, "http")


def test_websocket_echoes_messages(site: Site) -> None:
    async def talk(connection: WebSocketClientConnection) -> object:
        await connection.write_message("funnel")
        return await connection.read_message()

    assert site.websocket("/ws", talk) == "funnel"


@pytest.mark.parametrize(("megabytes", "status"), [(40, 200), (60, 413)])
def test_uploads_are_accepted_up_to_the_size_limit(site: Site, megabytes: int, status: int) -> None:
    body = b"x" * (megabytes * MEGABYTE)
    try:
        response = site.request("POST", "/upload", body, {"Content-Type": "application/octet-stream"})
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # nginx responds with 413 to the headers and closes; the reset can overtake the response
        response = site.request("POST", "/upload", headers={"Content-Length": str(len(body))})
    assert response.status == status
    if status == 200:
        assert response.json["bytes"] == len(body)


def test_only_versioned_static_files_are_cached_long_term(site: Site) -> None:
    versioned = re.search(r'"(/static/[^"]+\?v=[^"]+)"', site.get("/").body.decode())
    assert versioned
    versioned_response, unversioned = site.get(versioned[1]), site.get(versioned[1].partition("?")[0])
    assert (versioned_response.status, unversioned.status) == (200, 200)
    assert versioned_response.body == unversioned.body
    assert "max-age=31" in versioned_response.headers["cache-control"]
    assert "max-age=31" not in unversioned.headers.get("cache-control", "")


@pytest.mark.parametrize("path", ["/favicon.ico", "/robots.txt"])
def test_favicon_and_robots_are_served_from_static_directory(site: Site, path: str) -> None:
    assert site.get(path).body == site.get(f"/static{path}").body != b""


@pytest.mark.parametrize("path", ["/", "/static/style.css"])
def test_text_responses_are_compressed(site: Site, path: str) -> None:
    """The app compresses its pages; nginx compresses the static files."""
    assert site.get(path, Accept_Encoding="gzip").headers["content-encoding"] == "gzip"


def test_app_with_own_domain_is_served_only_there(site: Site) -> None:
    assert Site(site.address, "plain.test").get("/").body == b"plain v1\n"
    assert b"plain v1" not in site.get("/").body


def test_nginx_reload_loses_no_request(host: Host, site: Site) -> None:
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


def test_killed_process_loses_no_request_and_is_restarted(host: Host, site: Site) -> None:
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


def test_processes_have_the_configured_open_files_limit(host: Host) -> None:
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


def test_listening_sockets_have_the_configured_backlog(host: Host) -> None:
    listening = host.check_output("ss --listening --tcp --numeric --no-header 'sport = :80'")
    assert {line.split()[2] for line in listening.splitlines()} == {"4096"}


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("sample", "touch /srv/sample/current/src/sample_app/web.py"),
        ("sample", "rm /srv/sample/current/release.json"),
        ("sample", "touch /srv/sample/current/venv/bin/python"),
        ("sample", "rm /srv/sample/live"),
        ("sample", "cat /srv/plain/current/secrets.json"),
        ("www-data", "cat /srv/sample/current/secrets.json"),
        ("www-data", "cat /srv/sample/current/src/sample_app/web.py"),
        ("nobody", "cat /srv/sample/current/release.json"),
        ("nobody", "supervisorctl status"),
        ("nobody", "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('/srv/sample/live/run/0.sock')\""),
    ],
)
def test_other_users_are_denied_access(host: Host, user: str, command: str) -> None:
    denied = host.run(f"runuser -u {user} -- {command}")
    assert denied.rc != 0
    assert "ermission" in denied.stderr + denied.stdout or "Operation not permitted" in denied.stderr


def test_secrets_reach_the_app_but_no_process_list(host: Host) -> None:
    pid = next(iter(processes(host, "sample").values()))
    assert "COOKIE_SECRET=not-for-others" in host.check_output(f"tr '\\0' '\\n' < /proc/{pid}/environ")
    assert "not-for-others" not in host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")


def test_each_process_has_its_own_log(host: Host, site: Site) -> None:
    responses = [site.get("/whoami").json for _ in range(20)]
    assert len({who["process"] for who in responses}) == len(processes(host, "sample"))
    for who in responses[-4:]:
        log = f"/var/log/sample/{who['slot']}-{who['process']}.log"
        line = f"pid {who['pid']}] 200 GET /whoami ({site.client_address})"
        eventually(lambda log=log, line=line: line in host.check_output(f"tail -n 50 {log}"))  # type: ignore[misc]


def test_log_is_rotated_without_restart(host: Host, site: Site) -> None:
    who = site.get("/whoami").json
    log = f"/var/log/sample/{who['slot']}-{who['process']}.log"
    host.run_expect([0], f"truncate --size 50M {log}")
    eventually(lambda: site.get("/whoami").status == 200 and host.run(f"test -e {log}.1").rc == 0)
    eventually(lambda: site.get("/whoami").status == 200 and "GET /whoami" in host.check_output(f"cat {log}"))
    assert who["pid"] in processes(host, "sample").values()
    host.run_expect([0], f"rm {log}.1")
