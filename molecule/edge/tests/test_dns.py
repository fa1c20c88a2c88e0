"""Certificates validated by DNS: a wildcard that two apps share on Debian, one on Ubuntu, and faults of the name servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.acme import fetch_roots
from tests.support.certificates import Order, Outcome
from tests.support.remote import Site, address, apps, copy_code, deploy, expect_success, extra_vars, hosts, run_playbook

ZONE = "wild.test"
SECRET, WRONG_SECRET = "c2VjcmV0LW9mLXRoZS1ob3N0cw==", "bm90LXRoZS1zZWNyZXQtb2YtdGhlLWhvc3Rz"

#: The external account, which the ACME server requires.
KEY_ID, HMAC_KEY = "funnel", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

#: The app host. The host of the servers runs Ubuntu, and gets a certificate, too.
DEBIAN, UBUNTU = "debian12", "acme"

#: The servers: one whose validation queries the primary name server, and one that queries the secondary.
PRIMARY, SECONDARY = "https://acme:14004/dir", "https://acme:14006/dir"

KNOT = f"""
server:
    listen: 0.0.0.0@53
key:
  - id: funnel
    algorithm: hmac-sha256
    secret: {SECRET}
acl:
  - id: updates
    key: funnel
    action: update
  - id: transfers
    address: 127.0.0.1
    action: transfer
zone:
  - domain: {ZONE}
    storage: /var/lib/knot
    file: {ZONE}.zone
    acl: [updates, transfers]
"""

#: A secondary name server that nobody notifies: it has a new record when a test has it refresh the zone.
KNOT_SECONDARY = f"""
server:
    listen: 127.0.0.1@54
    rundir: /run/knot-secondary
database:
    storage: /run/knot-secondary
remote:
  - id: primary
    address: 127.0.0.1@53
zone:
  - domain: {ZONE}
    storage: /run/knot-secondary
    master: primary
