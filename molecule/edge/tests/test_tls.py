"""Certificates of every provider in runs of the playbooks, which must not interrupt what is served; see also test_acme.py."""

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

from tests.support.pki import Authority
from tests.support.remote import (
    APP_GROUP,
    Site,
    address,
    apps,
    deploy,
    expect_success,
    extra_vars,
    hosts,
    run_playbook,
    run_site,
)

#: ACME servers: one accepts every account, one is down.
OPEN = {"certificates_acme_directory": "https://acme:14000/dir"}
DOWN = {"certificates_acme_directory": "https://acme:14002/dir"}

#: Domains that resolve to the host in their name.
NAME = "shop-{{ inventory_hostname }}.edge.test"
WWW = "www-{{ inventory_hostname }}.edge.test"

ACME = {"provider": "acme"}


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
def acme(app_hosts: dict[str, Host]) -> Iterator[Host]:
    """Add the domains to the DNS of the ACME servers and to the hosts; remove the app after the module."""
    server = hosts("acme")["acme"]
    records = {name(host, template): address(target) for host, target in app_hosts.items() for template in (NAME, WWW)}
    for domain, target in records.items():
        entry = json.dumps({"host": domain, "addresses": [target]}).encode()
        urllib.request.urlopen(f"http://{address(server)}:8055/add-a", entry, timeout=10).close()
    lines = "\n".join(f"{target} {domain}" for domain, target in records.items())
    for host in app_hosts.values():
        host.run_expect([0], f"printf '%s\n' '{lines}' >> /etc/hosts")
    yield server
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


def status_of(directory: Path) -> tuple[int, str]:
    return run_playbook(
        "playbooks/status.yml", APP_GROUP, "-e", f"json={directory}/status.json", *extra_vars(directory, shop(ACME))
    )


def test_check_mode_reports_certificates_without_issuing(app_hosts: dict[str, Host], tmp_path: Path) -> None:
    host = min(app_hosts)
    output = expect_success(run_site(host, tmp_path, shop(ACME), "--check", "--diff"))
    assert f"+shop: {name(host)}, temporary" in output
    assert f"+shop: {name(host)}, issued by https://acme:14000/dir" in output
    assert app_hosts[host].run("ls /etc/ssl/funnel/app.shop*").stdout == ""


def test_temporary_certificate_is_served_until_the_first_is_issued(app_hosts: dict[str, Host], ca: Path, tmp_path: Path) -> None:
    output = deploy_rejected(tmp_path, shop(ACME, server=DOWN))
    report = output[output.index("not all certificates were issued:") :]
    for host in app_hosts:
        assert f"{host}: tornado_apps.shop.tls: no certificate was issued; the previous one stays in use:" in report
    for host, machine in app_hosts.items():
        assert site(machine, name(host)).get("/healthz").status == 200
        assert names(site(machine, name(host)).certificate()) == {name(host)}
    status, output = status_of(tmp_path)
    assert status != 0
    assert re.search("shop: the certificate is temporary; the attempt of .* UTC failed: ", output)

    with monitor(app_hosts, fetch_http), monitor(app_hosts, fetch_https):
        expect_success(run_site(APP_GROUP, tmp_path, shop(ACME)))
    for host, machine in app_hosts.items():
        assert site(machine, name(host), ca).get("/healthz").status == 200
    assert re.search(r"shop +acme +CN=Pebble Intermediate", expect_success(status_of(tmp_path)))
    found = json.loads((tmp_path / "status.json").read_text())["hosts"]
    assert {host: machine["certificates"][0]["names"] for host, machine in found.items()} == {
        host: [name(host)] for host in app_hosts
    }


def test_second_run_changes_nothing_and_does_not_contact_the_ca(acme: Host, app_hosts: dict[str, Host], tmp_path: Path) -> None:
    lines = "journalctl --unit pebble@14000 | wc -l"
    before = acme.check_output(lines)
    output = expect_success(run_site(APP_GROUP, tmp_path, shop(ACME)))
    assert output.count("changed=0") == len(app_hosts), output[-500:]
    assert acme.check_output(lines) == before


def test_changed_domains_get_a_new_certificate(app_hosts: dict[str, Host], ca: Path, tmp_path: Path) -> None:
    before = serials(app_hosts)
    with monitor(app_hosts, fetch_https):
        expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME, NAME, WWW)))
    for host, machine in app_hosts.items():
        assert site(machine, name(host, WWW), ca).get("/healthz").status == 200
        assert names(site(machine, name(host)).certificate()) == {name(host), name(host, WWW)}
    assert serials(app_hosts).items().isdisjoint(before.items())
    output = expect_success(deploy("shop", APP_GROUP, tmp_path, shop(ACME, NAME, WWW)))
    assert output.count("changed=0") == len(app_hosts), output[-500:]


