"""Faults, injected while an operation runs. During a quiet fault no request may fail; during others some may."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.host import Host
from tests.support.ansible_server import Run

#: Drops the packets of SSH connections to a host, on this machine.
PARTITION = """
table inet {table} {{
    chain out {{ type filter hook output priority filter; ip daddr {address} tcp dport 22 drop; }}
    chain in {{ type filter hook input priority filter; ip saddr {address} tcp sport 22 drop; }}
}}
"""

#: Kills one of the processes that supervisord runs.
KILL_PROCESS = """
import os, subprocess, sys
status = subprocess.run(["supervisorctl", "status"], stdout=subprocess.PIPE, text=True).stdout
rows = [line.split() for line in status.splitlines()]
pids = sorted(int(row[3].rstrip(",")) for row in rows if row[1] == "RUNNING")
if pids:
    os.kill(pids[int(sys.argv[1]) % len(pids)], 9)
print("{}")
"""

#: Moves the releases to a file system without free space.
FILL_DISK = """
set -e
mkdir /run/full
mount -t tmpfs -o mode=711 full /run/full
cp -a /srv/sample/releases/. /run/full
mount -o remount,size=$(($(df --output=used -k /run/full | tail -n 1)))k /run/full
mount --bind /run/full /srv/sample/releases
"""
FREE_DISK = "umount /srv/sample/releases /run/full && rmdir /run/full"


@dataclass(frozen=True)
class Fault:
    """A fault: how it is injected into the host and the runs of the operation, and ended."""

    inject: Callable[[Host, Sequence[Run], Random], object]
    weight: int = 2
    heal: Callable[[Host], object] = lambda _: None
    quiet: bool = False
    #: Whether it precedes the operation, which may fail on this host.
    first: bool = False
    #: Whether it ends the operation.
    ends: bool = False
    #: Whether its victim is a load balancer.
    at_balancer: bool = False


def cut_table(host: Host) -> str:
    """Return the name of the table of `cut_network`."""
    return f"{host.fleet.mark}-cut-{host.name}"


def cut_network(host: Host, _runs: Sequence[Run], _random: Random) -> None:
    """Drop the packets between the controller and sshd."""
    rules = PARTITION.format(table=cut_table(host), address=host.address)
    subprocess.run(["nft", "-f", "-"], input=rules, check=True, text=True, timeout=20)


def heal_network(host: Host) -> None:
    """End `cut_network`."""
    subprocess.run(["nft", "delete", "table", "inet", cut_table(host)], check=False, capture_output=True, timeout=20)


def kill_controller(_host: Host, runs: Sequence[Run], _random: Random) -> None:
    """Kill the runs and their processes."""
    for run in runs:
        run.kill()


def power_cut(host: Host, _runs: Sequence[Run], _random: Random) -> None:
    """Cut the power of the host and boot it."""
    host.power("off")
    host.power("up")


FAULTS = {
    "controller killed": Fault(kill_controller, 4, quiet=True, ends=True),
    "network of the controller cut": Fault(cut_network, heal=heal_network, quiet=True),
    "nginx reloaded": Fault(lambda host, _runs, _random: host.run("systemctl", "reload", "nginx"), quiet=True),
    "disk full": Fault(
        lambda host, _runs, _random: host.run("sh", "-c", FILL_DISK),
        heal=lambda host: host.run("sh", "-c", FREE_DISK),
        quiet=True,
        first=True,
    ),
    "Tornado killed": Fault(lambda host, _runs, random: host.python(KILL_PROCESS, str(random.randrange(6))), 3),
    "nginx killed": Fault(lambda host, _runs, _random: host.run("systemctl", "kill", "--signal=KILL", "nginx")),
    "nginx's master killed": Fault(
        lambda host, _runs, _random: host.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "nginx"), 1
    ),
    "supervisord killed": Fault(
        lambda host, _runs, _random: host.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "supervisor")
    ),
    "reboot": Fault(lambda host, _runs, _random: host.power("reboot"), 1),
    "power cut": Fault(power_cut),
    "host off": Fault(lambda host, _runs, _random: host.power("off"), heal=lambda host: host.power("up"), first=True),
    "HAProxy reloaded": Fault(
        lambda host, _runs, _random: host.run("systemctl", "reload", "haproxy"), quiet=True, at_balancer=True
    ),
    "HAProxy killed": Fault(
        lambda host, _runs, _random: host.run("systemctl", "kill", "--signal=KILL", "haproxy"), at_balancer=True
    ),
    "keepalived killed": Fault(
        lambda host, _runs, _random: host.run("systemctl", "kill", "--signal=KILL", "keepalived"), 1, at_balancer=True
    ),
    "network of the controller cut at a load balancer": Fault(cut_network, 1, heal=heal_network, quiet=True, at_balancer=True),
    "power cut of a load balancer": Fault(power_cut, at_balancer=True),
    "load balancer off": Fault(
        lambda host, _runs, _random: host.power("off"), heal=lambda host: host.power("up"), first=True, at_balancer=True
    ),
}


def weights(*, balancers: bool) -> dict[str, int]:
    """Return the weights of the faults on a fleet with or without load balancers."""
    return {name: fault.weight for name, fault in FAULTS.items() if balancers or not fault.at_balancer}
