"""ACME certificates at the load balancers: renewal and failover under load, and a load balancer that loses its certificate.

The modules run in the order of their names: this one after the move of TLS to the load balancers, and before the first reboot of
the ACME server's host, after which that server knows no account.
"""

from __future__ import annotations

from testinfra.host import Host

from tests.support.fleet import NAME, Clients, Fleet
from tests.support.remote import Site, address, eventually, expect_success, run_playbook

#: Renews the certificate now, without the controller, as certbot.timer does.
RENEW = """
configuration=/etc/letsencrypt/renewal/certificates.sample.conf
sed -i '1i renew_before_expiry = 9000 days' $configuration && systemctl start certbot.service && sed -i 1d $configuration
"""

#: Removes the certificate, as if the host was replaced by a new one; HAProxy still serves it until it is reloaded.
FORGET = "certbot delete --non-interactive --cert-name certificates.sample && rm /etc/ssl/funnel/* /etc/letsencrypt/funnel/*"


def serials(fleet: Fleet) -> dict[str, int]:
    """Return the serial number of the certificate that each load balancer serves."""
    sites = {name: Site(address(host), NAME, https=True) for name, host in fleet.balancers.items()}
    return {name: site.certificate().serial_number for name, site in sites.items()}


def is_issued(host: Host) -> bool:
    return "Pebble" in host.check_output("openssl x509 -noout -issuer -in /etc/ssl/funnel/certificates.sample.pem")


def test_both_load_balancers_renew_while_clients_connect_and_one_fails_over(fleet: Fleet, clients: Clients) -> None:
    before = serials(fleet)
    assert len(set(before.values())) == len(before), "each load balancer has its own certificate"
    active, standby = fleet.active(), fleet.standby()
    with clients("renewal at both load balancers", websockets_break=True):
        for name in (standby, active):  # the challenge of the standby arrives at the active one
            fleet.balancers[name].run_expect([0], RENEW)
        eventually(lambda: serials(fleet).items().isdisjoint(before.items()))
        renewed = serials(fleet)
        expect_success(run_playbook("playbooks/reboot.yml", active, seconds=600))
        assert fleet.active() == standby
        fleet.balancers[active].run_expect([0], RENEW)
    assert serials(fleet)[standby] == renewed[standby]
    assert serials(fleet)[active] != renewed[active]


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
