"""Fleets of Debian hosts on this machine, each host with its own systemd, sshd and address.

A fleet is a set of connected hosts: one bridge, one /24 with outbound access, one SSH key. Its name belongs to this clone: fleets
of the same name in other clones have their own bridges, networks and directories.

A host is a root file system in which systemd-nspawn boots Debian's systemd, without a container engine or image registry: an
overlay of its own disk over the layers of a bare release and of a snapshot, mounted as long as the host runs. Its
state is read from its control group, never from a process ID, which may be stale. A host that does not run (for example after a
reboot of the machine) counts as powered off: `up` boots it, `down` removes it.

All of this requires root in a mount namespace in which `CGROUP` is of version 2: see tools/hosts.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path

from tools import snapshots
from tools.packages import ToolError, run, say
from tools.rootfs import RELEASES, cached, locked, machine_recipe, remove, remove_unused
from tools.snapshots import Snapshot

CLONE = Path(__file__).resolve().parent.parent
STATE = Path("/var/lib/funnel-hosts")
LOCK = Path("/run/funnel-hosts.lock")
CGROUP = Path("/sys/fs/cgroup")
# Settings of the shared kernel that the hosts require: packet forwarding, enough inotify instances for all hosts, and the
# protection of links that Debian's systemd enables.
KERNEL = {
    Path("/proc/sys/net/ipv4/ip_forward"): 1,
    Path("/proc/sys/fs/inotify/max_user_instances"): 1024,
    Path("/proc/sys/fs/protected_symlinks"): 1,
    Path("/proc/sys/fs/protected_hardlinks"): 1,
}
SAVED_KERNEL = STATE / "kernel.json"  # their previous values, and the boot in which a fleet changed them
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = IPv4Network("10.213.0.0/16")
BOOT_TIMEOUT = 90.0  # seconds; two to five are usual
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
# The directories in which each host has files of its own, and their modes, which hide those of the layers below.
DIRECTORIES = {
    "etc": 0o755,
    "etc/ssh": 0o755,
    "etc/systemd": 0o755,
    "etc/systemd/network": 0o755,
    "root": 0o700,
    "root/.ssh": 0o700,
}
# The options of the overlay: programs rename directories of lower layers, and need not wait until files are on the disk of this
# machine, whose memory outlives a host. The kernel marks a volatile overlay in its work directory and mounts it only once.
OVERLAY = "redirect_dir=on,volatile"
# systemd-nspawn exits with 133 when the host reboots. Interrupted connections would keep the network link of the host, and its
# name, for a minute.
BOOT_LOOP = """
echo $$ > "$1/cgroup.procs" || exit
rm -rf "$2/work"
mkdir "$2/work"
mount -t overlay -o "$3,upperdir=$2/disk,workdir=$2/work" overlay "$2/root" || exit
link=$4
shift 4
while ip link delete "$link" 2> /dev/null; systemd-nspawn "$@"; [ $? -eq 133 ]; do :; done
"""
# Many machines have a smaller MTU than the bridge: without clamping, larger packets are lost.
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
    """A host of a fleet: name, code name of its release, IPv4 address, mounted directories of this machine, and lower layers."""

    name: str
    release: str
    address: str
    binds: Sequence[str] = ()
    layers: Sequence[str] = ()


def free_network(taken: Iterable[IPv4Network], first: int) -> IPv4Network:
    """Return the first /24 of `NETWORK` that overlaps none of `taken`, starting at number `first` and wrapping around.

    Routes wider than `NETWORK` are ignored: a /24 is more specific. Raises `ToolError` if none is free.
    """
    within = [network for network in taken if network.subnet_of(NETWORK)]
    candidates = list(NETWORK.subnets(new_prefix=24))
    start = first % len(candidates)
    for candidate in candidates[start:] + candidates[:start]:
        if not any(candidate.overlaps(network) for network in within):
            return candidate
    raise ToolError(f"every /24 of {NETWORK} is in use on this machine: remove a fleet, or free a network")


def reachable_resolvers(resolv_conf: str) -> str:
    """Return a resolv.conf without the name servers on the loopback addresses (127.0.0.0/8, ::1)."""
    lines = [line for line in resolv_conf.splitlines() if not re.match(r"nameserver\s+(127\.|::1)", line)]
    return "".join(f"{line}\n" for line in lines if line.startswith(("nameserver", "search", "options")))


def own_files(host: Host, network: IPv4Network) -> dict[str, str]:
    """Return the files of a host with its name and address, by path below the root."""
    return {
        "etc/hostname": f"{host.name}\n",
        "etc/systemd/network/10-host0.network": (
            f"[Match]\nName=host0\n\n[Network]\nAddress={host.address}/{network.prefixlen}\nGateway={network[1]}\n"
            "IPv6AcceptRA=no\nLinkLocalAddressing=no\n"
        ),
    }


def shared_files() -> dict[str, str]:
    """Return the files with the resolver and the package index of this machine.

    Raises `ToolError` if only this machine can use the resolver.
    """
    candidates = [Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")]
    texts = [reachable_resolvers(path.read_text()) for path in candidates if path.exists()]
    resolvers = next((text for text in texts if "nameserver" in text), None)
    if resolvers is None:
        raise ToolError("the hosts have no resolver: every nameserver in /etc/resolv.conf is a loopback address of this machine")
    pip = ConfigParser(interpolation=None, strict=False)
    pip.read(["/etc/pip.conf", Path("~/.pip/pip.conf").expanduser(), Path("~/.config/pip/pip.conf").expanduser()])
    index = os.environ.get("PIP_INDEX_URL") or pip.get("global", "index-url", fallback="")
    return {
        "etc/resolv.conf": resolvers,
        "etc/pip.conf": "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" + (f"index-url = {index}\n" if index else ""),
    }


class Fleet:
    """The hosts of one fleet of this clone, with their network and files."""

    def __init__(self, name: str) -> None:
        """Load the fleet; a fleet that does not exist has no hosts."""
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
        """Read the state from disk, where another process may have changed it."""
        path = self.directory / "fleet.json"
        state = json.loads(path.read_text()) if path.exists() else {"network": None, "hosts": []}
        self.network = IPv4Network(state["network"]) if state["network"] else None
        self.hosts = {host["name"]: Host(**host) for host in state["hosts"]}

    def save(self) -> None:
        """Write the state to disk."""
        state = {"network": self.network and str(self.network), "hosts": [asdict(host) for host in self.hosts.values()]}
        partial = self.directory / "fleet.json.partial"
        partial.write_text(json.dumps(state, indent=2))
        partial.rename(self.directory / "fleet.json")

    def files(self, name: str) -> Path:
        """Return the directory of a host: its disk, the mount point of its root file system, and its console log."""
        return self.directory / "hosts" / name

    def disk(self, name: str) -> Path:
        """Return the disk of a host: the upper layer of its root file system, with its own and its changed files."""
        return self.files(name) / "disk"

    def running(self, name: str) -> bool:
        """Return whether a host has processes."""
        events = CGROUP / self.mark / name / "cgroup.events"
        return events.exists() and "populated 1" in events.read_text()

    @property
    def ssh_options(self) -> list[str]:
        """The options of ssh that verify the key of a host."""
        return ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes"]

    def ssh_command(self, host: Host, *command: str) -> list[str]:
        """Return the command line that runs a command, or a shell, on a host as root."""
        options = ["-F", "none", "-i", str(self.key), *self.ssh_options, "-o", "BatchMode=yes"]
        return ["ssh", *options, "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5", f"root@{host.address}", *command]

    def ssh(self, host: Host, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root; the return code is 255 if the host does not answer within `BOOT_TIMEOUT`."""
        argv = self.ssh_command(host, command)
        try:
            return subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=BOOT_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(argv, 255, "", f"no answer within {BOOT_TIMEOUT:.0f} s")

    def up(self, requests: Mapping[str, str | None], binds: Sequence[str] = (), snapshot: str | None = None) -> None:
        """Boot hosts, given as name to release; running hosts are not touched.

        New hosts have the directories `binds` of this machine, at the same paths. They start from the `snapshot` of a host
        with their name, if it has one. Raises `ToolError` if a host exists with another release, or cannot be created or
        booted; new hosts are then removed.
        """
        found = snapshots.find(CLONE, snapshot) if snapshot else {}
        for name, release in requests.items():
            if release and name in self.hosts and self.hosts[name].release != release:
                raise ToolError(f"{name} exists with {RELEASES[self.hosts[name].release]}: remove it first, with `down`")
            if release and name in found and found[name].release != release:
                raise ToolError(f"the snapshot {snapshot} of {name} has {RELEASES[found[name].release]}")
        new = {name: release for name, release in requests.items() if name not in self.hosts}
        started = time.monotonic()
        try:
            with locked(LOCK):
                self._connect()
            self._create(new, binds, found)
            booted = [name for name in requests if not self.running(name)]
            for name in booted:
                self._boot(self.hosts[name])
            for name in requests:
                host = self.hosts[name]
                self._wait(host)
                seconds = f" after {time.monotonic() - started:.1f} s" if name in booted else ""
                say(f"{name}: {RELEASES[host.release]} ({host.release}) runs at {host.address}{seconds}")
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            try:
                self.down(list(new))
            except ToolError as error:
                say(f"hosts: {error}")
            raise

    def down(self, names: Sequence[str]) -> None:
        """Remove hosts immediately, and with the last of them all files and settings of the fleet."""
        for name in names:
            self._kill(CGROUP / self.mark / name)
            if name in self.hosts:
                self._unplug(self.hosts[name])
        self.hosts = {name: host for name, host in self.hosts.items() if name not in names}
        if self.directory.exists():  # an interrupted run may leave a disk without a host, but no host without a disk
            self._write_names()
            self.save()
        with ThreadPoolExecutor() as pool:
            list(pool.map(remove, map(self.files, names)))
        if self.hosts:
            return
        self._kill(CGROUP / self.mark)
        with locked(LOCK):
            if self._has_bridge():  # the bridge is created first and removed last
                run(["nft", f"table ip {self.mark}; delete table ip {self.mark}"], "remove the table of nftables")
                run(["ip", "link", "delete", self.mark], "remove the bridge")
            remove(self.directory)
            if not any(STATE.glob("*/fleet.json")):
                self._restore_kernel()
                remove(STATE)

    def off(self, name: str) -> None:
        """Cut the power of a host: it stops immediately, and its disk stays."""
        self._unplug(self.hosts[name])
        self._kill(CGROUP / self.mark / name)

    def reboot(self, name: str) -> None:
        """Reboot a host, and wait until it runs again. Raises `ToolError` if it does not."""
        host = self.hosts[name]
        before = self.ssh(host, f"cat {BOOT_ID}; systemctl reboot").stdout
        if not before:
            raise ToolError(f"{name} does not answer: `up` boots a host that is off")
        deadline = time.monotonic() + BOOT_TIMEOUT
        while self.ssh(host, f"cat {BOOT_ID}").stdout in ("", before):
            if time.monotonic() > deadline:
                raise ToolError(f"{name} did not reboot within {BOOT_TIMEOUT:.0f} s: {self._last_console_line(host)}")
            time.sleep(0.1)
        self._wait(host)

    def snapshot(self, key: str, names: Sequence[str]) -> None:
        """Power hosts off, and turn them into snapshots with the name `key`, from which `up` starts new hosts.

        Raises `ToolError` if the snapshot exists, or a host does not power off.
        """
        if snapshots.directory(CLONE, key).exists():
            raise ToolError(f"the snapshot {key} exists: choose another name")
        for name in names:
            self.ssh(self.hosts[name], "systemctl poweroff")
        deadline = time.monotonic() + BOOT_TIMEOUT
        while on := list(filter(self.running, names)):
            if time.monotonic() > deadline:
                raise ToolError(f"{', '.join(on)} did not power off within {BOOT_TIMEOUT:.0f} s")
            time.sleep(0.1)
        hosts = {name: self.hosts[name] for name in names}
        with locked(LOCK):
            disks = {name: (self.disk(name), Snapshot(host.release, host.layers)) for name, host in hosts.items()}
            snapshots.save(CLONE, key, disks)
            snapshots.remove_stale(CLONE, key, self._used_layers())
        self.down(names)

    @staticmethod
    def _used_layers() -> set[str]:
        """Return the layers of all hosts of this machine."""
        states = [json.loads(path.read_text()) for path in STATE.glob("*/fleet.json")]
        return {layer for state in states for host in state["hosts"] for layer in host.get("layers", [])}

    def _connect(self) -> None:
        """Set up the network of the fleet: address range, bridge, masquerading, and SSH key."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "hosts").mkdir(mode=0o700, exist_ok=True)
        if self.network is None:
            routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"], "read the routes"))
            taken = [route["dst"] for route in routes if route["dst"] != "default"]
            taken += [json.loads(path.read_text())["network"] for path in STATE.glob("*/fleet.json")]
            self.network = free_network(map(IPv4Network, taken), self.number)
            self.save()
        self._set_kernel()
        if not self._has_bridge():
            run(["ip", "link", "add", self.mark, "type", "bridge"], "create a network bridge")
        gateway = f"{self.network[1]}/{self.network.prefixlen}"
        run(["ip", "address", "replace", gateway, "dev", self.mark], "assign the bridge an address")
        run(["ip", "link", "set", self.mark, "up"], "start the bridge")
        run(["nft", "-f", "-"], "set up masquerading", stdin=NFT.format(table=self.mark, network=self.network))
        if not self.key.exists():
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.mark, "-f", str(self.key)]
            run(keygen, "create an SSH key")
        # ssh takes a key only if it belongs to the user who runs it.
        os.chown(self.key, int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0")))

    def _create(self, new: Mapping[str, str | None], binds: Sequence[str], found: Mapping[str, Snapshot]) -> None:
        """Create new hosts, given as name to release, from the snapshots `found` or bare, and add them to the fleet."""
        if not new or self.network is None:
            return
        shared = shared_files() | {"root/.ssh/authorized_keys": self.key.with_suffix(".pub").read_text()}
        bare = {name: release or "bookworm" for name, release in new.items() if name not in found}
        releases = sorted(set(bare.values()))
        with ThreadPoolExecutor() as pool:
            roots = dict(zip(releases, pool.map(cached, map(machine_recipe, releases)), strict=True))
        start = {name: found.get(name) or Snapshot(bare[name], [str(roots[bare[name]])]) for name in new}
        taken = {host.address for host in self.hosts.values()}
        free = (str(address) for address in list(self.network)[11:-1] if str(address) not in taken)
        hosts = [Host(name, start[name].release, next(free), binds, start[name].layers) for name in new]
        for host in hosts:
            files = shared | own_files(host, self.network)
            # A bare host gets its ID when it boots for the first time.
            self._format(host, files | ({"etc/machine-id": f"{uuid.uuid4().hex}\n"} if host.name in found else {}))
        self.hosts |= {host.name: host for host in hosts}
        self._write_names()
        self.save()
        with locked(LOCK):
            remove_unused(self._used_layers() | snapshots.layers())

    def _write_names(self) -> None:
        """Write the names of all hosts to their /etc/hosts, and their keys to known_hosts of this machine."""
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts.values())
        for host in self.hosts.values():
            self._write(host, {"etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{names}"})
        keys = {host.address: self.disk(host.name) / f"{HOST_KEY}.pub" for host in self.hosts.values()}
        self.known_hosts.write_text("".join(f"{address} {key.read_text()}" for address, key in keys.items()))

    def _format(self, host: Host, files: Mapping[str, str]) -> None:
        """Create the disk of a host with its own files."""
        remove(self.files(host.name))  # the remains of a killed run
        for path in (self.files(host.name) / "root", self.disk(host.name)):
            path.mkdir(parents=True)
        for name, mode in DIRECTORIES.items():
            (self.disk(host.name) / name).mkdir(mode=mode)
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", str(self.disk(host.name) / HOST_KEY)]
        run(keygen, "create an SSH host key")
        self._write(host, files)

    def _write(self, host: Host, files: Mapping[str, str]) -> None:
        """Write files of a host: into its mounted root file system, which other processes do not see, or to its disk."""
        root = self.disk(host.name)
        if self.running(host.name):
            loop = (CGROUP / self.mark / host.name / "cgroup.procs").read_text().split()[0]
            root = Path(f"/proc/{loop}/root{self.files(host.name)}/root")
        for name, text in files.items():
            path = root / name
            path.unlink(missing_ok=True)
            path.write_text(text)

    def _boot(self, host: Host) -> None:
        cgroup = CGROUP / self.mark / host.name
        cgroup.mkdir(parents=True, exist_ok=True)
        files = self.files(host.name)
        overlay = f"lowerdir={':'.join(host.layers)},{OVERLAY}"
        nspawn = [f"--directory={files / 'root'}", f"--machine={self._machine(host)}", f"--hostname={host.name}"]
        nspawn += ["--boot", "--quiet", "--keep-unit", "--register=no", "--settings=no", "--resolv-conf=off"]
        nspawn += [f"--network-bridge={self.mark}", *(f"--bind={path}" for path in host.binds)]
        with self._log(host).open("a") as log:
            unshare = ["unshare", "--mount", "--propagation=slave"]
            argv = [*unshare, "sh", "-c", BOOT_LOOP, "boot", str(cgroup), str(files), overlay, self._link(host), *nspawn]
            loop = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        while not self.running(host.name) and loop.poll() is None:
            time.sleep(0.01)

    def _wait(self, host: Host) -> None:
        """Wait until systemd reports that the host runs. Raises `ToolError` if it does not in time."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not self._answers(host):
            if time.monotonic() > deadline or not self.running(host.name):
                raise ToolError(f"{host.name} does not boot: {self._last_console_line(host)}")
            time.sleep(0.1)
        state = self.ssh(host, "systemctl is-system-running --wait")
        if state.returncode != 0:
            failed = self.ssh(host, "systemctl list-units --failed --plain --no-legend").stdout.strip()
            reason = failed.replace("\n", "; ") or state.stderr.strip()
            raise ToolError(f"{host.name} is {state.stdout.strip() or 'unreachable'}: {reason}")

    @staticmethod
    def _answers(host: Host) -> bool:
        try:
            socket.create_connection((host.address, 22), timeout=1).close()
        except OSError:
            return False
        return True

    def _log(self, host: Host) -> Path:
        return self.files(host.name) / "console.log"

    def _last_console_line(self, host: Host) -> str:
        lines = self._log(host).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "the console log is empty")

    def _machine(self, host: Host) -> str:
        """Return the name of the host on this machine, short enough for a network link with the prefix `vb-` (15 characters)."""
        return f"{self.mark[3:]}{host.address.rpartition('.')[2]}"

    def _link(self, host: Host) -> str:
        return f"vb-{self._machine(host)}"

    def _unplug(self, host: Host) -> None:
        """Remove the network link of a host, which may vanish by itself, or stay for a minute: see `BOOT_LOOP`."""
        subprocess.run(["ip", "link", "delete", self._link(host)], capture_output=True, check=False)

    def _has_bridge(self) -> bool:
        return Path("/sys/class/net", self.mark).exists()

    @staticmethod
    def _kill(cgroup: Path) -> None:
        """Kill all processes of a control group, and remove it."""
        if not cgroup.exists():
            return
        (cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 10
        while "populated 1" in (cgroup / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise ToolError(f"processes of {cgroup} survived SIGKILL: check its cgroup.procs")
            time.sleep(0.02)
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()

    @staticmethod
    def _changed() -> dict[str, int]:
        """Return the previous values of kernel settings that a fleet has changed since the last boot, by path."""
        before = json.loads(SAVED_KERNEL.read_text()) if SAVED_KERNEL.exists() else {}
        return dict(before["values"]) if before.get("boot") == BOOT_ID.read_text() else {}

    def _set_kernel(self) -> None:
        """Raise kernel settings that are too low for the hosts, and save the previous values."""
        low = {str(path): value for path, minimum in KERNEL.items() if (value := int(path.read_text())) < minimum}
        if low:
            SAVED_KERNEL.write_text(json.dumps({"boot": BOOT_ID.read_text(), "values": low | self._changed()}))
            for path in low:
                Path(path).write_text(str(KERNEL[Path(path)]))

    def _restore_kernel(self) -> None:
        """Restore the previous values of kernel settings."""
        for path, value in self._changed().items():
            Path(path).write_text(str(value))
