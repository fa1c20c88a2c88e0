"""Certificates of every provider: issue, renewal, rejection, and availability during each."""

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
    APP_GROUP,
    Site,
    address,
    apps,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    hosts,
    run_playbook,
    run_site,
)

#: ACME servers: one accepts every account, one requires this external account binding, one is down.
OPEN = {"certificates_acme_directory": "https://acme:14000/dir"}
BOUND = {"certificates_acme_directory": "https://acme:14001/dir"}
KEY_ID, HMAC_KEY = "funnel", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
DOWN = {"certificates_acme_directory": "https://acme:14002/dir"}

#: Domains that resolve to the host in their name.
NAME = "shop-{{ inventory_hostname }}.edge.test"
WWW = "www-{{ inventory_hostname }}.edge.test"
#: A domain that resolves to a host without a server on port 80.
MISDIRECTED = "misdirected-{{ inventory_hostname }}.edge.test"

ACME = {"provider": "acme"}

#: An ACME server that refuses every request with the status, the type and the message of its arguments, which pebble cannot.
REFUSING = """
import http.server, json, ssl, sys
port, refusal, kind, detail = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status=200, **body):
        self.send_response(status)
        self.send_header("Replay-Nonce", "bm9uY2U")
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        if status == 429:
            self.send_header("Retry-After", "7200")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        self.answer(**{name: f"https://acme:{port}/{name}" for name in ("newNonce", "newAccount", "newOrder")})
    do_HEAD = do_GET
    def do_POST(self):
        self.answer(int(refusal), type="urn:ietf:params:acme:error:" + kind, detail=detail)
server = http.server.HTTPServer(("", int(port)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/ssl/pebble.pem", "/etc/ssl/private/acme.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def name(host: str, template: str = NAME) -> str:
    return template.replace("{{ inventory_hostname }}", host)


def shop(tls: dict[str, Any], *domains: str, server: dict[str, str] = OPEN) -> dict[str, Any]:
    """Return variables with an additional app that uses ``tls``."""
    entry = {"processes": 1, "domains": list(domains or [NAME]), "tls": tls}
    entries = apps(shop=entry)
    entries["tornado_apps"]["shop"] = entries["tornado_apps"]["sample"] | entry
    return entries | server


@pytest.fixture(scope="module")
def app_hosts() -> dict[str, Host]:
    return hosts()


@pytest.fixture(scope="module", autouse=True)
def acme(app_hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Add the domains to the DNS of the ACME servers and to the hosts, start without the app, and remove it after the module."""
    directory = tmp_path_factory.mktemp("apps")
    server = hosts("acme")["acme"]
    records = {name(host, template): address(target) for host, target in app_hosts.items() for template in (NAME, WWW)}
    records |= {name(host, MISDIRECTED): address(server) for host in app_hosts}
    for domain, target in records.items():
        entry = json.dumps({"host": domain, "addresses": [target]}).encode()
        urllib.request.urlopen(f"http://{address(server)}:8055/add-a", entry, timeout=10).close()
    lines = "\n".join(f"{target} {domain}" for domain, target in records.items())
    for host in app_hosts.values():
        host.run_expect([0], f"printf '%s\n' '{lines}' >> /etc/hosts")
    expect_success(run_site(APP_GROUP, directory, {}))
    yield server
    expect_success(deploy("sample", APP_GROUP, directory, {}))
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=shop"))
    for host in app_hosts.values():
        left = ("ssl/funnel", "letsencrypt/renewal", "letsencrypt/renewal-hooks/deploy", "letsencrypt/funnel")
        assert host.run(f"cd /etc && ls {' '.join(f'{directory}/*' for directory in left)}").stdout == ""


def site(host: Host, domain: str, ca: Path | None = None) -> Site:
    return Site(address(host), domain, https=True, ca=ca)


def names(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value.get_values_for_type(x509.DNSName))


def serials(app_hosts: dict[str, Host]) -> dict[str, int]:
    """Return the serial numbers of the served certificates by host."""
    return {host: site(machine, name(host)).certificate().serial_number for host, machine in app_hosts.items()}


def deploy_rejected(directory: Path, variables: dict[str, Any], *options: str) -> str:
    """Deploy to both hosts, expect a failure, and return the output with plain whitespace and quotes."""
    status, output = deploy("shop", APP_GROUP, directory, variables, *options)
    assert status != 0, output
    return re.sub(r"\s+", " ", output.replace("''", "'").replace("\\'", "'"))


