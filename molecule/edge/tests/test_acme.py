"""Certificates of an ACME server: the first run on a bare host, renewal, and faults.

This module must run first, as the others change the hosts. After the first run, the code of the module certificates runs on both
hosts at once, whose versions of certbot differ.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from testinfra.host import Host
from tornado.websocket import WebSocketClientConnection

from tests.support.certificates import Order, Outcome
from tests.support.remote import APP_GROUP, Site, address, copy_code, eventually, expect_success, hosts, run_playbook

T = TypeVar("T")

APP = "first"

#: The names of the site, which the first run has on its certificate, and an order for fewer. Each replaces the other.
#: The last one resolves to both hosts, so the challenge of one of them reaches the other first.
NAMES = (*(f"{number}-HOST.edge.test" for number in ("first", "second", "third", "fourth")), "shared.edge.test")
ALL, FEWER = Order(domains=NAMES), Order(domains=NAMES[:-1])

#: Resolves to a host without a server on port 80.
MISDIRECTED = "misdirected-HOST.edge.test"

#: An ACME server that refuses accounts or orders with the status, the type and the message of its arguments.
REFUSING = """
import http.server, json, ssl, sys
port, refused, refusal, kind, detail = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status=200, /, **body):
        self.send_response(status)
        self.send_header("Replay-Nonce", "bm9uY2U")
        self.send_header("Location", f"https://acme:{port}/account")
        self.send_header("Content-Type", "application/json" if status < 300 else "application/problem+json")
        if status == 429:
            self.send_header("Retry-After", "7200")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        self.answer(**{name: f"https://acme:{port}/{name}" for name in ("newNonce", "newAccount", "newOrder")})
    do_HEAD = do_GET
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == refused:
            self.answer(int(refusal), type="urn:ietf:params:acme:error:" + kind, detail=detail)
        else:
            self.answer(201, status="valid")
