"""The fleet of the scenario of that name: its hosts, what is done to them, and the clients, who come by the floating address."""

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

#: The name of the site.
NAME = "fleet.test"

#: How clients come.
SCHEMES = ("http", "https")

#: Where the app keeps what was posted to the host.
NOTES = "/srv/sample/shared/notes"

#: Seconds of traffic before harm is done, and after it: all trouble that it makes is over then, or has been noticed.
BEFORE, AFTER = 2.0, 10.0

VARIABLES = yaml.safe_load((ROOT / "molecule/fleet/group_vars/all.yml").read_text())

#: Prints HAProxy's servers, on a balancer: a list of dicts with the columns of `show stat`.
SERVERS = """
import csv, json, socket
with socket.socket(socket.AF_UNIX) as stats:
    stats.connect("/run/haproxy-funnel/admin.sock")
    stats.sendall(b"show stat -1 4 -1\\n")
    text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
print(json.dumps(list(csv.DictReader(text.lstrip("# ").splitlines()))))
"""

#: Cuts the link of this host to an address, both ways. The other end knows nothing of it, as when a cable is pulled.
CUT = (
    "nft 'table inet cut {{ chain in {{ type filter hook input priority -10; ip saddr {0} drop; }}; "
    "chain out {{ type filter hook output priority -10; ip daddr {0} drop; }}; }}'"
)
MEND = "nft delete table inet cut"


def entry(**keys: Any) -> dict[str, Any]:
    """Return the variables of the scenario with other keys in the app's entry."""
    return {"tornado_apps": {"sample": VARIABLES["tornado_apps"]["sample"] | keys}}


def power(command: str, *names: str) -> None:
    """Have ``python3 -m tools.hosts`` do something with hosts of the fleet: ``up``, ``off`` or ``down``."""
    subprocess.run(
        [sys.executable, "-m", "tools.hosts", command, "--fleet", os.environ["FLEET"], *names],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )


def harm(host: Host, command: str) -> float:
    """Run a command on a host; return when, as its own clock says, which is that of this machine."""
    return float(host.check_output(f"date +%s.%N && {command}").split()[0])


def power_off(name: str) -> float:
    """Cut a host's power; return when."""
    power("off", name)
    return time.time()


class Fleet:
    """The hosts, by their names."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.hosts = remote.hosts(*BALANCERS, *APP_HOSTS)
        self.app_hosts = {name: self.hosts[name] for name in APP_HOSTS}
        self.balancers = {name: self.hosts[name] for name in BALANCERS}
        self.addresses = {name: address(host) for name, host in self.hosts.items()}
        self.address = self.addresses["lb1"].rpartition(".")[0] + ".10"
        self.client_address = Site(self.addresses["lb1"]).client_address

    def add(self, name: str, release: str, inventory: Path) -> None:
        """Boot one more app host, and write an inventory that has it beside those of the scenario."""
        power("up", f"{name}:{release}")
        known: dict[str, Any] = self.hosts["web1"].ansible.get_variables()  # type: ignore[attr-defined]  # as in tests/support/remote.py
        reached = {key: value for key, value in known.items() if key.startswith("ansible_")}
        at = {"ansible_host": hosts_tool.Fleet(os.environ["FLEET"]).hosts[name].address}
        inventory.write_text(yaml.safe_dump({"app_hosts": {"hosts": {name: reached | at}}}))
        self.app_hosts[name] = testinfra.get_host(f"ansible://{name}", ansible_inventory=str(inventory))

    def remove(self, name: str) -> None:
        """Take a host away that was added."""
        del self.app_hosts[name]
        power("down", name)

    def holders(self) -> list[str]:
        """Return the balancers that have the floating address."""
        return [name for name, host in self.balancers.items() if f" {self.address}/" in host.check_output("ip -o -4 address")]

    def active(self) -> str:
        """Return the balancer that has the floating address."""
        (name,) = self.holders()
        return name

    def standby(self) -> str:
        """Return the other one."""
        return next(name for name in BALANCERS if name != self.active())

    def servers(self, balancer: str) -> dict[str, str]:
        """Return the states of a balancer's servers, such as ``UP``, by host; of several servers of a host, the worst."""
        found: dict[str, str] = {}
        for row in python(self.balancers[balancer], SERVERS):
            found[row["svname"]] = min(row["status"], found.get(row["svname"], "UP"))
        return found

    def tls_at(self) -> str:
        """Return the group of the hosts where TLS ends."""
        return "balancers" if "ssl crt" in self.balancers["lb1"].check_output("cat /etc/haproxy/haproxy.cfg") else "app_hosts"

    def whole(self) -> bool:
        """Say whether all is well: every app host serves, and is up at both balancers, of which one has the address."""
        assert self.active()
        assert [self.servers(name) for name in BALANCERS] == [dict.fromkeys(self.app_hosts, "UP")] * len(BALANCERS)
        assert [len(processes(host, "sample")) for host in self.app_hosts.values()] == [2] * len(self.app_hosts)
        assert self.serving() == set(self.app_hosts)
        return True

    def serving(self) -> set[str]:
        """Return the hosts whose answers clients of the floating address get.

        Under load some may be missing: one that has the most websockets, which count, gets nothing else for a while.
        """
        return {Site(self.address, NAME).get("/whoami").json["hostname"] for _ in range(24)}

    def themes(self) -> dict[str, str]:
        """Return the theme of the page that each app host serves, which is a setting of its release."""
        pages = {name: Site(address(host), NAME).get("/").body.decode() for name, host in self.app_hosts.items()}
        return {name: re.findall('data-theme="([a-z]+)"', page)[0] for name, page in pages.items()}

    def releases(self) -> dict[str, str]:
        """Return which release each app host serves."""
        sites = {name: Site(address(host), NAME) for name, host in self.app_hosts.items()}
        return {name: site.get("/healthz").json["release"] for name, site in sites.items()}

    def notes(self) -> str:
        """Return what was posted, wherever it got to."""
        return "\n".join(host.check_output(f"cat {NOTES} 2> /dev/null; true") for host in self.app_hosts.values())


class Traffic:
    """The clients, by scheme, and what is done to the fleet meanwhile."""

    def __init__(self, loads: dict[str, Load]) -> None:
        """Nothing is done yet."""
        self.loads = loads
        self.struck = 0.0
        self.lasting = 0.0

    def strike(self, blow: Callable[[], float], lasting: float = 0.0) -> None:
        """Do some harm in the midst of traffic, and watch for a while what comes of it.

        ``blow`` returns the moment of it. Until ``lasting`` seconds later requests are sent to what is no longer there.
        """
        time.sleep(BEFORE)
        self.struck, self.lasting = blow(), lasting
        time.sleep(AFTER)


#: What the scenario's fixture ``clients`` is: it keeps the site busy while something is done to the fleet.
Clients = Callable[..., AbstractContextManager[Traffic]]
