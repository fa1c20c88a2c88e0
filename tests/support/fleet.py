"""The fleet of the scenario ``fleet``: its hosts, faults that tests inject, and clients that use the floating IP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import testinfra
import yaml
from testinfra.host import Host

from tests.support import remote
from tests.support.load import Load
from tests.support.remote import ROOT, Site, address, processes, python
from tools import fleet as hosts_tool

BALANCERS = ("lb1", "lb2")
APP_HOSTS = ("web1", "web2", "web3")

#: The domain of the site.
NAME = "fleet.test"

#: The schemes that clients use.
SCHEMES = ("http", "https")

#: The file in which the app stores posted notes.
NOTES = "/srv/sample/shared/notes"

#: Seconds of traffic before a fault is injected, and after it, by when its effects must be over.
BEFORE, AFTER = 2.0, 10.0

VARIABLES = yaml.safe_load((ROOT / "molecule/fleet/group_vars/all.yml").read_text())

#: Prints an ID that is unique to each boot.
PRINT_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"

#: Prints HAProxy's servers on a load balancer, as dicts with the columns of `show stat`.
SERVERS = """
import csv, json, socket
with socket.socket(socket.AF_UNIX) as stats:
    stats.connect("/run/haproxy-funnel/admin.sock")
    stats.sendall(b"show stat -1 4 -1\\n")
    text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
print(json.dumps(list(csv.DictReader(text.lstrip("# ").splitlines()))))
"""

#: Drops all packets between this host and an address, like a pulled cable.
PARTITION = (
    "nft 'table inet partition {{ chain in {{ type filter hook input priority -10; ip saddr {0} drop; }}; "
    "chain out {{ type filter hook output priority -10; ip daddr {0} drop; }}; }}'"
)
HEAL_PARTITION = "nft delete table inet partition"


def app_entry(**keys: Any) -> dict[str, Any]:
    """Return the variables of the scenario with changed keys in the app's entry."""
    return {"tornado_apps": {"sample": VARIABLES["tornado_apps"]["sample"] | keys}}


def power(command: str, *names: str) -> None:
    """Run the command ``up``, ``off`` or ``down`` of ``tools.hosts`` for hosts of the fleet."""
    subprocess.run(
        [sys.executable, "-m", "tools.hosts", command, "--fleet", os.environ["FLEET"], *names],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )


def run_fault(host: Host, command: str) -> float:
    """Run a command that injects a fault on a host; return when it ended, by the host's clock, which the controller shares."""
    return float(host.check_output(f"{command} && date +%s.%N").split()[-1])


def power_off(name: str) -> float:
    """Power a host off; return the time."""
    power("off", name)
    return time.time()


class Fleet:
    """The hosts of the fleet by name."""

    def __init__(self) -> None:
        """Connect to no host yet."""
        self.hosts = remote.hosts(*BALANCERS, *APP_HOSTS)
        self.app_hosts = {name: self.hosts[name] for name in APP_HOSTS}
        self.balancers = {name: self.hosts[name] for name in BALANCERS}
        self.addresses = {name: address(host) for name, host in self.hosts.items()}
        self.floating_ip = self.addresses["lb1"].rpartition(".")[0] + ".10"
        self.client_address = Site(self.addresses["lb1"]).client_address

    def add(self, name: str, release: str, inventory: Path) -> None:
        """Boot another app host, and write an inventory with it."""
        power("up", f"{name}:{release}")
        variables: dict[str, Any] = self.hosts["web1"].ansible.get_variables()  # type: ignore[attr-defined]  # as in tests/support/remote.py
        connection = {key: value for key, value in variables.items() if key.startswith("ansible_")}
        location = {"ansible_host": hosts_tool.Fleet(os.environ["FLEET"]).hosts[name].address}
        inventory.write_text(yaml.safe_dump({"app_hosts": {"hosts": {name: connection | location}}}))
        self.app_hosts[name] = testinfra.get_host(f"ansible://{name}", ansible_inventory=str(inventory))

    def remove(self, name: str) -> None:
        """Destroy a host that was added."""
        del self.app_hosts[name]
        power("down", name)

    def floating_ip_holders(self) -> list[str]:
        """Return the load balancers that hold the floating IP."""
        return [name for name, host in self.balancers.items() if f" {self.floating_ip}/" in host.check_output("ip -o -4 address")]

    def active(self) -> str:
        """Return the load balancer that holds the floating IP."""
        (name,) = self.floating_ip_holders()
        return name

    def standby(self) -> str:
        """Return the load balancer that does not hold the floating IP."""
        return next(name for name in BALANCERS if name != self.active())

    def servers(self, balancer: str) -> dict[str, str]:
        """Return the worst state, such as ``UP``, of each host's servers at a load balancer."""
        found: dict[str, str] = {}
        for row in python(self.balancers[balancer], SERVERS):
            if row["pxname"].endswith(".challenges"):
                continue  # ACME clients, which are not checked
            found[row["svname"]] = min(row["status"], found.get(row["svname"], "UP"))
        return found

    def tls_group(self) -> str:
        """Return the group of hosts that terminate TLS."""
        return "balancers" if "ssl crt" in self.balancers["lb1"].check_output("cat /etc/haproxy/haproxy.cfg") else "app_hosts"

    def is_healthy(self) -> bool:
        """Verify that every app host serves and is up at both load balancers, and that one of them holds the floating IP."""
        assert self.active()
        assert [self.servers(name) for name in BALANCERS] == [dict.fromkeys(self.app_hosts, "UP")] * len(BALANCERS)
        assert [len(processes(host, "sample")) for host in self.app_hosts.values()] == [2] * len(self.app_hosts)
        assert self.serving_hosts() == set(self.app_hosts)
        return True

    def serving_hosts(self) -> set[str]:
        """Return the hosts that respond to clients of the floating IP.

        Under load some may be missing: a host with the most connections, including websockets, gets no requests for a while.
        """
        return {Site(self.floating_ip, NAME).get("/whoami").json["hostname"] for _ in range(24)}

    def themes(self) -> dict[str, str]:
        """Return the theme of the page on each app host, which is a setting of its release."""
        pages = {name: Site(address(host), NAME).get("/").body.decode() for name, host in self.app_hosts.items()}
        return {name: re.findall('data-theme="([a-z]+)"', page)[0] for name, page in pages.items()}

    def releases(self) -> dict[str, str]:
        """Return the live release of each app host."""
        sites = {name: Site(address(host), NAME) for name, host in self.app_hosts.items()}
        return {name: site.get("/healthz").json["release"] for name, site in sites.items()}

    def notes(self) -> str:
        """Return the notes stored on all app hosts."""
        return "\n".join(host.check_output(f"cat {NOTES} 2> /dev/null; true") for host in self.app_hosts.values())


class Traffic:
    """The load of each scheme, and the fault injected during it."""

    def __init__(self, loads: dict[str, Load]) -> None:
        """Inject no fault yet."""
        self.loads = loads
        self.injected_at = 0.0
        self.outage = 0.0

    def inject(self, fault: Callable[[], float], outage: float = 0.0) -> None:
        """Inject a fault during traffic, and keep up the traffic until its effects are over.

        ``fault`` returns the time of the fault. For ``outage`` seconds after it requests may be sent to the failed component.
        """
        time.sleep(BEFORE)
        self.injected_at, self.outage = fault(), outage
        time.sleep(AFTER)


#: The type of the scenario's fixture ``clients``, which puts load on the site.
Clients = Callable[..., AbstractContextManager[Traffic]]
