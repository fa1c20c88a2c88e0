"""Boot real Debian hosts on this machine, with systemd, sshd and an address each, for the demo and the tests.

A fleet is a set of hosts that see each other: one bridge, one /24 with a way out, one SSH key. Its name belongs to this
clone: a fleet of the same name in another clone has a bridge, a network and a directory of its own.

A host is a root file system in which systemd-nspawn boots Debian's own systemd; no container engine, no image registry.
Whether it runs is read from its control group alone, never from a process id that may be stale. A host that does not run
(the machine was rebooted, say) is one that is powered off: `up` boots it again, `down` removes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path

from tools.packages import ToolError, as_root, install, run, say
from tools.rootfs import RELEASES, cached, locked, machine_recipe

CLONE = Path(__file__).resolve().parent.parent
STATE = Path("/var/lib/funnel-hosts")
LOCK = Path("/run/funnel-hosts.lock")
CGROUP = Path("/sys/fs/cgroup")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = IPv4Network("10.213.0.0/16")
PACKAGES = ("debian-archive-keyring", "iproute2", "mmdebstrap", "nftables", "openssh-client", "systemd-container")
BOOT_TIMEOUT = 90.0  # seconds; two to five are usual
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
# systemd-nspawn ends with 133 when the host wants to be booted again.
BOOT_LOOP = 'echo $$ > "$0/cgroup.procs" && while systemd-nspawn "$@"; [ $? -eq 133 ]; do :; done'
# The links of many machines are narrower than the bridge: without the clamp, answers larger than they carry are lost.
NFT = """
table ip {table}
delete table ip {table}
table ip {table} {{
    chain out {{
        type nat hook postrouting priority srcnat
        ip saddr {network} ip daddr != {network} masquerade
    }}
    chain clamp {{
        type filter hook forward priority filter
        ip saddr {network} tcp flags syn tcp option maxseg size set rt mtu
    }}
}}
"""


@dataclass(frozen=True)
class Host:
    """A host of a fleet: its name, the code name of its Debian release and its IPv4 address."""

    name: str
    release: str
    address: str


def parse_wish(text: str) -> tuple[str, str | None]:
    """Parse `NAME[:RELEASE]` into the name and the release's code name; a release may be given by its number, too."""
    name, _, release = text.partition(":")
    code_names = {number: code_name for code_name, number in RELEASES.items()}
    release = code_names.get(release, release)
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise argparse.ArgumentTypeError(f"{name!r} is not a host name of lower-case letters, digits and hyphens")
    if release and release not in RELEASES:
        known = ", ".join(f"{code_name} ({number})" for code_name, number in RELEASES.items())
        raise argparse.ArgumentTypeError(f"Debian {release!r} is not known: {known}")
    return name, release or None


def free_network(taken: Iterable[IPv4Network], first: int) -> IPv4Network:
    """Return the first /24 of `NETWORK` that overlaps none of `taken`, starting at number `first` and going round.

    A route wider than `NETWORK` takes nothing: a /24 is more specific. Raises `ToolError` if every one is taken.
    """
    within = [network for network in taken if network.subnet_of(NETWORK)]
    candidates = list(NETWORK.subnets(new_prefix=24))
    start = first % len(candidates)
    for candidate in candidates[start:] + candidates[:start]:
        if not any(candidate.overlaps(network) for network in within):
            return candidate
    raise ToolError(f"every /24 of {NETWORK} is in use on this machine: end a fleet, or free one")


def reachable_resolvers(resolv_conf: str) -> str:
    """Return a resolv.conf without the name servers that only the machine itself can reach (127.0.0.0/8, ::1)."""
    lines = [line for line in resolv_conf.splitlines() if not re.match(r"nameserver\s+(127\.|::1)", line)]
    return "".join(f"{line}\n" for line in lines if line.startswith(("nameserver", "search", "options")))