def test_self_signed_certificate_replaces_that_of_another_provider(app_hosts: dict[str, Host], tmp_path: Path) -> None:
    with monitor(app_hosts, fetch_https):
        expect_success(deploy("shop", APP_GROUP, tmp_path, shop({"provider": "self_signed"})))
    for host, machine in app_hosts.items():
        certificate = site(machine, name(host)).certificate()
        assert certificate.issuer == certificate.subject
        assert names(certificate) == {name(host)}
        assert machine.run("ls /etc/letsencrypt/renewal").stdout == "", "certbot must not renew an unused certificate"


@pytest.fixture(scope="module")
def own() -> Authority:
    return Authority("own", datetime.now(UTC))


@pytest.fixture(scope="module")
def root(own: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the authority of `own`."""
    file = tmp_path_factory.mktemp("root") / "own.pem"
    file.write_text(own.pem)
    return file


def test_own_certificate_is_served_and_its_key_is_readable_by_root_only(
    app_hosts: dict[str, Host], own: Authority, root: Path, tmp_path: Path
) -> None:
    intermediate = own.authority("intermediate")
    tls = intermediate.leaf("*.edge.test").write(tmp_path, intermediate.pem) | {"hsts": 31_536_000}
    output = expect_success(deploy("shop", APP_GROUP, tmp_path, shop(tls), "-vvv", "--diff"))
    assert "PRIVATE KEY" not in output
    assert (tmp_path / "key.pem").read_text().splitlines()[1] not in output
    for host, machine in app_hosts.items():
        assert site(machine, name(host), root).get("/healthz").status == 200
        assert machine.check_output("stat --format '%a %U' /etc/ssl/funnel/app.shop.key") == "600 root"
        assert machine.run("runuser -u www-data -- cat /etc/ssl/funnel/app.shop.key").rc != 0


def test_testssl_reports_only_the_accepted_compression(app_hosts: dict[str, Host], root: Path, tmp_path: Path) -> None:
    """Scan the own certificate of the test before, without the simulation of clients, which takes most of the time."""
    scans = {}
    for host, machine in app_hosts.items():
        files = ["--ip", address(machine), "--add-ca", str(root), "--jsonfile", str(tmp_path / f"{host}.json")]
        checks = ["--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--headers", "--vulnerable"]
        command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", *files, *checks, f"https://{name(host)}"]
        scans[host] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for host, scan in scans.items():
        output, _ = scan.communicate(timeout=400)
        findings = {finding["id"]: finding for finding in json.loads((tmp_path / f"{host}.json").read_text())}
        assert {findings[name]["severity"] for name in ("TLS1_2", "TLS1_3", "HSTS_time")} == {"OK"}, output
        bad = {name for name, finding in findings.items() if finding["severity"] in {"MEDIUM", "HIGH", "CRITICAL"}}
        assert bad == {"BREACH"}, output  # responses are compressed over HTTPS: docs/decisions.md


def test_invalid_own_certificates_are_rejected_before_any_change(own: Authority, tmp_path: Path) -> None:
    """Deploy apps with a mistake each; the unit tests have all kinds of mistakes."""
    expired, readable = own.leaf("*.edge.test", days=(-90, -1)), own.leaf("*.edge.test")
    entries = apps()
    for number, leaf in {"expired": expired, "readable": readable}.items():
        (tmp_path / number).mkdir()
        entry = {"processes": 1, "domains": [f"{number}.edge.test"], "tls": leaf.write(tmp_path / number)}
        entries["tornado_apps"][number] = entries["tornado_apps"]["sample"] | entry
    (tmp_path / "readable/key.pem").chmod(0o644)
    status, output = deploy("expired,readable", APP_GROUP, tmp_path, entries)
    output = re.sub(r"\s+", " ", output)
    assert status != 0
    assert (
        f"tornado_apps.expired.tls.certificate: {tmp_path}/expired/chain.pem certificate 1 in it (CN=*.edge.test) expired at "
        in output
    )
    assert f"tornado_apps.readable.tls.key: {tmp_path}/readable/key.pem is readable by other users (mode 0644)" in output
    assert output.count("changed=0") == 2
