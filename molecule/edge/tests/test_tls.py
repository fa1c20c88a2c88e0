"""Certificates of every provider: issued, renewed, refused, and what is served meanwhile."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.pki import Authority
from tests.support.remote import (
    ALL,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra,
    hosts,
    run_playbook,
    run_site,
)

#: One ACME server takes every account, the other only those that are bound to this one.
OPEN = {"certificates_acme_directory": "https://acme:14000/dir"}
BOUND = {"certificates_acme_directory": "https://acme:14001/dir"}
KEY_ID, HMAC_KEY = "funnel", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
NOBODY = {"certificates_acme_directory": "https://acme:14002/dir"}

#: The name of an app's site; it leads to the host whose name is in it.
NAME = "shop-{{ inventory_hostname }}.edge.test"
WWW = "www-{{ inventory_hostname }}.edge.test"
#: Leads to a host that serves nothing on port 80.
ASTRAY = "astray-{{ inventory_hostname }}.edge.test"

ACME = {"provider": "acme"}

#: An ACME server that opens no account: pebble has no way to demand an address.
WANTS_CONTACT = """
import http.server, json, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status=200, **body):
        self.send_response(status)
        self.send_header("Replay-Nonce", "bm9uY2U")
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        self.answer(**{name: f"https://acme:14003/{name}" for name in ("newNonce", "newAccount", "newOrder")})
    do_HEAD = do_GET
    def do_POST(self):
        self.answer(400, type="urn:ietf:params:acme:error:invalidContact", detail="An e-mail address is needed")
