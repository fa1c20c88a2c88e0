"""What an app knows of its clients, wherever TLS ends: their own address and scheme, and nothing that they make up."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import NAME, SCHEMES, Clients, Fleet, entry
from tests.support.remote import Site, address, deploy, expect_success, python, run_playbook

FORGED = "203.0.113.9"

#: What a client may say of itself.
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


#: Prints, on a host, what a server answers to something.
SAY = """
import json, socket
with socket.create_connection(({server!r}, 80), timeout=10) as connection:
    connection.sendall({said!r}.encode())
    print(json.dumps(b"".join(iter(lambda: connection.recv(65536), b"")).decode()))
"""


def say(server: str, said: str) -> str:
    """Return what a server answers to something that this machine says."""
    with socket.create_connection((server, 80), timeout=10) as connection:
        connection.sendall(said.encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


@pytest.fixture(scope="module", params=["app_hosts", "balancers"])
def tls_at(fleet: Fleet, request: pytest.FixtureRequest) -> str:
    """Let TLS end there. The scenario provisions the fleet with the first, and leaves it with the second to all other tests."""
    where = str(request.param)
    if fleet.tls_at() != where:
        expect_success(run_playbook("site.yml", "all", "-e", f"fleet_tls_at={where}"))
    return where


def asked(site: Site) -> tuple[str, str]:
    """Return client and scheme as the app sees them, after a request and a websocket that both say something else."""
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


@pytest.mark.usefixtures("tls_at")
def test_the_balancers_tell_who_the_client_is(fleet: Fleet) -> None:
    for scheme in SCHEMES:
        for at in (fleet.address, *map(address, fleet.balancers.values())):
            assert asked(Site(at, NAME, https=scheme == "https")) == (fleet.client_address, scheme)


def test_an_app_host_believes_nobody_but_its_balancers(fleet: Fleet, tls_at: str) -> None:
    headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in SPOOFED.items())
    proxy = f"PROXY TCP4 {FORGED} 203.0.113.10 9 80\r\n" if tls_at == "app_hosts" else ""
    said = f"{proxy}GET /whoami HTTP/1.0\r\nHost: {NAME}\r\n{headers}\r\n"
    server = fleet.addresses["web1"]
    outside, inside = say(server, said), python(fleet.hosts["web2"], SAY.format(server=server, said=said))
    for answer, own in ((outside, fleet.client_address), (inside, fleet.addresses["web2"])):
        seen = json.loads(answer.partition("\r\n\r\n")[2])
        assert (seen["remote_ip"], seen["protocol"]) == (own, "http")


@pytest.mark.usefixtures("tls_at")
def test_a_balancer_takes_no_proxy_protocol_of_clients(fleet: Fleet) -> None:
    said = f"PROXY TCP4 {FORGED} {fleet.address} 9 80\r\nGET /whoami HTTP/1.0\r\nHost: {NAME}\r\n\r\n"
    assert re.match(r"HTTP/1\.[01] 400 ", say(fleet.address, said))


def test_a_deploy_wherever_tls_ends(fleet: Fleet, clients: Clients, tmp_path: Path, tls_at: str) -> None:
    theme = {"app_hosts": "light", "balancers": "dark"}[tls_at]
    options = ("-e", f"fleet_tls_at={tls_at}", "-e", "batch=1")
    with clients(f"deploy, TLS ends at the {tls_at}"):
        expect_success(deploy("sample", "app_hosts", tmp_path, entry(env={"SAMPLE_THEME": theme}), *options))
    pages = [Site(fleet.address, NAME, https=True).get("/").body.decode() for _ in range(12)]
    assert all(f'data-theme="{theme}"' in page for page in pages)