@contextmanager
def monitor(app_hosts: dict[str, Host], fetch: Callable[[str, Host], int]) -> Iterator[None]:
    """Send requests to each host continuously and verify that every response is 200."""
    stop = threading.Event()
    found: dict[str, list[object]] = {host: [] for host in app_hosts}

    def poll(host: str) -> None:
        while not stop.wait(0.05):
            try:
                found[host].append(fetch(host, app_hosts[host]))
            except (OSError, http.client.HTTPException) as error:
                found[host].append(error)

    with ThreadPoolExecutor(len(app_hosts)) as executor:
        futures = [executor.submit(poll, host) for host in app_hosts]
        try:
            yield
        finally:
            stop.set()
    for future in futures:
        future.result()
    for host, statuses in found.items():
        assert len(statuses) > 20
        assert set(statuses) == {200}, (host, statuses)


def fetch_http(_: str, host: Host) -> int:
    return Site(address(host)).get("/healthz").status


def fetch_https(host: str, machine: Host) -> int:
    return site(machine, name(host)).get("/healthz").status


@pytest.fixture
def issued(app_hosts: dict[str, Host], ca: Path, tmp_path: Path) -> dict[str, int]:
    """Deploy the app with a certificate of the ACME server; return the serial numbers by host."""
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME)))
    for host, machine in app_hosts.items():
        assert site(machine, name(host), ca).get("/healthz").status == 200
    return serials(app_hosts)


def test_check_mode_reports_certificates_without_issuing(app_hosts: dict[str, Host], tmp_path: Path) -> None:
    output = expect_success(run_site(APP_GROUP, tmp_path, shop(ACME), "--check", "--diff"))
    for host, machine in app_hosts.items():
        assert f"+shop: {name(host)}, temporary" in output
        assert f"+shop: {name(host)}, issued by https://acme:14000/dir" in output
        assert machine.run("ls /etc/ssl/funnel").stdout == ""


def test_first_certificate_is_issued_without_downtime(app_hosts: dict[str, Host], ca: Path, tmp_path: Path) -> None:
    with monitor(app_hosts, fetch_http):
        expect_success(run_site(APP_GROUP, tmp_path, shop(ACME)))
    for host, machine in app_hosts.items():
        assert site(machine, name(host), ca).get("/healthz").status == 200
        assert names(site(machine, name(host)).certificate()) == {name(host)}
    status = expect_success(
        run_playbook("playbooks/status.yml", APP_GROUP, "-e", f"json={tmp_path}/status.json", *extra_vars(tmp_path, shop(ACME)))
    )
    assert re.search(r"shop +acme +CN=Pebble Intermediate", status)
    found = json.loads((tmp_path / "status.json").read_text())["hosts"]
    assert {host: machine["certificates"][0]["names"] for host, machine in found.items()} == {
        host: [name(host)] for host in app_hosts
    }


def test_second_run_changes_nothing_and_does_not_contact_the_ca(acme: Host, issued: dict[str, int], tmp_path: Path) -> None:
    lines = "journalctl --unit pebble@14000 | wc -l"
    before = acme.check_output(lines)
    output = expect_success(run_site(APP_GROUP, tmp_path, shop(ACME)))
    assert output.count("changed=0") == len(issued), output[-500:]
    assert acme.check_output(lines) == before


def test_changed_domains_get_a_new_certificate(
    app_hosts: dict[str, Host], ca: Path, issued: dict[str, int], tmp_path: Path
) -> None:
    with monitor(app_hosts, fetch_https):
        expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME, NAME, WWW)))
    for host, machine in app_hosts.items():
        assert site(machine, name(host, WWW), ca).get("/healthz").status == 200
        assert names(site(machine, name(host)).certificate()) == {name(host), name(host, WWW)}
    assert serials(app_hosts).items().isdisjoint(issued.items())
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME)))
    output = expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME)))
    assert output.count("changed=0") == len(issued), output[-500:]


def test_renewed_certificate_is_served_without_closing_connections(
    app_hosts: dict[str, Host], ca: Path, issued: dict[str, int]
) -> None:
    workers = {host: machine.check_output("pgrep --full 'nginx: worker'") for host, machine in app_hosts.items()}
    for machine in app_hosts.values():
        machine.run_expect([0], "systemctl start certbot.service")
    assert {host: machine.check_output("pgrep --full 'nginx: worker'") for host, machine in app_hosts.items()} == workers, (
        "no reload without renewal"
    )
    assert serials(app_hosts) == issued

    for host, machine in app_hosts.items():

        async def talk(connection: WebSocketClientConnection, machine: Host = machine) -> list[object]:
            echoes: list[object] = []
            for text in ("before", "after"):
                await connection.write_message(text)
                echoes.append(await connection.read_message())
                if text == "before":
                    renew(machine)
            return echoes

        assert site(machine, name(host), ca).websocket("/ws", talk) == ["before", "after"]
    eventually(lambda: serials(app_hosts).items().isdisjoint(issued.items()))
    for host, machine in app_hosts.items():
        assert site(machine, name(host), ca).get("/healthz").status == 200


