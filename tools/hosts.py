"""Boots Debian and Ubuntu hosts on this machine, for the demo and the tests. See `python3 -m tools.hosts --help`."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.fleet import CGROUP, CLONE, Fleet
from tools.packages import ToolError, as_root, install, run, say
from tools.rootfs import RELEASES, locked

PACKAGES = ("debian-archive-keyring", "iproute2", "mmdebstrap", "nftables", "openssh-client", "systemd-container")


def parse_name(text: str) -> str:
    """Validate the name of a host or a fleet, which becomes part of paths and host names."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of lower-case letters, digits and hyphens")
    return text


def parse_host(text: str) -> tuple[str, str | None]:
    """Parse `NAME[:RELEASE]` into name and code name; a release may be given by its number."""
    name, _, release = text.partition(":")
    code_names = {title.split()[1]: code_name for code_name, title in RELEASES.items()}
    release = code_names.get(release, release)
    if release and release not in RELEASES:
        supported = ", ".join(f"{code_name} ({title})" for code_name, title in RELEASES.items())
        raise argparse.ArgumentTypeError(f"the release {release!r} is not supported; choose one of {supported}")
    return parse_name(name), release or None


def parse_directory(text: str) -> str:
    """Return the absolute path of a directory."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path}")
    return str(path)


def inventory(fleet: Fleet, group: str) -> dict[str, object]:
    """Return the output of an Ansible inventory script: the hosts of the fleet in a group, with connection variables."""
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(fleet.key),
        "ansible_ssh_common_args": " ".join(fleet.ssh_options),
    }
    hosts = {host.name: {"ansible_host": host.address} | variables for host in fleet.hosts.values()}
    return {group: {"hosts": list(hosts)}, "_meta": {"hostvars": hosts}}


def instances(fleet: Fleet) -> list[dict[str, str]]:
    """Return the hosts of the fleet in the format of Molecule's instance_config.yml."""
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


def require_hosts(fleet: Fleet, names: Sequence[str]) -> None:
    """Raise `ToolError` if the fleet lacks one of the hosts."""
    if unknown := [name for name in names if name not in fleet.hosts]:
        raise ToolError(f"this fleet has no host {', '.join(unknown)}; its hosts: {', '.join(fleet.hosts) or 'none'}")


def show(fleet: Fleet, *, as_json: bool) -> None:
    """Print the hosts of the fleet, one per line or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(instances(fleet), indent=2) + "\n")
    else:
        sys.stdout.writelines("{instance:16} {address:16} {release:10} {state}\n".format(**row) for row in instances(fleet))


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--fleet", type=parse_name, default="demo", help="name of the fleet (default: demo)")
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.hosts", description="Debian and Ubuntu hosts for the demo and the tests"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="boot hosts; running hosts are not touched")
    up.add_argument("requests", nargs="+", type=parse_host, metavar="NAME[:RELEASE]", help=f"one of {', '.join(RELEASES)}")
    up.add_argument(
        "--bind",
        metavar="DIRECTORY",
        type=parse_directory,
        action="append",
        default=[],
        help="mount this directory into new hosts, at the same path (repeatable)",
    )
    up.add_argument(
        "--from", dest="snapshot", metavar="SNAPSHOT", type=parse_name, help="start new hosts from their snapshots of this name"
    )
    listing = commands.add_parser("list", parents=[common], help="list name, address, release and state of each host")
    listing.add_argument("--json", action="store_true", help="print JSON in the format of Molecule's instance_config.yml")
    reboot = commands.add_parser("reboot", parents=[common], help="reboot hosts and wait until they run")
    reboot.add_argument("names", nargs="+", metavar="NAME")
    off = commands.add_parser("off", parents=[common], help="cut the power of hosts; `up` boots them again")
    off.add_argument("names", nargs="+", metavar="NAME")
    snapshot = commands.add_parser("snapshot", parents=[common], help="turn hosts into snapshots, for `up --from`")
    snapshot.add_argument("snapshot", type=parse_name, metavar="SNAPSHOT", help="name of the snapshots")
    snapshot.add_argument("names", nargs="+", metavar="NAME")
    ssh = commands.add_parser("ssh", parents=[common], help="run a command, or a shell, on a host as root")
    ssh.add_argument("names", nargs=1, metavar="NAME")
    ssh.add_argument("remote", nargs=argparse.REMAINDER, metavar="COMMAND")
    down = commands.add_parser("down", parents=[common], help="remove hosts, and with the last one the network of the fleet")
    down.add_argument("names", nargs="*", metavar="NAME")
    down.add_argument("--all", action="store_true", help="remove every host of the fleet, and the remains of an interrupted run")
    inventory_ = commands.add_parser("inventory", parents=[common], help="print the output of an Ansible inventory script")
    inventory_.add_argument("--group", default="app_hosts", help="group of the hosts (default: app_hosts)")
    arguments = parser.parse_args(argv)
    if arguments.command == "down" and bool(arguments.names) == arguments.all:
        down.error("name the hosts, or use --all")
    return arguments


def enter(argv: Sequence[str]) -> None:
    """Run this program again as root in a mount namespace, whose mounts end with the last host."""
    install(PACKAGES)
    to = "boot hosts"
    unshare = [*as_root(to), "unshare", "--mount", "--propagation=slave"]
    run([*unshare, "true"], to)
    index = [f"PIP_INDEX_URL={os.environ['PIP_INDEX_URL']}"] if "PIP_INDEX_URL" in os.environ else []
    os.chdir(CLONE)
    os.execvp(unshare[0], [*unshare, "env", *index, sys.executable, "-m", "tools.hosts", "--inside", *argv])


def perform(arguments: argparse.Namespace) -> None:
    """Execute the command line in the mount namespace of `enter`."""
    os.umask(0o022)
    # systemd-nspawn requires control groups of version 2, and a state directory that is not shared with other mounts.
    if not (CGROUP / "cgroup.controllers").exists():
        run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUP)], "mount control groups of version 2")
    state = Path("/run/systemd/nspawn")
    state.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "tmpfs", str(state)], "mount a tmpfs")
    fleet = Fleet(arguments.fleet)
    if arguments.command == "list":
        show(fleet, as_json=arguments.json)
        return
    with locked(fleet.lock):
        fleet.load()
        if arguments.command == "up":
            fleet.up(dict(arguments.requests), arguments.bind, arguments.snapshot)
            return
        names = arguments.names or list(fleet.hosts)
        require_hosts(fleet, names)
        if arguments.command == "down":
            fleet.down(names)
            say(f"Removed {', '.join(names) or 'all remains'}")
        elif arguments.command == "snapshot":
            fleet.snapshot(arguments.snapshot, names)
        else:
            action = fleet.off if arguments.command == "off" else fleet.reboot
            for name in names:
                action(name)


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return the exit code; an error is one line on standard error."""
    arguments = parse_arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if arguments.command == "ssh":
            fleet = Fleet(arguments.fleet)
            require_hosts(fleet, arguments.names)
            os.execvp("ssh", fleet.ssh_command(fleet.hosts[arguments.names[0]], *arguments.remote))
        elif arguments.command == "inventory":
            sys.stdout.write(json.dumps(inventory(Fleet(arguments.fleet), arguments.group), indent=2) + "\n")
        elif arguments.inside:
            perform(arguments)
        else:
            enter(argv)
    except ToolError as error:
        say(f"hosts: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