"""
REFRESH = f"knotc --config /etc/knot/secondary.conf zone-refresh {ZONE}"

#: Starts the name servers, and ACME servers that query one of them each.
START = f"""set -e
apt-get install --yes --no-install-recommends knot certbot python3-certbot-dns-rfc2136 > /dev/null
printf '%s' '{KNOT}' > /etc/knot/knot.conf
printf '%s' '{KNOT_SECONDARY}' > /etc/knot/secondary.conf
printf '%s\\n' '@ 60 SOA ns admin 1 3600 3600 86400 60' '@ 60 NS ns' 'ns 60 A 127.0.0.1' > /var/lib/knot/{ZONE}.zone
chown knot: /var/lib/knot/{ZONE}.zone
systemctl restart knot
systemd-run --unit=knot-secondary --property=RuntimeDirectory=knot-secondary knotd --config /etc/knot/secondary.conf
for server in 14004:53 14006:54; do
    port=${{server%:*}}
    sed "s/14001/$port/; s/15001/1500${{port#1400}}/" /etc/pebble-14001.json > /etc/pebble-$port.json
    systemd-run --unit=pebble-$port --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 \\
        pebble -config /etc/pebble-$port.json -dnsserver 127.0.0.1:${{server#*:}}
done
timeout 60 sh -c 'until ss -Hltn | grep -q :15004 && ss -Hltn | grep -q :15006; do sleep 0.1; done'
"""


def credentials(server: Host, secret: str, propagation: int = 1) -> dict[str, Any]:
    """Return how the hosts set records."""
    account = {"server": address(server), "name": "funnel.", "secret": secret, "algorithm": "HMAC-SHA256"}
    return {"plugin": "rfc2136", "credentials": account, "propagation": propagation}


@pytest.fixture(scope="module")
def name_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Run the servers; remove the apps after the module."""
    server = hosts(UBUNTU)[UBUNTU]
    server.run_expect([0], "sh -c %s", START)
    for name in (DEBIAN, UBUNTU):
        copy_code(name, tmp_path_factory.mktemp("code"))
    yield server
    server.run_expect([0], "systemctl stop pebble-14004 pebble-14006 knot-secondary knot")
    expect_success(run_playbook("playbooks/remove.yml", DEBIAN, "-e", "app=first-wild,second-wild"))
    assert hosts(DEBIAN)[DEBIAN].run("ls -d /etc/ssl/funnel/*wild* /etc/letsencrypt/*/*wild*").stdout == ""


@pytest.fixture(scope="module")
def debian() -> Host:
    return hosts(DEBIAN)[DEBIAN]


@pytest.fixture(scope="module")
def order(name_server: Host) -> Order:
    """Return an order for the wildcard; the first one of a host also creates its account."""
    dns = credentials(name_server, SECRET)
    return Order(domains=(f"*.{ZONE}",), server=PRIMARY, eab_key_id=KEY_ID, eab_hmac_key=HMAC_KEY, dns=dns)


@pytest.fixture(scope="module")
def root(name_server: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the root certificate of the ACME server."""
    return fetch_roots(address(name_server), tmp_path_factory.mktemp("root"), (15004,))


def wild_apps() -> dict[str, Any]:
    """Return the variables with two apps that share a wildcard."""
    entries = apps()
    for number in ("first", "second"):
        tls = {"provider": "acme", "challenge": "dns", "names": [f"*.{ZONE}"]}
        entry = {"processes": 1, "domains": [f"{number}.{ZONE}"], "tls": tls}
        entries["tornado_apps"][f"{number}-wild"] = entries["tornado_apps"]["sample"] | entry
    return entries


def certificate_name(host: Host) -> str:
    """Return the name of the certificate that the apps share."""
    (name,) = host.check_output("ls /etc/letsencrypt/renewal | grep any-wild-test").split()
    return name.removeprefix("app.").removesuffix(".conf")


def serial(host: Host, name: str) -> str:
    return host.check_output(f"openssl x509 -noout -serial -in /etc/ssl/funnel/app.{name}.pem")


def test_apps_share_a_wildcard_that_is_validated_by_dns(name_server: Host, debian: Host, root: Path, tmp_path: Path) -> None:
    entries = wild_apps()
    entries |= {"certificates_acme_directory": PRIMARY, "certificates_acme_dns": credentials(name_server, SECRET)}
    entries |= {"certificates_acme_eab_key_id": KEY_ID, "certificates_acme_eab_hmac_key": HMAC_KEY}
    output = expect_success(deploy("first-wild,second-wild", DEBIAN, tmp_path, entries, "-vvv", "--diff"))
    assert SECRET not in output
    assert HMAC_KEY not in output
    sites = [Site(address(debian), f"{number}.{ZONE}", https=True, ca=root) for number in ("first", "second")]
    assert [site.get("/healthz").status for site in sites] == [200, 200]
    assert len({site.certificate().serial_number for site in sites}) == 1
    assert debian.check_output("stat --format='%a %U' /etc/letsencrypt/funnel/app.rfc2136.ini") == "600 root"
    assert debian.run(f"grep -rl {HMAC_KEY} /etc /var/log /var/lib /tmp /root").stdout == ""


def test_wildcard_is_issued_on_ubuntu_when_the_account_is_bound(name_server: Host, order: Order) -> None:
    assert "Ubuntu" in name_server.check_output("cat /etc/os-release")
    refused = replace(order, eab_key_id="", eab_hmac_key="").run(name_server, "wild")
    assert "Server requires external account binding. To fix: set certificates_acme_eab_key_id and certificates_" in refused.error
    issued = order.run(name_server, "wild")
    assert (issued.error, issued.problems) == ("", [])
    assert order.run(name_server, "wild") == Outcome("", "", [])


def test_wildcard_is_renewed_without_the_controller(name_server: Host, debian: Host) -> None:
    """The certificates are valid for six days, and due when half of that is left."""
    for host, name in ((debian, certificate_name(debian)), (name_server, "wild")):
        before, configuration = serial(host, name), f"/etc/letsencrypt/renewal/app.{name}.conf"
        host.run_expect(
            [0], f"grep --quiet '^renew_before_expiry = 7[12] hours' {configuration} && systemctl start certbot.service"
        )
        assert serial(host, name) == before
        host.run_expect([0], f"sed -i 's/^renew_before_expiry = 7[12]/renew_before_expiry = 145/' {configuration}")
        host.run_expect([0], "systemctl start certbot.service")
        host.run_expect([0], f"sed -i 's/^renew_before_expiry = 145/renew_before_expiry = 72/' {configuration}")
        assert serial(host, name) != before


@pytest.mark.parametrize("fault", ["wrong credentials", "slow name server"])
def test_fault_keeps_the_certificate_and_is_reported_until_it_is_mended(
    name_server: Host, debian: Host, order: Order, fault: str
) -> None:
    name, site = certificate_name(debian), Site(address(debian), f"first.{ZONE}", https=True)
    before = site.certificate().serial_number
    if fault == "wrong credentials":
        wanted = replace(order, domains=(*order.domains, ZONE))
        failing, message = (
            replace(wanted, dns=credentials(name_server, WRONG_SECRET)),
            "correct the credentials in certificates_acme_dns",
        )
        repair = "true"
    else:
        failing = replace(order, server=SECONDARY)
        wanted = replace(failing, dns=credentials(name_server, SECRET, propagation=5))
        message = "check that certificates_acme_dns sets records at the name servers of these names, and raise its propagation"
        repair = f"systemd-run sh -c 'for second in 1 2 3 4 5 6 7 8; do sleep 1; {REFRESH}; done'"
    found = failing.run(debian, name, "nginx")
    assert re.search(f"no certificate was issued; the previous one stays in use: .* To fix: {message}", found.error), found.error
    assert message in found.problems[0]
    assert WRONG_SECRET not in f"{found.error} {found.problems}"
    assert site.certificate().serial_number == before
    name_server.run_expect([0], repair)
    mended = wanted.run(debian, name, "nginx")
    assert (mended.error, mended.problems) == ("", [])
    assert site.certificate().serial_number != before


@pytest.mark.parametrize("terminating", ["app host", "load balancer"])
def test_plugin_that_the_distribution_lacks_is_refused_before_any_change(tmp_path: Path, terminating: str) -> None:
    if terminating == "app host":
        account = dict.fromkeys(("endpoint", "application_key", "application_secret", "consumer_key"), "x")
        limit, dns, options = "debian13", {"plugin": "ovh", "credentials": account}, []
    else:
        (tmp_path / "balancers.yml").write_text(f"balancers: {{hosts: {{{UBUNTU}: }}}}")
        options = ["-i", str(tmp_path / "balancers.yml")]
        limit, dns = f"{DEBIAN},{UBUNTU}", {"plugin": "gandi", "credentials": {"token": "x"}}
    entries = wild_apps() | {"certificates_acme_dns": dns}
    status, output = run_playbook("playbooks/check.yml", limit, *options, *extra_vars(tmp_path, entries))
    assert status != 0
    package = f"python3-certbot-dns-{dns['plugin']}"
    message = f"certificates_acme_dns.plugin: no package source of this host has {package}; choose another plugin"
    assert message in re.sub(r"\s+", " ", output)