def renew(host: Host) -> None:
    """Force a renewal of the app's certificate by certbot's service."""
    host.run_expect([0], "sed -i '1i renew_before_expiry = 9000 days' /etc/letsencrypt/renewal/app.shop.conf")
    try:
        host.run_expect([0], "systemctl start certbot.service")
    finally:
        host.run_expect([0], "sed -i 1d /etc/letsencrypt/renewal/app.shop.conf")


def test_failed_reload_after_renewal_is_reported_until_it_succeeds(
    app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    status_command = ["playbooks/status.yml", APP_GROUP, *extra_vars(tmp_path, shop(ACME))]
    expect_success(run_playbook(*status_command))
    with broken_nginx(app_hosts):
        for machine in app_hosts.values():
            renew(machine)
        assert serials(app_hosts) == issued
        status, output = run_playbook(*status_command)
        assert status != 0
        assert output.count("shop: nginx still serves the previous certificate; nginx -t shows why") >= len(app_hosts)
        output = deploy_rejected(tmp_path, shop(ACME))
        assert 'unknown directive "no_such_directive"' in output
        assert "were restored" not in output
        assert "nginx: the previous certificates are served until a reload succeeds." in output
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME)))
    assert serials(app_hosts).items().isdisjoint(issued.items())
    expect_success(run_playbook(*status_command))


@contextmanager
def broken_nginx(app_hosts: dict[str, Host]) -> Iterator[None]:
    """Break the nginx configuration temporarily."""
    for machine in app_hosts.values():
        machine.run_expect([0], "echo 'no_such_directive on;' > /etc/nginx/conf.d/invalid.conf")
    try:
        yield
    finally:
        for machine in app_hosts.values():
            machine.run_expect([0], "rm /etc/nginx/conf.d/invalid.conf")


def test_stopped_renewal_timer_is_started(app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path) -> None:
    for machine in app_hosts.values():
        machine.run_expect([0], "systemctl disable --now certbot.timer")
    output = expect_success(run_site(APP_GROUP, tmp_path, shop(ACME), "--check", "--diff"))
    assert output.count("+certbot.timer") == len(issued)
    output = expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME)))
    assert output.count("changed=1") == len(issued), output[-500:]
    for machine in app_hosts.values():
        machine.run_expect([0], "systemctl is-enabled certbot.timer && systemctl is-active certbot.timer")


def test_name_that_does_not_reach_the_host_is_found_without_the_ca(
    acme: Host, app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    lines = "journalctl --unit pebble@14000 | wc -l"
    before = acme.check_output(lines)
    output = deploy_rejected(tmp_path, shop(ACME, NAME, MISDIRECTED, "no-such-name.edge.test"))
    for host in app_hosts:
        assert (
            f"{name(host, MISDIRECTED)} resolves to {address(acme)}, which does not answer on port 80: Connection refused; "
            "no-such-name.edge.test does not resolve; the ACME server was not asked." in output
        )
    assert acme.check_output(lines) == before
    status, output = run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(tmp_path, shop(ACME, NAME, MISDIRECTED)))
    assert status != 0
    assert re.search(r"shop: the certificate does not cover misdirected-\S+; the attempt of .* UTC failed: misdirected-", output)
    assert serials(app_hosts) == issued


