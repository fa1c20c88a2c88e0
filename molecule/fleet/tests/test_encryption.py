"""ACME certificates at the load balancers: renewal, failover and another domain under load, and lost power or certificates.

The modules run in the order of their names: this one after the move of TLS to the load balancers, for which the ACME server has
issued certificates since the last reboot of its host.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.support.acme import fetch_roots
from tests.support.fleet import NAME, Clients, Fleet, app_entry, power, power_off
from tests.support.remote import Site, address, deploy, eventually, expect_success, extra_vars, run_playbook

#: Renews the certificate now, without the controller, as certbot.timer does.
RENEW = """
configuration=/etc/letsencrypt/renewal/certificates.sample.conf
sed -i '1i renew_before_expiry = 9000 days' $configuration && systemctl start certbot.service && sed -i 1d $configuration
"""

#: Starts such a renewal, and repeats one that has failed.
CONFIGURATION = "/etc/letsencrypt/renewal/certificates.sample.conf"
START_RENEWAL = f"sed -i '1i renew_before_expiry = 9000 days' {CONFIGURATION} && systemctl start --no-block certbot.service"
WAIT_FOR_FAILURE = """
timeout 60 sh -c 'while systemctl is-active certbot.service | grep -q activating; do sleep 0.2; done'
systemctl is-failed certbot.service
"""
REPEAT_RENEWAL = f"systemctl start certbot.service && sed -i 1d {CONFIGURATION}"

#: Has challenges hang at a load balancer, and waits for one.
HOLD = "nft 'table inet hold { chain out { type filter hook output priority -10; tcp dport 402 drop; }; }'"
WAIT = """timeout 30 sh -c "until ss -Htn state syn-sent '( dport = :402 )' | grep -q .; do sleep 0.05; done" """

#: Removes the certificate, as if the host was replaced by a new one; HAProxy still serves it until it is reloaded.
FORGET = "certbot delete --non-interactive --cert-name certificates.sample && rm /etc/ssl/funnel/* /etc/letsencrypt/funnel/*"


@pytest.fixture(scope="module")
def roots(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the root certificate of the ACME server."""
    return fetch_roots(fleet.addresses["web3"], tmp_path_factory.mktemp("roots"))


def serials(fleet: Fleet, roots: Path) -> dict[str, int]:
    """Return the serial number of the valid certificate that each load balancer serves."""
    sites = {name: Site(address(host), NAME, https=True, ca=roots) for name, host in fleet.balancers.items()}
    return {name: site.certificate().serial_number for name, site in sites.items()}


def is_issued(host: Host) -> bool:
    return "Pebble" in host.check_output("openssl x509 -noout -issuer -in /etc/ssl/funnel/certificates.sample.pem")


def test_both_load_balancers_renew_while_clients_connect_and_one_fails_over(fleet: Fleet, clients: Clients, roots: Path) -> None:
    before = serials(fleet, roots)
    assert len(set(before.values())) == len(before), "each load balancer has its own certificate"
    active, standby = fleet.active(), fleet.standby()
    with clients("renewal at both load balancers"):
        with ThreadPoolExecutor() as executor:  # at once; the challenge of the standby arrives at the active one
            list(executor.map(lambda host: host.run_expect([0], RENEW), fleet.balancers.values()))
        eventually(lambda: serials(fleet, roots).items().isdisjoint(before.items()))
        renewed = serials(fleet, roots)
    with clients("renewal after a failover", websockets_break=True):
        expect_success(run_playbook("playbooks/reboot.yml", active, seconds=600))
        assert fleet.active() == standby
        fleet.balancers[active].run_expect([0], RENEW)
    assert serials(fleet, roots)[standby] == renewed[standby]
    assert serials(fleet, roots)[active] != renewed[active]


def test_active_load_balancer_loses_power_during_the_challenge_of_the_other(fleet: Fleet, clients: Clients, roots: Path) -> None:
    name, standby = fleet.active(), fleet.standby()
    before = serials(fleet, roots)[standby]

    def lose_power() -> float:
        fleet.balancers[name].run_expect([0], HOLD)
        fleet.balancers[standby].run_expect([0], START_RENEWAL)
        fleet.balancers[name].run_expect([0], WAIT)
        return power_off(name)

    with clients("active balancer loses power") as traffic:
        traffic.inject(lose_power)
        site = Site(fleet.addresses[standby], NAME, https=True, ca=roots)
        assert site.certificate().serial_number == before
    fleet.balancers[standby].run_expect([0], WAIT_FOR_FAILURE)
    status, output = run_playbook("playbooks/status.yml", standby)
    assert status != 0
    assert "its renewal failed: " in re.sub(r"\s+", " ", output), output
    with clients("balancer is back"):
        fleet.balancers[standby].run_expect([0], REPEAT_RENEWAL)
        assert site.certificate().serial_number != before
        power("up", name)
        eventually(fleet.is_healthy, 60)
        assert fleet.active() == standby, "the floating IP must not move back, which would close connections"


def test_replaced_load_balancer_gets_its_certificate_before_the_floating_ip(fleet: Fleet, clients: Clients) -> None:
    standby = fleet.standby()
    host = fleet.balancers[standby]
    host.run_expect([0], f"systemctl stop keepalived && {FORGET}")
    with clients("load balancer replaced"):
        expect_success(run_playbook("playbooks/balancers.yml", "all"))
    assert is_issued(host)
    issued_at = float(host.check_output("stat --format=%Y /etc/ssl/funnel/certificates.sample.pem"))
    started = host.check_output("systemctl show --value --property=ActiveEnterTimestamp keepalived")
    assert float(host.check_output(f"date --date='{started}' +%s")) >= issued_at


def test_deploy_that_changes_domains_changes_the_load_balancers(fleet: Fleet, clients: Clients, tmp_path: Path) -> None:
    changed = app_entry(domains=["new.test", NAME])
    down = {"certificates_acme_directory": "https://localhost:14002/dir"}
    with clients("another first domain"):
        status, output = deploy("sample", "all", tmp_path, changed | down)
        report = re.sub(r"\s+", " ", output[output.index("not all certificates were issued:") :])
        assert status != 0
        for name in fleet.balancers:
            assert f"{name}: tornado_apps.sample.tls: no certificate was issued; the previous one stays in use:" in report
        expect_success(run_playbook("playbooks/balancers.yml", "all", *extra_vars(tmp_path, changed)))
    for host in fleet.balancers.values():
        assert Site(address(host), "new.test").get("/whoami").status == 200
    with clients("the former first domain"):
        expect_success(deploy("sample", "all", tmp_path, app_entry()))
