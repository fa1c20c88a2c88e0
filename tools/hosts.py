"""Boot real Debian hosts on this machine: systemd, sshd and an address each, for the demo and the tests.

A fleet is a set of hosts that see each other: one bridge, one /24 with a way out (nftables masquerading), one key for SSH.
Its name belongs to this clone; the fleets of other clones have bridges, networks and directories of their own.

A host is a root file system in which systemd-nspawn boots Debian's own systemd: no container engine, no image registry.
What runs is told by its control group and by nothing else, so no stale process id can mislead: a host whose group is empty
is powered off, and `up` boots it again, after a reboot of the machine, too.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from tools.packages import ToolError, as_root, install, run, say
from tools.rootfs import KEYRING, RELEASES, cached, locked, machine_recipe

CLONE = Path(__file__).resolve().parent.parent
STATE = Path("/var/lib/funnel-hosts")
LOCK = Path("/run/funnel-hosts.lock")
CGROUP = Path("/sys/fs/cgroup")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
NETWORKS = ipaddress.IPv4Network("10.213.0.0/16")
PACKAGES = ("debian-archive-keyring", "iproute2", "mmdebstrap", "nftables", "openssh-client", "systemd-container")
BOOT_TIMEOUT = 90.0  # seconds; a host takes two to five on an idle machine
# systemd-nspawn ends with 133 when the host wants to reboot. Its own control group tells what belongs to the host.
BOOT_LOOP = 'echo $$ >"$0/cgroup.procs" && while systemd-nspawn "$@"; [ $? -eq 133 ]; do :; done'
NFT_TABLE = """
table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr {subnet} ip daddr != {subnet} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter
    ip saddr {subnet} tcp flags syn tcp option maxseg size set rt mtu
  }}
}}
"""
