"""Boot real Debian hosts on this machine, for the demo and the tests: `python3 -m tools.hosts --help`."""

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
    """Check the name of a host or a fleet, which is part of paths and of host names."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of lower-case letters, digits and hyphens")
    return text


def parse_wish(text: str) -> tuple[str, str | None]:
    """Parse `NAME[:RELEASE]` into the name and the release's code name; a release may be given by its number, too."""
    name, _, release = text.partition(":")
    code_names = {number: code_name for code_name, number in RELEASES.items()}
    release = code_names.get(release, release)
    if release and release not in RELEASES:
        known = ", ".join(f"{code_name} ({number})" for code_name, number in RELEASES.items())
        raise argparse.ArgumentTypeError(f"Debian {release!r} is not known, but {known}")
    return parse_name(name), release or None


def parse_directory(text: str) -> str:
    """Return the absolute path of a directory."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path}")
    return str(path)


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


def known(fleet: Fleet, names: Sequence[str]) -> None:
    """Raise `ToolError` if the fleet lacks one of the hosts."""
    if unknown := [name for name in names if name not in fleet.hosts]:
        raise ToolError(f"no host {', '.join(unknown)} in this fleet, but {', '.join(fleet.hosts) or 'none'}")


def show(fleet: Fleet, *, as_json: bool) -> None:
    """Print the fleet's hosts, one a line or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(instances(fleet), indent=2) + "\n")
    else:
        sys.stdout.writelines("{instance:16} {address:16} {release:10} {state}\n".format(**row) for row in instances(fleet))


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--fleet", type=parse_name, default="demo", help="the fleet that is meant (default: demo)")
    parser = argparse.ArgumentParser(prog="python3 -m tools.hosts", description="Debian hosts for the demo and the tests")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="boot hosts; those that run are left alone")
    up.add_argument("wishes", nargs="+", type=parse_wish, metavar="NAME[:RELEASE]", help=f"one of {', '.join(RELEASES)}")
    up.add_argument(
        "--bind",
        metavar="DIRECTORY",
        type=parse_directory,
        action="append",
        default=[],
        help="give new hosts this directory of this machine, at the same path (repeatable)",
    )
    listing = commands.add_parser("list", parents=[common], help="tell name, address, release and state of each host")
    listing.add_argument("--json", action="store_true", help="in the words of Molecule's instance_config.yml")
    reboot = commands.add_parser("reboot", parents=[common], help="reboot a host and wait until it runs")
    reboot.add_argument("names", nargs="+", metavar="NAME")
    off = commands.add_parser("off", parents=[common], help="cut a host's power; `up` boots it again")
    off.add_argument("names", nargs="+", metavar="NAME")
    ssh = commands.add_parser("ssh", parents=[common], help="run a command on a host as root, or without one a shell")
    ssh.add_argument("names", nargs=1, metavar="NAME")
    ssh.add_argument("remote", nargs=argparse.REMAINDER, metavar="COMMAND")
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
    """Start this program anew as root in a mount namespace: what it mounts for the hosts goes with the last of them."""
    install(PACKAGES)
    to = "boot hosts"
    unshare = [*as_root(to), "unshare", "--mount", "--propagation=slave"]
    run([*unshare, "true"], to)
    index = [f"PIP_INDEX_URL={os.environ['PIP_INDEX_URL']}"] if "PIP_INDEX_URL" in os.environ else []
    os.chdir(CLONE)
    os.execvp(unshare[0], [*unshare, "env", *index, sys.executable, "-m", "tools.hosts", "--inside", *argv])


def perform(arguments: argparse.Namespace) -> None:
    """Do what the command line says, in the mount namespace that `enter` made."""
    os.umask(0o022)
    # systemd-nspawn wants control groups of version 2, and a place for notes that is not shared with other mounts.
    if not (CGROUP / "cgroup.controllers").exists():
        run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUP)], "mount control groups of version 2")
    notes = Path("/run/systemd/nspawn")
    notes.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "tmpfs", str(notes)], "mount a tmpfs")
    fleet = Fleet(arguments.fleet)
    if arguments.command == "list":
        show(fleet, as_json=arguments.json)
        return
    with locked(fleet.lock):
        fleet.load()
        if arguments.command == "up":
            fleet.up(dict(arguments.wishes), arguments.bind)
            return
        names = arguments.names or list(fleet.hosts)
        known(fleet, names)
        if arguments.command == "down":
            fleet.down(names)
            say(f"Removed {', '.join(names) or 'what was left'}")
        else:
            act = fleet.off if arguments.command == "off" else fleet.reboot
            for name in names:
                act(name)


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`, and return the exit code: 0, or another one with one line on standard error."""
    arguments = parse_arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if arguments.command == "ssh":
            fleet = Fleet(arguments.fleet)
            known(fleet, arguments.names)
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