server = http.server.ThreadingHTTPServer(("", int(port)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/ssl/pebble.pem", "/etc/ssl/private/acme.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

#: Has certbot's timer renew the certificate at its next run, and ends that.
DUE, NOT_DUE = (
    f"sed -i {change} /etc/letsencrypt/renewal/app.{APP}.conf" for change in ("'1i renew_before_expiry = 9000 days'", "1d")
)

#: Messages about a failed order.
REFUSED = f"certificates_wanted.{APP}: no certificate was issued; the previous one stays in use: "

#: Fills the disk of certbot: existing files stay readable.
FILL = """
mkdir /run/full && mount -t tmpfs -o size=1m tmpfs /run/full && mkdir /run/full/upper /run/full/work || exit
mount -t overlay -o lowerdir=/etc/letsencrypt,upperdir=/run/full/upper,workdir=/run/full/work overlay /etc/letsencrypt || exit
head -c 1m /dev/zero > /run/full/zero 2> /dev/null; rm -f /etc/letsencrypt/full; ! echo full > /etc/letsencrypt/full
"""
FREE = "umount /etc/letsencrypt && umount /run/full && rmdir /run/full"


class Certificate:
    """The certificate of the app on both hosts, which are used at once; ``issued`` is its last order."""

    def __init__(self, ca: Path) -> None:
        """Start with the order of the first run."""
        self.hosts, self.ca, self.issued = hosts(), ca, ALL

    @property
    def next(self) -> Order:
        """The order that replaces the certificate."""
        return FEWER if self.issued == ALL else ALL

    def each(self, call: Callable[[Host], T]) -> list[T]:
        """Return the result of ``call`` for each host."""
        with ThreadPoolExecutor(len(self.hosts)) as executor:
            return list(executor.map(call, self.hosts.values()))

    def shell(self, command: str) -> None:
        """Run a command on each host."""
        self.each(lambda host: host.run_expect([0], "sh -c %s", command))

    def run(self, order: Order, **options: Any) -> list[Outcome]:
        """Run an order on each host."""
        return self.each(lambda host: order.run(host, APP, "nginx", **options))

    def issue(self, order: Order) -> None:
        """Run an order that must succeed and end all problems."""
        assert {(outcome.error, *outcome.problems) for outcome in self.run(order)} == {("",)}
        self.issued = order

    def problems(self) -> list[list[str]]:
        """Return the problems in the status of each host."""
        return [outcome.problems for outcome in self.run(self.issued, steps=())]

    def site(self, host: Host, ca: Path | None = None) -> Site:
        """Return the site of a host, with a valid certificate of ``ca`` or any."""
        return Site(address(host), NAMES[0].replace("HOST", host.backend.get_hostname()), https=True, ca=ca)

    def served(self, ca: Path | None) -> list[int]:
        """Return the serial number of the certificate with which each host serves the site."""
        assert {self.site(host, ca).get("/healthz").status for host in self.hosts.values()} == {200}
        return [self.site(host).certificate().serial_number for host in self.hosts.values()]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Verify that the certificate that is served afterwards is still that of before."""
        before = self.served(self.ca)
        yield
        assert self.served(self.ca) == before

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Verify that another certificate is served afterwards."""
        before = self.served(self.ca)
        yield
        eventually(lambda: {*self.served(self.ca)}.isdisjoint(before), 10)

    def renew(self) -> None:
        """Renew the certificate now by the service of certbot's timer."""
        self.shell(f"{DUE} && systemctl start certbot.service && {NOT_DUE}")


@pytest.fixture(scope="module")
def acme() -> Host:
    """Return the host of the ACME servers."""
    return hosts("acme")["acme"]


@pytest.fixture(scope="module")
def certificate(acme: Host, ca: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    """Return the certificate of the first run; remove its app after the module."""
    copy_code(APP_GROUP, tmp_path_factory.mktemp("code"))
    found = Certificate(ca)
    for name, host in found.hosts.items():
        domain = MISDIRECTED.replace("HOST", name)
        entry = json.dumps({"host": domain, "addresses": [address(acme)]}).encode()
        urllib.request.urlopen(f"http://{address(acme)}:8055/add-a", entry, timeout=10).close()
        host.run_expect([0], f"echo '{address(acme)} {domain}' >> /etc/hosts")
    yield found
    expect_success(run_playbook("playbooks/remove.yml", APP_GROUP, "-e", f"app={APP}"))


def test_first_run_on_bare_host_issues_certificate(certificate: Certificate) -> None:
    certificate.served(certificate.ca)
    for host in certificate.hosts.values():
        assert isinstance(certificate.site(host).certificate().public_key(), EllipticCurvePublicKey)
    assert certificate.problems() == [[], []]


def test_renewed_certificate_is_served_without_closing_connections(certificate: Certificate) -> None:
    def workers() -> list[str]:
        return certificate.each(lambda host: host.check_output("pgrep --full 'nginx: worker'"))

    before = workers()
    with certificate.kept():
        certificate.shell("systemctl start certbot.service")
    assert workers() == before, "no reload without renewal"

    def talk_while_renewed(host: Host) -> object:
        async def talk(connection: WebSocketClientConnection) -> list[object]:
            echoes: list[object] = []
            for text in ("before", "after"):
                await connection.write_message(text)
                echoes.append(await connection.read_message())
                if text == "before":
                    host.run_expect([0], f"{DUE} && systemctl start certbot.service && {NOT_DUE}")
            return echoes

        return certificate.site(host, certificate.ca).websocket("/ws", talk)

    with certificate.replaced():
        assert certificate.each(talk_while_renewed) == [["before", "after"]] * 2


@contextmanager
def stopped(acme: Host) -> Iterator[None]:
    """Stop the ACME server like on an overloaded host: it accepts connections, and does not answer."""
    acme.run_expect([0], "systemctl kill --signal=STOP pebble@14000")
    try:
        yield
    finally:
        acme.run_expect([0], "systemctl kill --signal=CONT pebble@14000")


@contextmanager
def refusing(acme: Host, port: int, path: str, status: int, kind: str, detail: str) -> Iterator[None]:
    """Run an ACME server that refuses requests of ``path``."""
    acme.run_expect([0], f"systemd-run --unit=refusing python3 -c %s {port} {path} {status} {kind} '{detail}'", REFUSING)
    eventually(lambda: acme.run(f"ss -Hltn | grep -q :{port}").rc == 0)
    try:
        yield
    finally:
        acme.run_expect([0], "systemctl stop refusing")


@contextmanager
def full_disk(certificate: Certificate) -> Iterator[None]:
    certificate.shell(FILL)
    try:
        yield
    finally:
        certificate.shell(FREE)


@dataclass(frozen=True)
class Fault:
    """What differs in an order, what causes the fault, and the expected message."""

    order: dict[str, Any]
    message: str
    cause: Callable[[Host], AbstractContextManager[None]] = lambda _acme: nullcontext()


FAULTS = {
    "unavailable": Fault(
        {"server": "https://acme:14002/dir"},
        "Connection refused. To fix: set another certificates_acme_directory, or allow this host to connect to the server",
    ),
    "slow": Fault(
        {"timeout": 4}, "https://acme:14000/dir did not complete the order in time. To fix: run this again when it", stopped
    ),
    "refuses one of five names": Fault(
        {"domains": (*FEWER.domains, "blocked.edge.test"), "self_check": False},
        r"blocked\.edge\.test.*\. To fix: remove the names that the server does not certify",
    ),
    "cannot reach one of five names": Fault(
        {"domains": (*FEWER.domains, MISDIRECTED), "self_check": False},
        r"misdirected-\S+: [^;]*connection refused \(connection\)\. To fix: make these names resolve to this host",
    ),
    "limits the rate": Fault(
        {"server": "https://acme:14005/dir"},
        r"too many certificates already issued\. To fix: wait",
        lambda acme: refusing(acme, 14005, "/newOrder", 429, "rateLimited", "too many certificates already issued"),
    ),
    "requires a contact address": Fault(
        {"server": "https://acme:14003/dir"},
        "To fix: set certificates_acme_email to an address that the server accepts",
        lambda acme: refusing(acme, 14003, "/newAccount", 400, "invalidContact", "An e-mail address is needed"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_the_server_keeps_the_certificate_and_is_reported_until_it_is_mended(
    acme: Host, certificate: Certificate, name: str
) -> None:
    fault = FAULTS[name]
    order = replace(certificate.next, **fault.order)
    with fault.cause(acme), certificate.kept():
        for outcome in certificate.run(order):
            assert re.fullmatch(f"{REFUSED}.*{fault.message}.*", outcome.error), outcome.error
            [problem] = outcome.problems
            assert re.search(fault.message, problem), problem
    if name == "limits the rate":
        for outcome in certificate.run(order):
            assert "UTC failed; the next attempt is possible after" in outcome.error, "the server is down, but not asked"
    with certificate.replaced():
        certificate.issue(certificate.next)


def test_full_disk_keeps_the_certificate_until_there_is_space(certificate: Certificate) -> None:
    with full_disk(certificate), certificate.kept():
        for outcome in certificate.run(certificate.next):
            assert re.fullmatch(rf"{REFUSED}.*No space left on device.*", outcome.error), outcome.error
    with certificate.replaced():
        certificate.issue(certificate.next)


def test_name_that_does_not_reach_the_host_is_found_without_the_server(acme: Host, certificate: Certificate) -> None:
    lines = "journalctl --unit pebble@14000 | wc -l"
    before = acme.check_output(lines)
    with certificate.kept():
        for outcome in certificate.run(Order(domains=(NAMES[0], MISDIRECTED, "no-such-name.edge.test"))):
            message = (
                rf"misdirected-\S+ resolves to {address(acme)}, which does not answer on port 80: Connection refused; "
                "no-such-name.edge.test does not resolve; the ACME server was not asked."
            )
            assert re.search(message, outcome.error), outcome.error
            assert re.search(f"first: the certificate does not cover misdirected.*{message}", outcome.problems[0])
    assert acme.check_output(lines) == before
    certificate.issue(certificate.issued)


def test_failed_renewal_is_reported_until_the_next_one(certificate: Certificate) -> None:
    certificate.shell(DUE)
    with full_disk(certificate), certificate.kept():
        certificate.shell("! systemctl start certbot.service")
        for problems in certificate.problems():
            assert "its renewal failed: [Errno 28] No space left on device" in problems[0]
    with certificate.replaced():
        certificate.shell(f"systemctl start certbot.service && {NOT_DUE}")
    assert certificate.problems() == [[], []]


@contextmanager
def broken_nginx(certificate: Certificate) -> Iterator[None]:
    """Break the nginx configuration temporarily."""
    certificate.shell("echo 'no_such_directive on;' > /etc/nginx/conf.d/invalid.conf")
    try:
        yield
    finally:
        certificate.shell("rm /etc/nginx/conf.d/invalid.conf")


def test_failed_reload_after_renewal_is_reported_until_it_succeeds(certificate: Certificate) -> None:
    with broken_nginx(certificate), certificate.kept():
        certificate.shell(f"{DUE}; systemctl start certbot.service; {NOT_DUE}")
        for outcome in certificate.run(certificate.issued):
            assert 'unknown directive "no_such_directive"' in outcome.error
            assert "were restored" not in outcome.error
            assert "nginx: the previous certificates are served until a reload succeeds." in outcome.error
            assert "first: nginx still serves the previous certificate; nginx -t shows why" in outcome.problems[0]
    with certificate.replaced():
        certificate.issue(certificate.issued)


def test_order_waits_for_a_renewal_that_runs_at_the_same_time(certificate: Certificate) -> None:
    def both(host: Host) -> Outcome:
        host.run_expect([0], f"{DUE} && systemctl start --no-block certbot.service")
        host.run_expect([0], "timeout 60 sh -c 'until pgrep --full \"[c]ertbot -q renew\"; do sleep 0.05; done'")
        return certificate.next.run(host, APP, "nginx")

    with certificate.replaced():
        assert [(outcome.error, outcome.problems) for outcome in certificate.each(both)] == [("", [])] * 2
    certificate.issued = certificate.next
    certificate.shell("! systemctl is-failed certbot.service")


def test_revoked_certificate_is_replaced(certificate: Certificate) -> None:
    with certificate.kept():
        certificate.shell(f"certbot revoke --non-interactive --server {ALL.server} --cert-name app.{APP}")
    for problems in certificate.problems():
        assert problems == [f"{APP}: the certificate or its key is missing; run site.yml to create them"]
    with certificate.replaced():
        certificate.issue(certificate.issued)


#: Revokes the certificate at the server, which only the server knows afterwards, and forgets what the host knows of it.
REVOKE = f"""
cd /etc/letsencrypt/live/app.{APP}
certbot revoke --non-interactive --no-delete-after-revoke --server {ALL.server} --cert-path cert.pem
rm -f /etc/letsencrypt/funnel/app.{APP}.renewal.json
"""


#: Starts the renewal while another program uses the port of the challenges.
RENEW_IN_VAIN = """
systemd-run --unit=busy python3 -m http.server 402 && timeout 60 sh -c "until ss -Hltn | grep -q :402; do sleep 0.05; done"
systemctl start certbot.service; systemctl stop busy
"""


def test_certificate_that_the_server_has_revoked_is_replaced_by_timer_and_run(certificate: Certificate) -> None:
    with certificate.kept():
        certificate.shell(f"{REVOKE}{RENEW_IN_VAIN}")
    for problems in certificate.problems():
        assert re.match(f"{APP}: the ACME server has suggested renewal since .* its renewal failed: .*port 402", problems[0])
    with certificate.replaced():
        certificate.shell("systemctl start certbot.service")
    assert certificate.problems() == [[], []]
    certificate.shell(REVOKE)
    with certificate.replaced():
        certificate.issue(certificate.issued)


def test_damaged_files_of_certbot_are_replaced_and_the_certificate_is_kept_until_then(certificate: Certificate) -> None:
    certificate.shell(f"truncate --size=300 /etc/letsencrypt/renewal/app.{APP}.conf")
    for problems in certificate.problems():
        assert f"app.{APP}.conf is damaged: it lacks " in problems[0]
    with certificate.replaced():
        certificate.issue(certificate.issued)
    with certificate.kept():
        certificate.shell(f"cd /etc/letsencrypt && rm renewal/app.{APP}.conf && truncate --size=0 live/app.{APP}/fullchain.pem")
        for outcome in certificate.run(replace(certificate.issued, server="https://acme:14002/dir")):
            assert re.fullmatch(f"{REFUSED}.*Connection refused.*", outcome.error), outcome.error
    with certificate.replaced():
        certificate.issue(certificate.issued)


def test_stopped_renewal_timer_is_started(certificate: Certificate) -> None:
    certificate.shell("systemctl disable --now certbot.timer")
    assert [outcome.changes for outcome in certificate.run(certificate.issued)] == ["certbot.timer\n"] * 2
    certificate.shell("systemctl is-enabled certbot.timer && systemctl is-active certbot.timer")
    assert [outcome.changes for outcome in certificate.run(certificate.issued)] == [""] * 2


def test_account_is_created_with_the_contact_address(certificate: Certificate) -> None:
    certificate.shell("rm -rf /etc/letsencrypt/accounts/acme:14000")
    certificate.issue(replace(certificate.next, email="admin@edge.test"))
    for host in certificate.hosts.values():
        assert "Email contact: admin@edge.test" in host.check_output(f"certbot show_account --server {ALL.server}")


def test_previous_certificate_is_restored_if_nginx_rejects_the_new_one(certificate: Certificate) -> None:
    own = Order(domains=NAMES, provider="self_signed")
    certificate.issue(own)
    assert [outcome.changes for outcome in certificate.run(own)] == [""] * 2
    before = certificate.served(None)
    with broken_nginx(certificate):
        for outcome in certificate.run(replace(own, domains=NAMES[:1])):
            assert 'unknown directive "no_such_directive"' in outcome.error
            assert "The previous certificates were restored" in outcome.error
    assert certificate.served(None) == before