def test_failed_validation_keeps_the_previous_certificate(
    app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    with monitor(app_hosts, fetch_https):
        unchecked = shop(ACME, NAME, MISDIRECTED) | {"certificates_acme_self_check": False}
        output = deploy_rejected(tmp_path, unchecked)
    for host in app_hosts:
        message = f"tornado_apps.shop.tls: no certificate was issued; the previous one stays in use: {name(host, MISDIRECTED)}: "
        assert message in output
        assert re.search(rf"{name(host, MISDIRECTED)}: [^;]*connection refused \(connection\)", output)
    assert "To fix: make these names resolve to this host and allow connections to its port 80" in output
    assert serials(app_hosts) == issued


def test_unavailable_ca_keeps_the_previous_certificate(
    app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    with monitor(app_hosts, fetch_https):
        output = deploy_rejected(tmp_path, shop(ACME, server=DOWN))
    assert "tornado_apps.shop.tls: no certificate was issued; the previous one stays in use:" in output
    assert (
        "Connection refused. To fix: set another certificates_acme_directory, or allow this host to connect to the server"
        in output
    )
    assert serials(app_hosts) == issued


def test_external_account_binding_is_reported_and_its_key_stays_secret(
    app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    for machine in app_hosts.values():
        machine.run_expect([0], "rm -rf /etc/letsencrypt/accounts/acme:14001")  # the account of an earlier run of this test
    output = deploy_rejected(tmp_path, shop(ACME, server=BOUND))
    assert "Server requires external account binding. To fix: set certificates_acme_eab_key_id and certificates_" in output
    account = {"certificates_acme_eab_key_id": KEY_ID, "certificates_acme_eab_hmac_key": HMAC_KEY}
    output = expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME, server=BOUND | account), "-vvv", "--diff"))
    assert HMAC_KEY not in output
    for machine in app_hosts.values():
        assert machine.run(f"grep -rl {HMAC_KEY} /etc /var/log /var/lib /tmp /root").stdout == ""
    assert serials(app_hosts).items().isdisjoint(issued.items())


@contextmanager
def refusing_server(acme: Host, port: int, status: int, kind: str, detail: str) -> Iterator[dict[str, str]]:
    """Run an ACME server that refuses every request; yield the variables that select it."""
    acme.run_expect([0], f"systemd-run --unit=refusing python3 -c %s {port} {status} {kind} '{detail}'", REFUSING)
    try:
        yield {"certificates_acme_directory": f"https://acme:{port}/dir"}
    finally:
        acme.run_expect([0], "systemctl stop refusing")


def test_rate_limit_of_the_ca_is_respected_by_later_runs(
    acme: Host, issued: dict[str, int], app_hosts: dict[str, Host], tmp_path: Path
) -> None:
    with refusing_server(acme, 14005, 429, "rateLimited", "too many certificates already issued") as server:
        output = deploy_rejected(tmp_path, shop(ACME, server=server))
    assert "too many certificates already issued" in output
    output = deploy_rejected(tmp_path, shop(ACME, server=server))
    assert output.count("UTC failed; the next attempt is possible after") >= len(app_hosts), "the server is down, but not asked"
    assert serials(app_hosts) == issued


def test_required_contact_address_is_reported(
    acme: Host, issued: dict[str, int], app_hosts: dict[str, Host], tmp_path: Path
) -> None:
    with refusing_server(acme, 14003, 400, "invalidContact", "An e-mail address is needed") as server:
        output = deploy_rejected(tmp_path, shop(ACME, server=server))
    assert output.count("To fix: set certificates_acme_email to an address that the server accepts") >= len(app_hosts)
    assert serials(app_hosts) == issued


def test_account_is_created_with_the_contact_address(app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path) -> None:
    for machine in app_hosts.values():
        machine.run_expect([0], "rm -rf /etc/letsencrypt/accounts/acme:14000")
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME, NAME, WWW) | {"certificates_acme_email": "admin@edge.test"}))
    assert serials(app_hosts).items().isdisjoint(issued.items())
    for machine in app_hosts.values():
        account = machine.check_output("certbot show_account --server https://acme:14000/dir")
        assert "Email contact: admin@edge.test" in account


def test_temporary_certificate_is_served_until_the_first_is_issued(app_hosts: dict[str, Host], tmp_path: Path) -> None:
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop({"provider": "off"})))
    for machine in app_hosts.values():
        assert machine.run("ls /etc/ssl/funnel /etc/letsencrypt/renewal").stdout.split() == [
            "/etc/letsencrypt/renewal:",
            "/etc/ssl/funnel:",
        ]
    deploy_rejected(tmp_path, shop(ACME, server=DOWN))
    for host, machine in app_hosts.items():
        assert site(machine, name(host)).get("/healthz").status == 200
        assert names(site(machine, name(host)).certificate()) == {name(host)}
    status, output = run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(tmp_path, shop(ACME)))
    assert status != 0
    assert "shop: the certificate is temporary; run site.yml to issue one or to see why that fails" in output
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME)))
    expect_success(run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(tmp_path, shop(ACME))))


def test_self_signed_certificate_replaces_that_of_another_provider(
    app_hosts: dict[str, Host], issued: dict[str, int], tmp_path: Path
) -> None:
    with monitor(app_hosts, fetch_https):
        expect_success(deploy("shop", APP_GROUP, tmp_path, shop({"provider": "self_signed"})))
    for host, machine in app_hosts.items():
        certificate = site(machine, name(host)).certificate()
        assert certificate.issuer == certificate.subject
        assert names(certificate) == {name(host)}
        assert machine.run("ls /etc/letsencrypt/renewal").stdout == "", "certbot must not renew an unused certificate"
    output = expect_success(run_site(APP_GROUP, tmp_path, shop({"provider": "self_signed"})))
    assert output.count("changed=0") == len(issued), output[-500:]