server = http.server.HTTPServer(("", 14003), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/ssl/certs/acme.pem", "/etc/ssl/private/acme.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def name(host: str, template: str = NAME) -> str:
    return template.replace("{{ inventory_hostname }}", host)


def shop(tls: dict[str, Any], *domains: str, server: dict[str, str] = OPEN) -> dict[str, Any]:
    """Return the variables with one app more, whose certificate is as ``tls`` says."""
    entry = {"processes": 1, "domains": list(domains or [NAME]), "tls": tls}
    entries = apps(shop=entry)
    entries["tornado_apps"]["shop"] = entries["tornado_apps"]["sample"] | entry
    return entries | server


@pytest.fixture(scope="module")
def both() -> dict[str, Host]:
    return hosts()


@pytest.fixture(scope="module", autouse=True)
def acme(both: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Tell the ACME servers' DNS where the names lead, begin without the app, and end so."""
    directory = tmp_path_factory.mktemp("apps")
    server = hosts("acme")["acme"]
    leads = {name(host, template): address(one) for host, one in both.items() for template in (NAME, WWW)}
    leads |= {name(host, ASTRAY): address(server) for host in both}
    for found, target in leads.items():
        entry = json.dumps({"host": found, "addresses": [target]}).encode()
        urllib.request.urlopen(f"http://{address(server)}:8055/add-a", entry, timeout=10).close()
    expect_success(run_site(ALL, directory, {}))
    yield server
    expect_success(deploy("sample", ALL, directory, {}))
    expect_success(run_playbook("playbooks/remove.yml", ALL, "-e", "app=shop"))
    for host in both.values():
        assert host.run("ls /etc/ssl/funnel/* /etc/letsencrypt/renewal/* /etc/letsencrypt/renewal-hooks/deploy/*").stdout == ""


def site(host: Host, domain: str, ca: Path | None = None) -> Site:
    return Site(address(host), domain, https=True, ca=ca)


def names(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value.get_values_for_type(x509.DNSName))


def serials(both: dict[str, Host]) -> dict[str, int]:
    """Return the numbers of the certificates that are served."""
    return {host: site(one, name(host)).certificate().serial_number for host, one in both.items()}


def refused(directory: Path, variables: dict[str, Any], *options: str) -> str:
    """Deploy to both hosts, which has to fail; return what was said, white space and quotes made plain."""
    status, output = deploy("shop", ALL, directory, variables, *options)
    assert status != 0, output
    return re.sub(r"\s+", " ", output.replace("''", "'").replace("\\'", "'"))


@contextmanager
def watched(both: dict[str, Host], ask: Callable[[str, Host], int]) -> Iterator[None]:
    """Ask each host all the time; every answer has to be 200."""
    stop = threading.Event()
    found: dict[str, list[object]] = {host: [] for host in both}

    def watch(host: str) -> None:
        while not stop.wait(0.05):
            try:
                found[host].append(ask(host, both[host]))
            except (OSError, http.client.HTTPException) as error:
                found[host].append(error)

    with ThreadPoolExecutor(len(both)) as executor:
        watching = [executor.submit(watch, host) for host in both]
        try:
            yield
        finally:
            stop.set()
    for one in watching:
        one.result()
    for host, statuses in found.items():
        assert len(statuses) > 20
        assert set(statuses) == {200}, (host, statuses)


def by_http(_: str, host: Host) -> int:
    return Site(address(host)).get("/healthz").status


def by_https(host: str, one: Host) -> int:
    return site(one, name(host)).get("/healthz").status


@pytest.fixture
def issued(both: dict[str, Host], ca: Path, tmp_path: Path) -> dict[str, int]:
    """See that the app has its certificate from the ACME server, and return the numbers of it."""
    expect_success(deploy("shop", ALL, tmp_path, shop(ACME)))
    for host, one in both.items():
        assert site(one, name(host), ca).get("/healthz").status == 200
    return serials(both)


def test_a_dry_run_says_what_would_be_and_does_nothing(both: dict[str, Host], tmp_path: Path) -> None:
    output = expect_success(run_site(ALL, tmp_path, shop(ACME), "--check", "--diff"))
    for host, one in both.items():
        assert f"+shop: {name(host)}, temporary" in output
        assert f"+shop: {name(host)}, issued by https://acme:14000/dir" in output
        assert one.run("ls /etc/ssl/funnel").stdout == ""


def test_the_first_certificate_is_issued_while_everything_is_served(both: dict[str, Host], ca: Path, tmp_path: Path) -> None:
    with watched(both, by_http):
        expect_success(run_site(ALL, tmp_path, shop(ACME)))
    for host, one in both.items():
        assert site(one, name(host), ca).get("/healthz").status == 200
        assert names(site(one, name(host)).certificate()) == {name(host)}
    status = expect_success(
        run_playbook("playbooks/status.yml", ALL, "-e", f"json={tmp_path}/status.json", *extra(tmp_path, shop(ACME)))
    )
    assert re.search(r"shop +acme +CN=Pebble Intermediate", status)
    found = json.loads((tmp_path / "status.json").read_text())["hosts"]
    assert {host: one["certificates"][0]["names"] for host, one in found.items()} == {host: [name(host)] for host in both}


def test_a_second_run_changes_nothing_and_asks_nobody(acme: Host, issued: dict[str, int], tmp_path: Path) -> None:
    lines = "journalctl --unit pebble@14000 | wc -l"
    before = acme.check_output(lines)
    output = expect_success(run_site(ALL, tmp_path, shop(ACME)))
    assert output.count("changed=0") == len(issued), output[-500:]
    assert acme.check_output(lines) == before


def test_other_names_are_another_certificate(both: dict[str, Host], ca: Path, issued: dict[str, int], tmp_path: Path) -> None:
    with watched(both, by_https):
        expect_success(deploy("shop", ALL, tmp_path, shop(ACME, NAME, WWW)))
    for host, one in both.items():
        assert site(one, name(host, WWW), ca).get("/healthz").status == 200
        assert names(site(one, name(host)).certificate()) == {name(host), name(host, WWW)}
    assert serials(both).items().isdisjoint(issued.items())
    expect_success(deploy("shop", ALL, tmp_path, shop(ACME)))
    output = expect_success(deploy("shop", ALL, tmp_path, shop(ACME)))
    assert output.count("changed=0") == len(issued), output[-500:]


def test_a_renewal_is_served_and_cuts_nobody_off(both: dict[str, Host], ca: Path, issued: dict[str, int]) -> None:
    workers = {host: one.check_output("pgrep --full 'nginx: worker'") for host, one in both.items()}
    for one in both.values():
        one.run_expect([0], "systemctl start certbot.service")
    assert {host: one.check_output("pgrep --full 'nginx: worker'") for host, one in both.items()} == workers, "nothing to renew"
    assert serials(both) == issued

    for host, one in both.items():

        async def talk(connection: WebSocketClientConnection, one: Host = one) -> list[object]:
            echoes: list[object] = []
            for text in ("before", "after"):
                await connection.write_message(text)
                echoes.append(await connection.read_message())
                if text == "before":
                    renew(one)
            return echoes

        assert site(one, name(host), ca).websocket("/ws", talk) == ["before", "after"]
    eventually(lambda: serials(both).items().isdisjoint(issued.items()))
    for host, one in both.items():
        assert site(one, name(host), ca).get("/healthz").status == 200


def renew(host: Host) -> None:
    """Let certbot's service renew the app's certificate, however long that is still good."""
    host.run_expect([0], "sed -i '1i renew_before_expiry = 9000 days' /etc/letsencrypt/renewal/app.shop.conf")
    try:
        host.run_expect([0], "systemctl start certbot.service")
    finally:
        host.run_expect([0], "sed -i 1d /etc/letsencrypt/renewal/app.shop.conf")


def test_a_renewal_that_nginx_cannot_read_is_a_problem_until_it_can(
    both: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    look = ["playbooks/status.yml", ALL, *extra(tmp_path, shop(ACME))]
    expect_success(run_playbook(*look))
    with broken(both):
        for one in both.values():
            renew(one)
        assert serials(both) == issued
        status, output = run_playbook(*look)
        assert status != 0
        assert output.count("shop: nginx still serves the previous certificate; nginx -t shows why") >= len(both)
        output = refused(tmp_path, shop(ACME))
        assert 'unknown directive "no_such_directive"' in output
        assert "were restored" not in output
        assert "nginx: the previous certificates are served until a reload succeeds." in output
    expect_success(deploy("shop", ALL, tmp_path, shop(ACME)))
    assert serials(both).items().isdisjoint(issued.items())
    expect_success(run_playbook(*look))


@contextmanager
def broken(both: dict[str, Host]) -> Iterator[None]:
    """Keep nginx from reading its configuration."""
    for one in both.values():
        one.run_expect([0], "echo 'no_such_directive on;' > /etc/nginx/conf.d/broken.conf")
    try:
        yield
    finally:
        for one in both.values():
            one.run_expect([0], "rm /etc/nginx/conf.d/broken.conf")


def test_a_timer_that_somebody_has_stopped_is_started(both: dict[str, Host], issued: dict[str, int], tmp_path: Path) -> None:
    for one in both.values():
        one.run_expect([0], "systemctl disable --now certbot.timer")
    output = expect_success(run_site(ALL, tmp_path, shop(ACME), "--check", "--diff"))
    assert output.count("+certbot.timer") == len(issued)
    output = expect_success(deploy("shop", ALL, tmp_path, shop(ACME)))
    assert output.count("changed=1") == len(issued), output[-500:]
    for one in both.values():
        one.run_expect([0], "systemctl is-enabled certbot.timer && systemctl is-active certbot.timer")


def test_a_name_that_leads_astray_is_not_issued_and_the_certificate_of_before_stays(
    both: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    with watched(both, by_https):
        output = refused(tmp_path, shop(ACME, NAME, ASTRAY))
    for host in both:
        said = f"tornado_apps.shop.tls: no certificate was issued; the previous one stays in use: {name(host, ASTRAY)}: "
        assert said in output
        assert re.search(rf"{name(host, ASTRAY)}: [^;]*connection refused \(connection\)", output)
    assert "To fix: make these names resolve to this host and allow connections to its port 80" in output
    assert serials(both) == issued


def test_a_server_that_is_down_leaves_what_is_served(both: dict[str, Host], issued: dict[str, int], tmp_path: Path) -> None:
    with watched(both, by_https):
        output = refused(tmp_path, shop(ACME, server=NOBODY))
    assert "tornado_apps.shop.tls: no certificate was issued; the previous one stays in use:" in output
    assert (
        "Connection refused. To fix: set another certificates_acme_directory, or allow this host to connect to the server"
        in output
    )
    assert serials(both) == issued


def test_a_server_that_binds_accounts_says_so_and_the_key_to_it_stays_secret(
    both: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    for one in both.values():
        one.run_expect([0], "rm -rf /etc/letsencrypt/accounts/acme:14001")  # that of an earlier run of this test
    output = refused(tmp_path, shop(ACME, server=BOUND))
    assert "Server requires external account binding. To fix: set certificates_acme_eab_key_id and certificates_" in output
    account = {"certificates_acme_eab_key_id": KEY_ID, "certificates_acme_eab_hmac_key": HMAC_KEY}
    output = expect_success(deploy("shop", ALL, tmp_path, shop(ACME, server=BOUND | account), "-vvv", "--diff"))
    assert HMAC_KEY not in output
    for one in both.values():
        assert one.run(f"grep -rl {HMAC_KEY} /etc /var/log /var/lib /tmp /root").stdout == ""
    assert serials(both).items().isdisjoint(issued.items())


def test_a_server_that_wants_an_address_says_so(
    acme: Host, issued: dict[str, int], both: dict[str, Host], tmp_path: Path
) -> None:
    acme.run_expect([0], "systemd-run --unit=wants-contact python3 -c %s", WANTS_CONTACT)
    try:
        output = refused(tmp_path, shop(ACME, server={"certificates_acme_directory": "https://acme:14003/dir"}))
    finally:
        acme.run_expect([0], "systemctl stop wants-contact")
    assert output.count("To fix: set certificates_acme_email to an address that the server accepts") >= len(both)
    assert serials(both) == issued


def test_an_account_is_made_with_the_address(both: dict[str, Host], issued: dict[str, int], tmp_path: Path) -> None:
    for one in both.values():
        one.run_expect([0], "rm -rf /etc/letsencrypt/accounts/acme:14000")
    expect_success(deploy("shop", ALL, tmp_path, shop(ACME, NAME, WWW) | {"certificates_acme_email": "admin@edge.test"}))
    assert serials(both).items().isdisjoint(issued.items())
    for one in both.values():
        account = one.check_output("certbot show_account --server https://acme:14000/dir")
        assert "Email contact: admin@edge.test" in account


def test_until_the_first_is_issued_a_temporary_one_serves(both: dict[str, Host], tmp_path: Path) -> None:
    expect_success(deploy("shop", ALL, tmp_path, shop({"provider": "off"})))
    for one in both.values():
        assert one.run("ls /etc/ssl/funnel /etc/letsencrypt/renewal").stdout.split() == [
            "/etc/letsencrypt/renewal:",
            "/etc/ssl/funnel:",
        ]
    refused(tmp_path, shop(ACME, server=NOBODY))
    for host, one in both.items():
        assert site(one, name(host)).get("/healthz").status == 200
        assert names(site(one, name(host)).certificate()) == {name(host)}
    status, output = run_playbook("playbooks/status.yml", ALL, *extra(tmp_path, shop(ACME)))
    assert status != 0
    assert "shop: the certificate is temporary; run site.yml to issue one or to see why that fails" in output
    expect_success(deploy("shop", ALL, tmp_path, shop(ACME)))
    expect_success(run_playbook("playbooks/status.yml", ALL, *extra(tmp_path, shop(ACME))))


def test_a_self_signed_certificate_takes_the_place_of_another_provider_s(
    both: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    with watched(both, by_https):
        expect_success(deploy("shop", ALL, tmp_path, shop({"provider": "self_signed"})))
    for host, one in both.items():
        certificate = site(one, name(host)).certificate()
        assert certificate.issuer == certificate.subject
        assert names(certificate) == {name(host)}
        assert one.run("ls /etc/letsencrypt/renewal").stdout == "", "what is not served is not renewed"
    output = expect_success(run_site(ALL, tmp_path, shop({"provider": "self_signed"})))
    assert output.count("changed=0") == len(issued), output[-500:]


@pytest.fixture(scope="module")
def own() -> Authority:
    return Authority("own", datetime.now(UTC))


def test_own_files_are_served_and_the_key_is_roots(both: dict[str, Host], own: Authority, tmp_path: Path) -> None:
    between = own.authority("between")
    (tmp_path / "own.pem").write_text(own.pem)
    tls = between.leaf("*.edge.test").write(tmp_path, between.pem)
    output = expect_success(deploy("shop", ALL, tmp_path, shop(tls), "-vvv", "--diff"))
    assert "PRIVATE KEY" not in output
    assert (tmp_path / "key.pem").read_text().splitlines()[1] not in output
    for host, one in both.items():
        assert site(one, name(host), tmp_path / "own.pem").get("/healthz").status == 200
        assert one.check_output("stat --format '%a %U' /etc/ssl/funnel/app.shop.key") == "600 root"
        assert one.run("runuser -u www-data -- cat /etc/ssl/funnel/app.shop.key").rc != 0


@pytest.mark.parametrize("mistake", ["another key", "expired", "other names", "readable key", "no chain"])
def test_own_files_with_mistakes_are_refused_before_anything_changes(own: Authority, tmp_path: Path, mistake: str) -> None:
    right, chain = own.leaf("*.edge.test"), ""
    expected = {
        "another key": "tornado_apps.shop.tls.key: {key} does not match the certificate (CN=*.edge.test)",
        "expired": "tornado_apps.shop.tls.certificate: {certificate} certificate 1 in it (CN=*.edge.test) expired at ",
        "other names": "tornado_apps.shop.tls.certificate: {certificate} does not cover shop-debian12.edge.test; it covers other",
        "readable key": "tornado_apps.shop.tls.key: {key} is readable by other users (mode 0644); chmod 600 or use Ansible Vault",
        "no chain": "tornado_apps.shop.tls.certificate: {certificate} certificate 1 in it is issued by CN=own,",
    }[mistake]
    if mistake == "expired":
        right = own.leaf("*.edge.test", days=(-90, -1))
    if mistake == "other names":
        right = own.leaf("other.test")
    if mistake == "no chain":
        chain = Authority("stranger", datetime.now(UTC)).pem
    tls = right.write(tmp_path, chain)
    if mistake == "another key":
        Path(tls["key"]).write_text(own.key_pem)
    if mistake == "readable key":
        Path(tls["key"]).chmod(0o644)
    output = refused(tmp_path, shop(tls))
    assert expected.format(**tls) in output
    assert output.count("changed=0") == 2


def test_a_certificate_that_nginx_does_not_take_is_put_back(both: dict[str, Host], tmp_path: Path) -> None:
    expect_success(deploy("shop", ALL, tmp_path, shop({"provider": "self_signed"})))
    before = serials(both)
    with broken(both):
        output = refused(tmp_path, shop({"provider": "self_signed"}, NAME, WWW))
    assert 'unknown directive "no_such_directive"' in output
    assert "The previous certificates were restored" in output
    assert serials(both) == before


def test_testssl_finds_nothing_of_medium_or_worse_but_compression(both: dict[str, Host], own: Authority, tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_text(own.pem)
    tls = own.leaf("*.edge.test").write(tmp_path) | {"hsts": 31_536_000}
    expect_success(deploy("shop", ALL, tmp_path, shop(tls)))
    scans = {}
    for host, one in both.items():
        files = ["--ip", address(one), "--add-ca", str(tmp_path / "own.pem"), "--jsonfile", str(tmp_path / f"{host}.json")]
        command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", *files, f"https://{name(host)}"]
        scans[host] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for host, scan in scans.items():
        output, _ = scan.communicate(timeout=400)
        findings = {one["id"]: one for one in json.loads((tmp_path / f"{host}.json").read_text())}
        assert {findings[name]["severity"] for name in ("TLS1_2", "TLS1_3", "HSTS_time")} == {"OK"}, output
        bad = {name for name, one in findings.items() if one["severity"] in {"MEDIUM", "HIGH", "CRITICAL"}}
        assert bad == {"BREACH"}, output  # answers are compressed over HTTPS, too: docs/decisions.md
