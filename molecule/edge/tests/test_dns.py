"""Certificates validated by DNS: a wildcard that two apps share, from an authoritative name server that takes signed updates."""

from __future__ import annotations

import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.support.remote import APP_GROUP, Site, address, apps, deploy, expect_success, extra_vars, hosts, run_playbook

ZONE = "wild.test"
SECRET, WRONG_SECRET = "c2VjcmV0LW9mLXRoZS1ob3N0cw==", "bm90LXRoZS1zZWNyZXQtb2YtdGhlLWhvc3Rz"

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
zone:
  - domain: {ZONE}
    storage: /var/lib/knot
    file: {ZONE}.zone
    acl: updates
"""

#: Starts the name server, and an ACME server that queries it.
START = f"""set -e
apt-get install --yes --no-install-recommends knot > /dev/null
printf '%s' '{KNOT}' > /etc/knot/knot.conf
printf '%s\\n' '@ 60 SOA ns admin 1 60 60 60 60' '@ 60 NS ns' 'ns 60 A 127.0.0.1' > /var/lib/knot/{ZONE}.zone
chown knot: /var/lib/knot/{ZONE}.zone
systemctl restart knot
sed 's/14000/14004/; s/15000/15004/' /etc/pebble-14000.json > /etc/pebble-14004.json
systemd-run --unit=pebble-knot --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 \\
    pebble -config /etc/pebble-14004.json -dnsserver 127.0.0.1:53
timeout 10 sh -c 'until ss -Hltn | grep -q :15004; do sleep 0.1; done'
"""


@pytest.fixture(scope="module")
def name_server() -> Iterator[Host]:
    """Run the servers; remove the apps after the module."""
    server = hosts("acme")["acme"]
    server.run_expect([0], "sh -c %s", START)
    yield server
    server.run_expect([0], "systemctl stop pebble-knot knot")
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", "app=first-wild,second-wild"))


@pytest.fixture(scope="module")
def root(name_server: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the root certificate of the ACME server."""
    file = tmp_path_factory.mktemp("root") / "root.pem"
    url = f"https://{address(name_server)}:15004/roots/0"
    with urllib.request.urlopen(url, timeout=10, context=ssl._create_unverified_context()) as response:
        file.write_bytes(response.read())
    return file


def variables(server: Host, secret: str) -> dict[str, Any]:
    """Return variables with two apps that share a wildcard."""
    credentials = {"server": address(server), "name": "funnel.", "secret": secret, "algorithm": "HMAC-SHA256"}
    entries = apps()
    for number in ("first", "second"):
        tls = {"provider": "acme", "challenge": "dns", "names": [f"*.{ZONE}"]}
        entry = {"processes": 1, "domains": [f"{number}.{ZONE}"], "tls": tls}
        entries["tornado_apps"][f"{number}-wild"] = entries["tornado_apps"]["sample"] | entry
    return entries | {
        "certificates_acme_directory": "https://acme:14004/dir",
        "certificates_acme_dns": {"plugin": "rfc2136", "credentials": credentials, "propagation": 1},
    }


def test_apps_share_a_wildcard_that_is_validated_by_dns(name_server: Host, root: Path, tmp_path: Path) -> None:
    names = "first-wild,second-wild"
    status, output = deploy(names, APP_GROUP, tmp_path, variables(name_server, WRONG_SECRET), "-vvv", "--diff")
    assert status != 0
    message = re.sub(r"\s+", " ", output)
    assert "tornado_apps.first-wild.tls: no certificate was issued; the previous one stays in use:" in message
    assert "To fix: correct the credentials in certificates_acme_dns" in message
    assert WRONG_SECRET not in output
    for host in hosts().values():
        assert Site(address(host), f"first.{ZONE}", https=True).get("/healthz").status == 200, "the temporary one"

    output = expect_success(deploy(names, APP_GROUP, tmp_path, variables(name_server, SECRET), "-vvv", "--diff"))
    assert SECRET not in output
    for host in hosts().values():
        sites = [Site(address(host), f"{number}.{ZONE}", https=True, ca=root) for number in ("first", "second")]
        assert [site.get("/healthz").status for site in sites] == [200, 200]
        assert len({site.certificate().serial_number for site in sites}) == 1
        assert host.check_output("stat --format='%a %U' /etc/letsencrypt/funnel/app.rfc2136.ini") == "600 root"
    expect_success(run_playbook("playbooks/status.yml", APP_GROUP, *extra_vars(tmp_path, variables(name_server, SECRET))))
    output = expect_success(deploy(names, APP_GROUP, tmp_path, variables(name_server, SECRET)))
    assert output.count("changed=0") == len(hosts()), output[-500:]


@pytest.mark.usefixtures("name_server")
def test_wildcard_is_renewed_without_the_controller() -> None:
    for host in hosts().values():
        (name,) = host.check_output("ls /etc/letsencrypt/renewal | grep any-wild-test").split()
        site = Site(address(host), f"first.{ZONE}", https=True)
        before = site.certificate().serial_number
        host.run_expect([0], f"sed -i '1i renew_before_expiry = 9000 days' /etc/letsencrypt/renewal/{name}")
        host.run_expect([0], "systemctl start certbot.service")
        host.run_expect([0], f"sed -i 1d /etc/letsencrypt/renewal/{name}")
        assert site.certificate().serial_number != before
