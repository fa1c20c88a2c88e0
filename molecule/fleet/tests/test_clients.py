"""Client addresses and schemes that the app receives, with TLS termination at app hosts and at load balancers."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.acme import fetch_roots
from tests.support.fleet import NAME, PRINT_BOOT_ID, SCHEMES, Clients, Fleet, app_entry
from tests.support.remote import Site, address, deploy, expect_success, python, run_playbook

FORGED = "203.0.113.9"

#: Headers that a client may spoof.
SPOOFED = {
    "X_Real_IP": FORGED,
    "X_Forwarded_For": FORGED,
    "X_Forwarded_Proto": "gopher",
    "X_Scheme": "gopher",
    "X_Forwarded_Host": "forged.test",
    "X_Forwarded_Port": "9",
    "X_Request_ID": "forged",
    "Forwarded": f"for={FORGED};proto=gopher",
}


#: Sends raw text from a host to a server and prints the response.
SEND_RAW = """
import json, socket
with socket.create_connection(({server!r}, 80), timeout=10) as connection:
    connection.sendall({text!r}.encode())
    print(json.dumps(b"".join(iter(lambda: connection.recv(65536), b"")).decode()))
"""


def send_raw(server: str, text: str) -> str:
    """Send raw text from the controller to a server and return the response."""
    with socket.create_connection((server, 80), timeout=10) as connection:
        connection.sendall(text.encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


@pytest.fixture(scope="module", params=["app_hosts", "balancers"])
def tls_group(fleet: Fleet, request: pytest.FixtureRequest) -> str:
    """Terminate TLS at this group. The scenario starts with the first group; all other modules use the second."""
    group = str(request.param)
    if fleet.tls_group() != group:
        expect_success(run_playbook("site.yml", "all", "-e", f"fleet_tls_at={group}"))
    return group


def seen_client(site: Site) -> tuple[str, str]:
    """Return the client address and scheme that the app sees in a request and a websocket with spoofed headers."""
    seen = site.get("/whoami", **SPOOFED).json
    headers = site.get("/headers", **SPOOFED).json
    assert FORGED not in json.dumps(headers)
    assert "forged" not in json.dumps(headers)
    assert "gopher" not in json.dumps(headers)

    async def tick(connection: Any) -> Any:
        return json.loads(await connection.read_message())

    ticked = site.websocket("/ticks", tick, **SPOOFED)
    assert (ticked["remote_ip"], ticked["protocol"]) == (seen["remote_ip"], seen["protocol"])
    return seen["remote_ip"], seen["protocol"]


@pytest.mark.usefixtures("tls_group")
def test_balancers_pass_client_address_and_scheme(fleet: Fleet, tmp_path: Path) -> None:
    """The certificates are valid, wherever TLS ends."""
    roots = fetch_roots(fleet.addresses["web3"], tmp_path)
    for scheme in SCHEMES:
        for target in (fleet.floating_ip, *map(address, fleet.balancers.values())):
            assert seen_client(Site(target, NAME, https=scheme == "https", ca=roots)) == (fleet.client_address, scheme)


def test_app_host_trusts_only_its_balancers(fleet: Fleet, tls_group: str) -> None:
    headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in SPOOFED.items())
    proxy = f"PROXY TCP4 {FORGED} 203.0.113.10 9 80\r\n" if tls_group == "app_hosts" else ""
    text = f"{proxy}GET /whoami HTTP/1.0\r\nHost: {NAME}\r\n{headers}\r\n"
    server = fleet.addresses["web1"]
    outside, inside = send_raw(server, text), python(fleet.hosts["web2"], SEND_RAW.format(server=server, text=text))
    for response, own in ((outside, fleet.client_address), (inside, fleet.addresses["web2"])):
        seen = json.loads(response.partition("\r\n\r\n")[2])
        assert (seen["remote_ip"], seen["protocol"]) == (own, "http")


@pytest.mark.usefixtures("tls_group")
def test_balancer_rejects_proxy_protocol_of_clients(fleet: Fleet) -> None:
    text = f"PROXY TCP4 {FORGED} {fleet.floating_ip} 9 80\r\nGET /whoami HTTP/1.0\r\nHost: {NAME}\r\n\r\n"
    assert re.match(r"HTTP/1\.[01] 400 ", send_raw(fleet.floating_ip, text))


@pytest.mark.parametrize("tls_group", ["app_hosts"], indirect=True)
@pytest.mark.usefixtures("tls_group")
def test_reboot_of_an_app_host_that_terminates_tls_loses_no_request(fleet: Fleet, clients: Clients) -> None:
    before = fleet.hosts["web3"].check_output(PRINT_BOOT_ID)
    with clients("reboot.yml, web3, TLS terminated at app_hosts", websockets_break=True):
        expect_success(run_playbook("playbooks/reboot.yml", "web3"))
    assert fleet.hosts["web3"].check_output(PRINT_BOOT_ID) != before


def test_deploy_loses_no_request_wherever_tls_ends(fleet: Fleet, clients: Clients, tmp_path: Path, tls_group: str) -> None:
    theme = {"app_hosts": "light", "balancers": "dark"}[tls_group]
    options = ("-e", f"fleet_tls_at={tls_group}", "-e", "batch=1")
    with clients(f"deploy, TLS terminated at {tls_group}"):
        expect_success(deploy("sample", "app_hosts", tmp_path, app_entry(env={"SAMPLE_THEME": theme}), *options))
    pages = [Site(fleet.floating_ip, NAME, https=True).get("/").body.decode() for _ in range(12)]
    assert all(f'data-theme="{theme}"' in page for page in pages)