def configuration(host: Host, fleet: Iterable[Host], network: IPv4Network) -> dict[str, str]:
    """Return the files, by path below the root, that make a root file system a host of its fleet."""
    names = "".join(f"{other.address} {other.name}\n" for other in fleet)
    return {
        "etc/hostname": f"{host.name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{names}",
        "etc/systemd/network/10-host0.network": (
            f"[Match]\nName=host0\n\n[Network]\nAddress={host.address}/{network.prefixlen}\nGateway={network[1]}\n"
            "IPv6AcceptRA=no\nLinkLocalAddressing=no\n"
        ),
    }


def machine_files() -> dict[str, str]:
    """Return the files by which a host reaches what this machine reaches: its resolver and its package index.

    Raises `ToolError` if the resolver answers this machine alone.
    """
    candidates = [Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")]
    texts = [reachable_resolvers(path.read_text()) for path in candidates if path.exists()]
    resolvers = next((text for text in texts if "nameserver" in text), None)
    if resolvers is None:
        raise ToolError("the hosts would have no resolver: every nameserver in /etc/resolv.conf is this machine itself")
    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = os.environ.get("PIP_INDEX_URL") or subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    pip_conf = "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"
    return {
        "etc/resolv.conf": resolvers,
        "etc/pip.conf": pip_conf + (f"index-url = {index.strip()}\n" if index.strip() else ""),
    }


class Fleet:
    """The hosts of one name in this clone, their network and what is kept of them on disk."""

    def __init__(self, name: str) -> None:
        """Look a fleet up; one that does not exist has no hosts."""
        digest = hashlib.sha256(f"{CLONE}:{name}".encode()).hexdigest()[:8]
        self.number = int(digest, 16)
        self.mark = f"fh-{digest}"  # names its bridge (at most 15 characters), its nftables table and its control group
        self.directory = STATE / f"{name}-{digest}"
        self.lock = Path(f"/run/funnel-hosts-{digest}.lock")
        self.key = self.directory / "id_ed25519"
        self.known_hosts = self.directory / "known_hosts"
        self.network: IPv4Network | None = None
        self.hosts: dict[str, Host] = {}
        self.load()

    def load(self) -> None:
        """Read what is on disk, once more where another process may have changed it."""
        path = self.directory / "fleet.json"
        state = json.loads(path.read_text()) if path.exists() else {"network": None, "hosts": []}
        self.network = IPv4Network(state["network"]) if state["network"] else None
        self.hosts = {host["name"]: Host(**host) for host in state["hosts"]}

    def save(self) -> None:
        """Write to disk what `load` reads."""
        state = {"network": str(self.network), "hosts": [asdict(host) for host in self.hosts.values()]}
        partial = self.directory / "fleet.json.partial"
        partial.write_text(json.dumps(state, indent=2))
        partial.rename(self.directory / "fleet.json")

    def root(self, name: str) -> Path:
        """Return the root file system of a host."""
        return self.directory / "hosts" / name / "root"

    def running(self, name: str) -> bool:
        """Tell whether a host has processes."""
        events = CGROUP / self.mark / name / "cgroup.events"
        return events.exists() and "populated 1" in events.read_text()

    @property
    def ssh_options(self) -> list[str]:
        """The options of ssh that take a user to a host, and to no other machine at its address."""
        return ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes"]

    def ssh(self, host: Host, command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        ssh = ["ssh", "-F", "none", "-i", str(self.key), *self.ssh_options]
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR"]
        return subprocess.run(
            [*ssh, *options, f"root@{host.address}", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def up(self, wishes: Sequence[tuple[str, str | None]]) -> None:
        """Boot the wished hosts; one that runs is left alone. If anything fails, what this call made is removed.

        Raises `ToolError` if a host is there with another release, or cannot be made or booted.
        """
        for name, release in wishes:
            if release and name in self.hosts and self.hosts[name].release != release:
                raise ToolError(f"{name} is there with Debian {self.hosts[name].release}: take it down first")
        new = {name: release or "bookworm" for name, release in wishes if name not in self.hosts}
        started = time.monotonic()
        try:
            with locked(LOCK):
                self._connect()
            self._create(new)
            booted = [self.hosts[name] for name, _ in wishes if not self.running(name)]
            for host in booted:
                self._boot(host)
            for name, _ in wishes:
                host = self.hosts[name]
                self._wait(host)
                seconds = f" after {time.monotonic() - started:.1f} s" if host in booted else ""
                say(f"{name}: Debian {RELEASES[host.release]} ({host.release}) runs at {host.address}{seconds}")
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self.down(new)
            raise

    def down(self, names: Iterable[str]) -> None:
        """Remove hosts at once, and with the last of them every trace of the fleet."""
        for name in names:
            self._kill(CGROUP / self.mark / name)
            self._remove(self.root(name).parent)
            if self.hosts.pop(name, None):
                self.save()
                say(f"{name}: removed")
        if self.hosts:
            return
        self._kill(CGROUP / self.mark)
        with locked(LOCK):
            if self._bridged():
                run(["ip", "link", "delete", self.mark], "remove the bridge")
            run(["nft", f"table ip {self.mark}; delete table ip {self.mark}"], "remove the table of nftables")
            self._remove(self.directory)
            self._forward(wanted=any(STATE.glob("*/fleet.json")))

    def reboot(self, name: str) -> None:
        """Have a host reboot itself, and wait until it runs again. Raises `ToolError` if it does not."""
        host = self.hosts[name]
        boot_id = f"cat {BOOT_ID}"
        before = self.ssh(host, boot_id, BOOT_TIMEOUT).stdout
        self.ssh(host, "systemctl reboot", BOOT_TIMEOUT)
        deadline = time.monotonic() + BOOT_TIMEOUT
        while (now := self.ssh(host, boot_id, BOOT_TIMEOUT)).returncode != 0 or now.stdout == before:
            if time.monotonic() > deadline or not before:
                raise ToolError(f"{name} did not reboot: see {self._log(host)}")
            time.sleep(0.2)
        self._wait(host)

    def _connect(self) -> None:
        """Make sure of the fleet's network: its range, bridge, way out, and SSH key."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "hosts").mkdir(mode=0o700, exist_ok=True)
        if self.network is None:
            routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"], "read the routes"))
            taken = [route["dst"] for route in routes if route["dst"] != "default"]
            taken += [json.loads(path.read_text())["network"] for path in STATE.glob("*/fleet.json")]
            self.network = free_network(map(IPv4Network, taken), self.number)
            self.save()
        self._forward(wanted=True)
        if not self._bridged():
            run(["ip", "link", "add", self.mark, "type", "bridge"], "make a network bridge")
        gateway = f"{self.network[1]}/{self.network.prefixlen}"
        run(["ip", "address", "replace", gateway, "dev", self.mark], "give the bridge an address")
        run(["ip", "link", "set", self.mark, "up"], "start the bridge")
        run(["nft", "-f", "-"], "set up masquerading", stdin=NFT.format(table=self.mark, network=self.network))
        if not self.key.exists():
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.mark, "-f", str(self.key)]
            run(keygen, "make an SSH key")
        # ssh takes a key only if it belongs to the user who runs it.
        os.chown(self.key, int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0")))

    def _create(self, new: dict[str, str]) -> None:
        """Make root file systems for new hosts, given as name to release, and tell the whole fleet of them."""
        if not new or self.network is None:
            return
        shared = machine_files()
        shared["root/.ssh/authorized_keys"] = self.key.with_suffix(".pub").read_text()
        releases = sorted(set(new.values()))
        taken = {host.address for host in self.hosts.values()}
        free = (str(address) for address in list(self.network)[11:-1] if str(address) not in taken)
        hosts = [Host(name, release, next(free)) for name, release in new.items()]
        with ThreadPoolExecutor() as pool:
            archives = dict(zip(releases, pool.map(cached, map(machine_recipe, releases)), strict=True))
            list(pool.map(lambda host: self._extract(host, archives[host.release], shared), hosts))
        self.hosts |= {host.name: host for host in hosts}
        for host in self.hosts.values():
            self._write(host, configuration(host, self.hosts.values(), self.network))
        keys = {host.address: self.root(host.name) / f"{HOST_KEY}.pub" for host in self.hosts.values()}
        self.known_hosts.write_text("".join(f"{address} {key.read_text()}" for address, key in keys.items()))
        self.save()

    def _extract(self, host: Host, archive: Path, shared: dict[str, str]) -> None:
        root = self.root(host.name)
        self._remove(root.parent)
        root.mkdir(parents=True)
        tar = ["tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
        run([*tar, f"--file={archive}", f"--directory={root}"], f"make the root file system of {host.name}")
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", str(root / HOST_KEY)]
        run(keygen, "make an SSH host key")
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        self._write(host, shared)

    def _write(self, host: Host, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.root(host.name) / name
            path.unlink(missing_ok=True)
            path.write_text(text)

    def _boot(self, host: Host) -> None:
        cgroup = CGROUP / self.mark / host.name
        cgroup.mkdir(parents=True, exist_ok=True)
        nspawn = [f"--directory={self.root(host.name)}", f"--machine={self.mark[3:]}-{host.name}"]
        nspawn += ["--boot", "--quiet", "--keep-unit", "--register=no", "--settings=no", "--resolv-conf=off"]
        nspawn += [f"--hostname={host.name}", f"--network-bridge={self.mark}"]
        with self._log(host).open("a") as log:
            subprocess.Popen(
                ["sh", "-c", BOOT_LOOP, str(cgroup), *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, host: Host) -> None:
        """Wait until systemd says that the host runs. Raises `ToolError` if it does not, or not in time."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not self._answers(host):
            if time.monotonic() > deadline:
                raise ToolError(f"{host.name} did not answer SSH within {BOOT_TIMEOUT:.0f} s: see {self._log(host)}")
            time.sleep(0.1)
        try:
            state = self.ssh(host, "systemctl is-system-running --wait", BOOT_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise ToolError(f"{host.name} was not booted within {BOOT_TIMEOUT:.0f} s: see {self._log(host)}") from error
        if state.returncode != 0:
            failed = self.ssh(host, "systemctl list-units --failed --plain --no-legend", BOOT_TIMEOUT).stdout.split("\n")
            why = "; ".join(filter(None, failed)) or state.stderr.strip()
            raise ToolError(f"{host.name} is {state.stdout.strip() or 'not reached'}: {why}")

    @staticmethod
    def _answers(host: Host) -> bool:
        try:
            socket.create_connection((host.address, 22), timeout=1).close()
        except OSError:
            return False
        return True

    def _log(self, host: Host) -> Path:
        return self.directory / "hosts" / host.name / "console.log"

    def _bridged(self) -> bool:
        return Path("/sys/class/net", self.mark).exists()

    @staticmethod
    def _remove(directory: Path) -> None:
        run(["rm", "--recursive", "--force", "--one-file-system", str(directory)], f"remove {directory}")

    @staticmethod
    def _kill(cgroup: Path) -> None:
        """End every process of a control group at once, and remove it."""
        if not cgroup.exists():
            return
        (cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 10
        while "populated 1" in (cgroup / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise ToolError(f"processes of {cgroup} survived SIGKILL: see its cgroup.procs")
            time.sleep(0.02)
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()

    @staticmethod
    def _forward(*, wanted: bool) -> None:
        """Have the kernel forward packets, and put that back if it was this tool that changed it since the last boot."""
        changed = STATE / "ip_forward"
        if wanted and IP_FORWARD.read_text().strip() == "0":
            IP_FORWARD.write_text("1")
            changed.write_text(BOOT_ID.read_text())
        elif not wanted:
            if changed.exists() and changed.read_text() == BOOT_ID.read_text():
                IP_FORWARD.write_text("0")
            shutil.rmtree(STATE, ignore_errors=True)


def inventory(fleet: Fleet, group: str) -> dict[str, object]:
    """Return what an inventory script of Ansible prints: the fleet's hosts in a group, with how to reach each."""
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(fleet.key),
        "ansible_ssh_common_args": " ".join(fleet.ssh_options),
    }
    hosts = {host.name: {"ansible_host": host.address} | variables for host in fleet.hosts.values()}
    return {group: {"hosts": list(hosts)}, "_meta": {"hostvars": hosts}}


def instances(fleet: Fleet) -> list[dict[str, str]]:
    """Return the fleet's hosts in the words of Molecule's instance_config.yml."""
    return [
        {
            "instance": host.name,
            "release": host.release,
            "address": host.address,
            "user": "root",
            "port": "22",
            "identity_file": str(fleet.key),
            "state": "running" if fleet.running(host.name) else "off",
        }
        for host in fleet.hosts.values()
    ]


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--fleet", default="demo", help="the fleet that is meant (default: demo)")
    parser = argparse.ArgumentParser(prog="python3 -m tools.hosts", description="Debian hosts for the demo and the tests")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="boot hosts; those that run are left alone")
    up.add_argument("wishes", nargs="+", type=parse_wish, metavar="NAME[:RELEASE]", help=f"one of {', '.join(RELEASES)}")
    listing = commands.add_parser("list", parents=[common], help="tell name, address, release and state of each host")
    listing.add_argument("--json", action="store_true", help="in the words of Molecule's instance_config.yml")
    reboot = commands.add_parser("reboot", parents=[common], help="reboot a host and wait until it runs")
    reboot.add_argument("name", metavar="NAME")
    down = commands.add_parser("down", parents=[common], help="remove hosts, and with the last one the fleet's network")
    down.add_argument("names", nargs="*", metavar="NAME")
    down.add_argument("--all", action="store_true", help="every host of the fleet, and what a broken run left")
    inventory_ = commands.add_parser("inventory", parents=[common], help="print what Ansible wants of an inventory script")
    inventory_.add_argument("--group", default="app_hosts", help="the group of the hosts (default: app_hosts)")
    arguments = parser.parse_args(argv)
    if arguments.command == "down" and bool(arguments.names) == arguments.all:
        down.error("name the hosts, or say --all")
    return arguments


def enter(argv: Sequence[str]) -> None:
    """Become root in a mount namespace, so that whatever is mounted for the hosts is gone with the last of them."""
    install(PACKAGES)
    to = "boot hosts"
    unshare = [*as_root(to), "unshare", "--mount", "--propagation=slave"]
    run([*unshare, "true"], to)
    os.chdir(CLONE)
    environment = [f"{name}={os.environ[name]}" for name in ("PIP_INDEX_URL",) if name in os.environ]
    python = [sys.executable, "-m", "tools.hosts", "--inside", *argv]
    os.execvp(unshare[0], [*unshare, "env", *environment, *python])


def perform(arguments: argparse.Namespace) -> None:
    """Do what the command line says, as root in a mount namespace of its own."""
    # systemd-nspawn wants control groups of version 2, and keeps notes that no other process is to see.
    run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUP)], "mount control groups of version 2")
    nspawn = Path("/run/systemd/nspawn")
    nspawn.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "tmpfs", str(nspawn)], "mount a tmpfs")
    fleet = Fleet(arguments.fleet)
    with locked(fleet.lock):
        fleet.load()
        named = [arguments.name] if arguments.command == "reboot" else getattr(arguments, "names", [])
        if unknown := [name for name in named if name not in fleet.hosts]:
            raise ToolError(f"no host {unknown[0]} in the fleet {arguments.fleet}; it has: {', '.join(fleet.hosts) or 'none'}")
        if arguments.command == "up":
            fleet.up(arguments.wishes)
        elif arguments.command == "reboot":
            fleet.reboot(arguments.name)
        elif arguments.command == "down":
            fleet.down(arguments.names or list(fleet.hosts))
        elif arguments.json:
            sys.stdout.write(json.dumps(instances(fleet), indent=2) + "\n")
        else:
            for host in instances(fleet):
                sys.stdout.write("{instance:16} {address:16} {release:10} {state}\n".format(**host))


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`, and return the exit code: 0, or 1 with one line on standard error."""
    arguments = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if arguments.command == "inventory":
            sys.stdout.write(json.dumps(inventory(Fleet(arguments.fleet), arguments.group), indent=2) + "\n")
        elif arguments.inside:
            perform(arguments)
        else:
            enter(argv)
    except ToolError as error:
        say(f"hosts: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
