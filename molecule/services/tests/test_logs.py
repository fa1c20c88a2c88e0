"""Logs on app hosts and on the log server: delivery, rotation, limits and failures."""

from __future__ import annotations

import http.client
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.support.remote import ROOT, Site, address, eventually, expect_success, hosts, processes, python, run_playbook

testinfra_hosts = ["ansible://debian12"]

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

ROTATE = "logrotate --force --state /var/lib/logrotate/fleet /etc/fleet-logrotate.conf"

#: Prints the IDs of a file that are missing in the logs that match a pattern.
FIND_MISSING = """
import glob, gzip, json, re, sys
ids, found = set(open("/tmp/ids").read().split()), set()
for path in (path for pattern in sys.argv[1:] for path in glob.glob(pattern)):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        for line in file:
            found.update(re.findall(r"[0-9a-f]{32}", line.decode(errors="replace")))
print(json.dumps([len(ids), sorted(ids - found)]))
"""


@pytest.fixture(scope="module", autouse=True)
def deployed(serve: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return serve()


@pytest.fixture(scope="module")
def db() -> Host:
    return hosts("db")["db"]


@pytest.fixture(scope="module")
def log_servers(db: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    """Return a log server of each release of Debian; only the tests of attacks send to the second one."""
    lock = hosts("lock")["lock"]
    expect_success(provision(tmp_path_factory.mktemp("lock"), "lock"))
    yield {"db": db, "lock": lock}
    lock.check_output("systemctl disable --now rsyslog fleet-logrotate.timer; rm -rf /etc/rsyslog.d/50-fleet.conf /var/log/fleet")


@pytest.fixture(params=["db", "lock"])
def log_server(request: pytest.FixtureRequest, log_servers: dict[str, Host]) -> Host:
    return log_servers[request.param]


@pytest.fixture
def site(sites: dict[str, Site]) -> Site:
    return sites["debian12"]


def provision(directory: Path, name: str = "db", **variables: Any) -> tuple[int, str]:
    """Apply the role logs to a log server."""
    playbook = directory / "play.yml"
    play = {"name": "Provision the log server", "hosts": name, "gather_facts": False, "roles": ["funnel.tornado.logs"]}
    playbook.write_text(yaml.safe_dump([play]))
    listening = yaml.safe_load((ROOT / "molecule/shared/group_vars/logs.yml").read_text())
    return run_playbook(str(playbook), name, "-e", json.dumps(listening | variables))


def request_id_of(site: Site, path: str) -> str:
    """Request ``path`` and return the ID of the request."""
    return site.get(path).headers["x-request-id"]


def send_requests(site: Site, number: int) -> list[str]:
    """Send requests in sequence on one connection and return their IDs."""
    connection = http.client.HTTPConnection(site.address, timeout=30)
    ids = []
    for _ in range(number):
        connection.request("GET", "/healthz")
        with connection.getresponse() as response:
            assert response.read()
            assert response.status == 200
            ids.append(response.headers["X-Request-ID"])
    connection.close()
    return ids


def received_lines(db: Host, host: str, text: str) -> list[str]:
    """Return the lines with ``text`` that the log server received from a host."""
    return db.run("grep -hF %s /var/log/fleet/%s/sample.log", text, host).stdout.splitlines()


def send(host: Host, *datagrams: str, to: Host | None = None) -> None:
    """Send datagrams from a host to a log server."""
    code = "import json, socket, sys\ns = socket.socket(type=socket.SOCK_DGRAM)\n"
    code += "for datagram in json.loads(sys.argv[1]): s.sendto(datagram.encode(), (sys.argv[2], 514))"
    host.check_output("python3 -c %s %s %s", code, json.dumps(datagrams), address(to) if to else "db")


def require_delivery(host: Host, server: Host) -> None:
    """Check that a log server receives lines of the sample app on a host."""
    mark = uuid.uuid4().hex

    def is_received() -> bool:
        send(host, f"<14>1 2026-11-21T03:14:15Z debian12 sample 1 - - {mark}", to=server)
        return bool(received_lines(server, "debian12", mark))

    eventually(is_received)


@contextmanager
def small_disk(host: Host, directory: str) -> Iterator[None]:
    """Mount a full disk of 1 MiB over a log directory."""
    host.check_output(
        "mount -t tmpfs -o size=1m,mode=0755 none %s && dd if=/dev/zero of=%s/ballast bs=1k count=1000", *[directory] * 2
    )
    yield
    host.check_output("umount --lazy %s", directory)


def test_log_line_arrives_with_host_app_process_and_request_id(sites: dict[str, Site], db: Host) -> None:
    for name, site in sites.items():
        request = request_id_of(site, "/nowhere")
        (line,) = eventually(partial(received_lines, db, name, request))
        sender = re.escape(address(hosts(name)[name]))
        what = r"WARNING tornado\.access \[sample [ab]/[01] [0-9a-f]+ pid \d+\] 404 GET /nowhere \(\S+\) \S+ms"
        assert re.fullmatch(rf"\S+ {sender} {STAMP} {what} request={request}", line), line


def test_find_request_shows_all_lines_of_a_request(site: Site) -> None:
    request = request_id_of(site, "/nowhere")
    output = eventually(lambda: text if (text := find_request(request)[1]).count(request) >= 3 else False)
    assert re.search(rf'/var/log/nginx/access\.log:\S+ .* "GET /nowhere HTTP/1\.1" 404 .* {request}', output)
    assert re.search(rf"/var/log/sample/[ab]-[01]\.log:.* 404 GET /nowhere .* request={request}", output)
    assert re.search(rf"/var/log/fleet/debian12/sample\.log:.* 404 GET /nowhere .* request={request}", output)
    for wrong, words in (
        ("0" * 32, "no log of these hosts has a line of request 000"),
        ("a b;id", "id must be the X-Request-ID"),
    ):
        status, output = find_request(wrong)
        assert status != 0
        assert words in output


def find_request(request: str) -> tuple[int, str]:
    """Run find_request.yml; return its exit status and its output on one line."""
    status, output = run_playbook("playbooks/find_request.yml", "all", "-e", json.dumps({"id": request}))
    return status, " ".join(output.split())


def test_log_rotation_loses_no_line(site: Site, host: Host, db: Host) -> None:
    before = processes(host, "sample")
    host.check_output("rm -f /var/log/sample/*.log.*")
    ids: list[str] = []
    stop = threading.Event()

    def visit() -> None:
        while not stop.wait(0.1):
            ids.extend(send_requests(site, 50))

    clients = [threading.Thread(target=visit) for _ in range(4)]
    for client in clients:
        client.start()
    # supervisord rotates an extended log like one that has grown.
    host.check_output("truncate --size 50M /var/log/sample/[ab]-[01].log")
    for _ in range(3):
        host.check_output("logrotate --force /etc/logrotate.d/nginx")
        db.check_output(ROTATE)
    eventually(lambda: len(ids) > 200)
    stop.set()
    for client in clients:
        client.join()
    for where, logs in (
        (host, ["/var/log/nginx/access.log*", "/var/log/sample/*"]),
        (db, ["/var/log/fleet/debian12/sample.log*"]),
    ):
        where.check_output("rm -f /tmp/ids")
        for start in range(0, len(ids), 1000):  # stays below the maximum length of an argument
            where.check_output("echo %s >> /tmp/ids", " ".join(ids[start : start + 1000]))
        for log in logs:
            eventually(partial(contains_all, where, log, len(ids)))
    assert processes(host, "sample") == before
    rotated = host.check_output("cd /var/log/sample && ls *.log.*").split()
    assert rotated in (["a-0.log.1", "a-1.log.1"], ["b-0.log.1", "b-1.log.1"])
    host.check_output("rm /var/log/sample/*.log.*")


def contains_all(host: Host, logs: str, number: int) -> bool:
    count, missing = json.loads(host.check_output("python3 -c %s %s", FIND_MISSING, logs))
    assert count == number
    return not missing


def test_invalid_names_of_senders_do_not_create_files_elsewhere(host: Host, db: Host) -> None:
    stamp = "2026-11-21T03:14:15Z"
    send(
        host,
        f"<14>1 {stamp} .. ../../../tmp/evil 1 - - first",
        f"<14>1 {stamp} ../../../tmp shop 1 - - second",
        f"<14>1 {stamp} web1 .. 1 - - third",
        "<14>../../../tmp/evil: fourth",
        "<14>shop[7]: of a sender that says neither when nor where",
        f"<14>1 {stamp} web1 shop 1 - - two\n{stamp} lines\x1b[31m",
    )
    eventually(lambda: db.run("grep -q lines /var/log/fleet/web1/shop.log").rc == 0)
    fallback = db.check_output("cat /var/log/fleet/other.log")
    assert [word for word in ("first", "second", "third", "fourth") if word not in fallback] == []
    assert db.check_output("find / -xdev -name '*evil*' -newer /var/log/fleet/other.log -o -path /tmp/shop.log") == ""
    assert "neither when nor where" in db.check_output(f"cat /var/log/fleet/{address(host)}/shop.log")
    assert re.fullmatch(
        rf"\S+ {address(host)} two#012{stamp} lines#033\[31m", db.check_output("cat /var/log/fleet/web1/shop.log")
    )
    assert db.check_output("stat --format '%U %G %a' /var/log/fleet/web1 /var/log/fleet/web1/shop.log").splitlines() == [
        "root adm 750", "root adm 640",
    ]  # fmt: skip
    db.check_output("rm -r /var/log/fleet/web1 /var/log/fleet/%s && systemctl kill --signal=HUP rsyslog", address(host))


def test_sender_named_like_the_fallback_file_does_not_block_others(host: Host, log_server: Host) -> None:
    """A directory in place of the file once blocked the queue, and thereby the lines of all hosts."""
    stamp, marks = "2026-11-21T03:14:15Z", [uuid.uuid4().hex for _ in range(3)]
    log_server.check_output("rm -f /var/log/fleet/other.log && systemctl restart rsyslog")
    names = ("other.log", "other.log.1", "..")
    send(host, *(f"<14>1 {stamp} {name} shop 1 - - {mark}" for name, mark in zip(names, marks, strict=True)), to=log_server)
    eventually(lambda: all(log_server.run("grep -qF %s /var/log/fleet/other.log", mark).rc == 0 for mark in marks))
    require_delivery(host, log_server)
    assert log_server.run("test -e /var/log/fleet/other.log.1").rc != 0


def test_unwritable_output_does_not_block_others(site: Site, host: Host, db: Host) -> None:
    db.check_output("rm -f /var/log/fleet/other.log && mkdir /var/log/fleet/other.log && systemctl restart rsyslog")
    try:
        send(host, *(f"<14>1 2026-11-21T03:14:15Z .. shop 1 - - {number}" for number in range(100)))
        for _ in range(3):
            eventually(partial(received_lines, db, "debian12", request_id_of(site, "/nowhere")))
    finally:
        db.check_output("rmdir /var/log/fleet/other.log")


def test_number_of_files_is_limited_for_invented_hosts(host: Host, log_server: Host) -> None:
    limit = 1000  # logs_files
    require_delivery(host, log_server)
    try:
        for start in range(0, 3000, 200):  # no more than the buffer of the server's socket holds
            names = (f"<14>1 2026-11-21T03:14:15Z invented-{number} shop 1 - - x" for number in range(start, start + 200))
            send(host, *names, to=log_server)
            require_delivery(host, log_server)
        last = uuid.uuid4().hex

        def is_received() -> bool:
            send(host, f"<14>1 2026-11-21T03:14:15Z invented-3000 shop 1 - - {last}", to=log_server)
            return log_server.run("grep -qF %s /var/log/fleet/other.log", last).rc == 0

        eventually(is_received)
        made = int(log_server.check_output("find /var/log/fleet -path '*/invented-*/shop.log' | wc -l"))
        assert limit // 2 < made < limit, "the test must create many files"
        require_delivery(host, log_server)
    finally:
        log_server.check_output("systemctl restart rsyslog && find /var/log/fleet -name 'invented-*' -exec rm -r {} +")


def test_only_configured_senders_are_accepted(sites: dict[str, Site], db: Host, tmp_path: Path) -> None:
    expect_success(provision(tmp_path, logs_senders=[f"{address(hosts('debian12')['debian12'])}/32"]))
    try:
        dropped, accepted = request_id_of(sites["debian13"], "/nowhere"), request_id_of(sites["debian12"], "/nowhere")
        eventually(lambda: received_lines(db, "debian12", accepted))
        assert received_lines(db, "debian13", dropped) == []
    finally:
        expect_success(provision(tmp_path))
    accepted = request_id_of(sites["debian13"], "/nowhere")
    eventually(lambda: received_lines(db, "debian13", accepted))


def test_port_in_use_restores_previous_log_server(site: Site, db: Host, tmp_path: Path) -> None:
    holder = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('0.0.0.0', 5514)); time.sleep(60)"
    db.check_output("systemd-run --unit=holder python3 -c %s", holder)
    try:
        status, output = provision(tmp_path, logs_port=5514)
    finally:
        db.check_output("systemctl stop holder")
    assert status != 0
    assert "rsyslog: it did not bind UDP port 5514" in output
    assert "The previous files were restored, and rsyslog runs with them." in output
    accepted = request_id_of(site, "/nowhere")
    eventually(lambda: received_lines(db, "debian12", accepted))


def test_dropped_datagrams_do_not_block_the_app(site: Site, host: Host, db: Host) -> None:
    rules = "add table inet cut; add chain inet cut out { type filter hook output priority 0; };"
    rules += "add rule inet cut out udp dport 514 drop"
    host.check_output("nft %s", rules)
    try:
        dropped = send_requests(site, 200)[-1]
    finally:
        host.check_output("nft delete table inet cut")
    accepted = request_id_of(site, "/nowhere")
    eventually(lambda: received_lines(db, "debian12", accepted))
    assert received_lines(db, "debian12", dropped) == []
    eventually(lambda: host.run("grep -rqF %s /var/log/sample", dropped).rc == 0)  # lines are written ten times a second


def test_full_disk_of_log_server_loses_only_lines(site: Site, db: Host) -> None:
    with small_disk(db, "/var/log/fleet"):
        db.check_output("systemctl kill --signal=HUP rsyslog")
        requests = send_requests(site, 500)
        eventually(lambda: "No space left on device" in db.check_output("journalctl --unit rsyslog --since -1min"))
        assert received_lines(db, "debian12", requests[-1]) == []
        db.check_output("logger still-here")
        eventually(lambda: db.run("grep -q still-here /var/log/syslog").rc == 0)
        # Logging resumes without a signal once there is space.
        db.check_output("rm /var/log/fleet/ballast")
        eventually(lambda: received_lines(db, "debian12", request_id_of(site, "/nowhere")))
    db.check_output("systemctl kill --signal=HUP rsyslog")
    accepted = request_id_of(site, "/nowhere")
    eventually(lambda: received_lines(db, "debian12", accepted))


def test_full_log_disk_does_not_stop_the_app(site: Site, host: Host) -> None:
    with small_disk(host, "/var/log/sample"):
        expect_success(run_playbook("playbooks/restart.yml", "debian12", "-e", "app=sample"))
        before = processes(host, "sample")
        requests = send_requests(site, 1000)
        assert int(host.check_output("df --output=avail /var/log/sample | tail -1")) == 0
        assert host.run("grep -rqF %s /var/log/sample", requests[-1]).rc != 0
        host.check_output("rm /var/log/sample/ballast")
        accepted = request_id_of(site, "/nowhere")
        eventually(lambda: host.run("grep -rqF %s /var/log/sample", accepted).rc == 0)
        assert processes(host, "sample") == before
    expect_success(run_playbook("playbooks/restart.yml", "debian12", "-e", "app=sample"))


def test_total_size_of_logs_is_limited(host: Host, log_server: Host, tmp_path: Path) -> None:
    name = log_server.backend.get_hostname()
    require_delivery(host, log_server)
    list_files = "import pathlib\nfiles = [path for path in pathlib.Path('/var/log/fleet').rglob('*') if not path.is_dir()]\n"
    used = python(log_server, f"{list_files}print(sum(path.lstat().st_blocks for path in files) * 512)")
    expect_success(provision(tmp_path, name, logs_total_bytes=used + 250_000))
    try:
        code = "import os, pathlib\nhome = pathlib.Path('/var/log/fleet/web2')\nhome.mkdir()\n"
        code += "for age in range(5):\n path = home / f'shop.log.{age + 1}'\n path.write_bytes(b'x' * 100_000)\n"
        code += " os.utime(path, (10**9 - age, 10**9 - age))\nprint(0)"
        assert python(log_server, code) == 0
        log_server.check_output("systemctl start fleet-logrotate")
        assert log_server.check_output("ls /var/log/fleet/web2").split() == ["shop.log.1", "shop.log.2"]
        # Files with other names count as well, and small files count with the size of a block.
        log_server.check_output("cd /var/log/fleet/web2 && head -c 100000 /dev/zero > shop && touch -d @1 shop && rm shop.log.*")
        log_server.check_output(
            "cd /var/log/fleet/web2 && for i in $(seq 200); do echo x > $i.log.1; touch -d @$((10**9 - i)) $i.log.1; done"
        )
        log_server.check_output("systemctl start fleet-logrotate")
        remaining = [int(name.partition(".")[0]) for name in log_server.check_output("ls /var/log/fleet/web2").split()]
        assert sorted(remaining) == [*range(1, len(remaining) + 1)], "the oldest files must be removed first"
        assert 10 < len(remaining) < 70
        assert "/var/log/fleet/debian12/sample.log" in log_server.check_output("ls /var/log/fleet/debian12/*")
    finally:
        log_server.check_output("rm -r /var/log/fleet/web2")
        expect_success(provision(tmp_path, name))
