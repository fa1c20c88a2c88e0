"""A host whose kernel lacks IPv6, and that IPv6 alone reaches later, with packages from private servers."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from testinfra.host import Host

from tests.support.pki import Authority
from tests.support.remote import (
    ROOT,
    Site,
    address,
    deploy,
    eventually,
    expect_success,
    extra_vars,
    hosts,
    run_playbook,
    run_site,
)
from tools.packages import as_root

HOST = "network"

WEB = """
import inhouse
import tornado.web

class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write(f"{inhouse.GREETING} {self.request.remote_ip}")

def make_app():
    return tornado.web.Application([("/", Handler)], xheaders=True)
"""

#: The credentials of the index.
LOGIN = "ann:hunter2"

#: Where the hosts have the certificate of the authority that issued that of the index.
AUTHORITY = "/etc/ssl/own.pem"

#: Makes IPv6 sockets fail in all services and in sessions of SSH, as a kernel with ipv6.disable=1 does.
#: The kernel of the test hosts is that of this machine, and has IPv6.
WITHOUT_IPV6 = r"""
mkdir -p /etc/systemd/system/service.d
printf '[Service]\nRestrictAddressFamilies=~AF_INET6\n' > /etc/systemd/system/service.d/90-no-ipv6.conf
printf 'net.ipv6.conf.%s.disable_ipv6 = 1\n' all default > /etc/sysctl.d/90-no-ipv6.conf
"""

#: Adds an IPv6 address to a host, and the link-local address that VRRP requires.
WITH_IPV6 = """
cd /etc/systemd/network
sed -i 's/^LinkLocalAddressing=.*/LinkLocalAddressing=ipv6/; /^Gateway/a Address={address}/64' 10-host0.network
networkctl reload
networkctl reconfigure host0
timeout 30 sh -c 'until ip -6 address show dev host0 -tentative | grep -q {address}; do sleep 0.1; done'
"""

#: Drops all IPv4 between the hosts, the controller and the clients of a test network. Debian's packages still need it.
WITHOUT_IPV4 = """
nft 'table ip closed {{
    chain in {{ type filter hook input priority -10; ip saddr {network} drop; }}
    chain out {{ type filter hook output priority -10; ip daddr {network} drop; }}
}}'
"""

#: A configuration of pip with a directory of packages in place of an index.
PIP = """
[global]
cert = {authority}
no-index = true
find-links = {url}/links/
"""

NEW_SOCKET = "python3 -c 'import socket; socket.socket(socket.AF_INET6)'"


class Index(SimpleHTTPRequestHandler):
    """Package index that requires a password."""

    requested: list[str]

    def do_GET(self) -> None:
        """Send a file or the list of a directory."""
        if self.headers["Authorization"] != f"Basic {base64.b64encode(LOGIN.encode()).decode()}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@dataclass(frozen=True)
class Served:
    """A running index: its port on the controller, its authority, and the paths that were requested with the password."""

    port: int
    authority: str
    requested: list[str]

    def introduce(self, host: Host, address: str) -> str:
        """Make the index, at an address of the controller, known to a host; return its URL."""
        host.check_output("printf %%s %s > %s", self.authority, AUTHORITY)
        host.check_output("sed -i '/ index.test$/d' /etc/hosts; echo %s index.test >> /etc/hosts", address)
        return f"https://{LOGIN}@index.test:{self.port}"


def ipv6(ipv4: str) -> str:
    """Return the IPv6 address of this test that belongs to an IPv4 address of the test network."""
    _first, second, third, last = ipv4.split(".")
    return f"fd00:{second}:{third}::{last}"


@pytest.fixture(scope="module")
def controller() -> str:
    """Return the IPv4 address of the controller."""
    return Site(address(hosts(HOST)[HOST])).client_address


def reboot(name: str) -> None:
    """Reboot a host, and wait until all of its services run."""
    command = [sys.executable, "-m", "tools.hosts", "reboot", "--fleet", "molecule-hosts", name]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "app"
    directory.mkdir()
    (directory / "web.py").write_text(WEB)
    (directory / "requirements.txt").write_text("tornado==6.6.1\ninhouse==1.0\n")
    return directory


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve uv, Tornado, and a package that no other index has, by HTTPS with a certificate of a private authority."""
    directory = tmp_path_factory.mktemp("index")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    for requirement in ("tornado==6.6.1", "uv==0.13.8"):
        project = directory / "simple" / requirement.partition("=")[0]
        subprocess.run([*command, f"--dest={project}", requirement], check=True, timeout=300)
    (directory / "simple/inhouse").mkdir()
    with zipfile.ZipFile(directory / "simple/inhouse/inhouse-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("inhouse.py", "GREETING = 'in-house'\n")
        wheel.writestr("inhouse-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: inhouse\nVersion: 1.0\n")
        wheel.writestr("inhouse-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("inhouse-1.0.dist-info/RECORD", "")
    (directory / "links").mkdir()
    for package in directory.glob("simple/*/*.whl"):
        (directory / "links" / package.name).hardlink_to(package)
    authority = Authority("own", datetime.now(UTC))
    files = authority.leaf("index.test").write(directory)
    requested: list[str] = []
    handler = partial(type("Handler", (Index,), {"requested": requested}), directory=str(directory))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files["certificate"], files["key"])
    with ThreadingHTTPServer(("", 0), handler, bind_and_activate=False) as server:
        server.socket.close()
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        server.socket = tls.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Served(server.socket.getsockname()[1], authority.pem, requested)
        server.shutdown()
        thread.join()


def test_host_without_ipv6_is_provisioned_from_a_private_index(index: Served, controller: str, source: Path) -> None:
    host, site = hosts(HOST)[HOST], Site(address(hosts(HOST)[HOST]), "shop.test")
    host.check_output(WITHOUT_IPV6)
    reboot(HOST)
    assert "Address family not supported" in host.run(NEW_SOCKET).stderr
    assert host.check_output("cat /proc/net/if_inet6") == ""

    url = index.introduce(host, controller)
    variables = {
        "tornado_apps": {"shop": entry(source)},
        "python_index_url": f"{url}/simple/",
        "python_ca_bundle": AUTHORITY,
    }
    output = expect_success(run_site(HOST, source.parent, variables, "--diff"))
    assert LOGIN.partition(":")[2] not in output
    assert {"/simple/uv/", "/simple/tornado/", "/simple/inhouse/"} <= set(index.requested)
    assert site.get().body.decode() == f"in-house {controller}"
    assert "changed=0" in expect_success(run_site(HOST, source.parent, variables))
    host.check_output("systemctl reload nginx")
    assert site.get().status == 200
    reboot(HOST)
    assert eventually(lambda: site.get().status == 200)
    expect_success(run_playbook("playbooks/status.yml", HOST, *extra_vars(source.parent, variables)))
    checked = cast("Any", host.ansible)("funnel.tornado.host_check", "listen={} service=haproxy")
    assert checked["ipv6"] is False, "a load balancer would listen by IPv4 only, too"


def entry(source: Path, **keys: Any) -> dict[str, Any]:
    """Return the entry of the app."""
    return {
        "source": {"path": str(source)},
        "run": {"app": "web:make_app"},
        "domains": ["shop.test"],
        "processes": 1,
        "drain": 1,
        **keys,
    }


@pytest.fixture
def addresses(controller: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Connect the controller, the app host and a load balancer by IPv6; return their addresses, which the inventory has."""
    hosts(HOST)[HOST].check_output("rm -f /etc/systemd/system/service.d/90-no-ipv6.conf /etc/sysctl.d/90-no-ipv6.conf")
    reboot(HOST)
    found = {name: (host, ipv6(address(host))) for name, host in hosts(HOST, "balancer").items()}
    route = ["ip", "-json", "route", "get", address(found[HOST][0])]
    bridge = json.loads(subprocess.run(route, capture_output=True, check=True).stdout)[0]["dev"]
    subprocess.run([*as_root("enable IPv6"), "sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"], check=True)
    place = ["ip", "-6", "address", "replace", f"{ipv6(controller)}/64", "dev", bridge, "nodad"]
    subprocess.run([*as_root("set an address"), *place], check=True)
    inventory: dict[str, Any] = {}
    for group, name in (("app_hosts", HOST), ("balancers", "balancer")):
        host, own = found[name]
        host.check_output("sh -ec %s", WITH_IPV6.format(address=own))
        variables: dict[str, Any] = cast("Any", host.ansible).get_variables()
        connection = {key: str(value) for key, value in variables.items() if key.startswith("ansible_")}
        inventory[group] = {"hosts": {name: connection | {"ansible_host": own}}}
    file = tmp_path / "hosts.yml"
    file.write_text(yaml.safe_dump(inventory))
    monkeypatch.setenv("MOLECULE_INVENTORY_FILE", str(file))
    return {name: own for name, (_host, own) in found.items()}


def test_fleet_that_only_ipv6_reaches_is_provisioned_from_a_directory_of_packages(
    addresses: dict[str, str], index: Served, controller: str, source: Path
) -> None:
    client, network = ipv6(controller), f"{controller}/24"
    host, balancer = hosts(HOST, "balancer").values()
    url = index.introduce(host, client)
    host.check_output("printf %%s %s > /etc/pip.conf", PIP.format(authority=AUTHORITY, url=url))
    floating = f"{client}00"
    host.check_output("rm -rf /opt/uv")
    keys = {"build": {"env": {"LEVEL": "2"}}}  # requires another virtual environment
    variables = {
        "tornado_apps": {"shop": entry(source, **keys)},
        "firewall_enabled": True,
        "keepalived_address": f"{floating}/64",
    }
    index.requested.clear()
    expect_success(run_playbook("site.yml", "all", *extra_vars(source.parent, variables), seconds=600))
    assert {path.rpartition("/")[0] for path in index.requested} == {"/links"}

    for each in (host, balancer):
        each.check_output(WITHOUT_IPV4.format(network=network))
    for site in (Site(floating, "shop.test"), Site(addresses["balancer"], "shop.test")):
        assert eventually(lambda site=site: site.get().body.decode() == f"in-house {client}")  # type: ignore[misc]
    changed = variables | {"tornado_apps": {"shop": entry(source, **keys, env={"COLOR": "red"})}}
    expect_success(deploy("shop", "all", source.parent, changed))
    assert Site(floating, "shop.test").get().body.decode() == f"in-house {client}"
    expect_success(run_playbook("playbooks/status.yml", "all", *extra_vars(source.parent, changed)))
    for each in (host, balancer):
        each.check_output("nft delete table ip closed")