@pytest.fixture(scope="module")
def own() -> Authority:
    return Authority("own", datetime.now(UTC))


def test_own_certificate_is_served_and_its_key_is_readable_by_root_only(
    app_hosts: dict[str, Host], own: Authority, tmp_path: Path
) -> None:
    intermediate = own.authority("intermediate")
    (tmp_path / "own.pem").write_text(own.pem)
    tls = intermediate.leaf("*.edge.test").write(tmp_path, intermediate.pem)
    output = expect_success(deploy("shop", APP_GROUP, tmp_path, shop(tls), "-vvv", "--diff"))
    assert "PRIVATE KEY" not in output
    assert (tmp_path / "key.pem").read_text().splitlines()[1] not in output
    for host, machine in app_hosts.items():
        assert site(machine, name(host), tmp_path / "own.pem").get("/healthz").status == 200
        assert machine.check_output("stat --format '%a %U' /etc/ssl/funnel/app.shop.key") == "600 root"
        assert machine.run("runuser -u www-data -- cat /etc/ssl/funnel/app.shop.key").rc != 0


@pytest.mark.parametrize("mistake", ["another key", "expired", "other names", "readable key", "no chain"])
def test_invalid_own_certificates_are_rejected_before_any_change(own: Authority, tmp_path: Path, mistake: str) -> None:
    leaf, chain = own.leaf("*.edge.test"), ""
    expected = {
        "another key": "tornado_apps.shop.tls.key: {key} does not match the certificate (CN=*.edge.test)",
        "expired": "tornado_apps.shop.tls.certificate: {certificate} certificate 1 in it (CN=*.edge.test) expired at ",
        "other names": "tornado_apps.shop.tls.certificate: {certificate} does not cover shop-debian12.edge.test; it covers other",
        "readable key": "tornado_apps.shop.tls.key: {key} is readable by other users (mode 0644); chmod 600 or use Ansible Vault",
        "no chain": "tornado_apps.shop.tls.certificate: {certificate} certificate 1 in it is issued by CN=own,",
    }[mistake]
    if mistake == "expired":
        leaf = own.leaf("*.edge.test", days=(-90, -1))
    if mistake == "other names":
        leaf = own.leaf("other.test")
    if mistake == "no chain":
        chain = Authority("unrelated", datetime.now(UTC)).pem
    tls = leaf.write(tmp_path, chain)
    if mistake == "another key":
        Path(tls["key"]).write_text(own.key_pem)
    if mistake == "readable key":
        Path(tls["key"]).chmod(0o644)
    output = deploy_rejected(tmp_path, shop(tls))
    assert expected.format(**tls) in output
    assert output.count("changed=0") == 2


def test_previous_certificate_is_restored_if_nginx_rejects_the_new_one(app_hosts: dict[str, Host], tmp_path: Path) -> None:
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop({"provider": "self_signed"})))
    before = serials(app_hosts)
    with broken_nginx(app_hosts):
        output = deploy_rejected(tmp_path, shop({"provider": "self_signed"}, NAME, WWW))
    assert 'unknown directive "no_such_directive"' in output
    assert "The previous certificates were restored" in output
    assert serials(app_hosts) == before


def test_testssl_reports_only_the_accepted_compression(app_hosts: dict[str, Host], own: Authority, tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_text(own.pem)
    tls = own.leaf("*.edge.test").write(tmp_path) | {"hsts": 31_536_000}
    expect_success(deploy("shop", APP_GROUP, tmp_path, shop(tls)))
    scans = {}
    for host, machine in app_hosts.items():
        files = ["--ip", address(machine), "--add-ca", str(tmp_path / "own.pem"), "--jsonfile", str(tmp_path / f"{host}.json")]
        command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", *files, f"https://{name(host)}"]
        scans[host] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for host, scan in scans.items():
        output, _ = scan.communicate(timeout=400)
        findings = {finding["id"]: finding for finding in json.loads((tmp_path / f"{host}.json").read_text())}
        assert {findings[name]["severity"] for name in ("TLS1_2", "TLS1_3", "HSTS_time")} == {"OK"}, output
        bad = {name for name, finding in findings.items() if finding["severity"] in {"MEDIUM", "HIGH", "CRITICAL"}}
        assert bad == {"BREACH"}, output  # responses are compressed over HTTPS: docs/decisions.md
