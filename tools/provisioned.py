"""Provisions the app hosts that scenarios share, once for each state of the code, and prints the name of their snapshot."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.fleet import CLONE
from tools.packages import ToolError, run, say
from tools.rootfs import locked
from tools.snapshots import directory

HOSTS = ("debian12:bookworm", "debian13:trixie")
#: What goes into the hosts, beside the packages of the day.
INPUTS = ("ansible.cfg", "files", "meta", "molecule/shared", "playbooks", "plugins", "roles", "tools")
SHARED = CLONE / "molecule/shared"
STATE = CLONE / ".cache/provisioned"


def snapshot_name(clone: Path, day: str) -> str:
    """Return the name of the snapshot, which depends on the content of all `INPUTS`."""
    digest = hashlib.sha256(day.encode())
    for top in INPUTS:
        for path in sorted([clone / top, *(clone / top).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"\0{path.relative_to(clone)}\0".encode() + path.read_bytes())
    return f"provisioned-{digest.hexdigest()[:12]}"


def hosts_tool(command: str, *arguments: str) -> str:
    """Run a command of `tools.hosts` for the fleet of this tool, and return its output."""
    argv = [sys.executable, "-m", "tools.hosts", command, "--fleet", "provisioned", *arguments]
    return run(argv, f"{command} hosts")


def play(inventory: Path, playbook: Path, *options: str) -> None:
    """Run a playbook; raises `ToolError` with the end of its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_CONFIG": str(CLONE / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment |= {"MOLECULE_EPHEMERAL_DIRECTORY": str(STATE), "MOLECULE_PROJECT_DIRECTORY": str(CLONE)}
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), f"--inventory={inventory}", str(playbook), *options]
    done = subprocess.run(argv, cwd=CLONE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"cannot provision the hosts with {playbook.name}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")


def provision(name: str) -> None:
    """Provision bare hosts, first in check mode, and turn them into the snapshot `name`."""
    inventory = STATE / "inventory"
    inventory.mkdir(parents=True, exist_ok=True)
    (inventory / "group_vars").unlink(missing_ok=True)
    (inventory / "group_vars").symlink_to(SHARED / "group_vars")
    names = [host.partition(":")[0] for host in HOSTS]
    try:
        hosts_tool("up", *HOSTS)
        hosts = json.loads(hosts_tool("inventory"))["_meta"]["hostvars"]
        (inventory / "hosts.json").write_text(json.dumps({"app_hosts": {"hosts": hosts}}))
        play(inventory, SHARED / "prepare.yml")
        play(inventory, CLONE / "playbooks/site.yml", "--check")
        play(inventory, CLONE / "playbooks/site.yml")
        hosts_tool("snapshot", name, *names)
    finally:
        hosts_tool("down", "--all")


def main() -> int:
    """Print the name of the snapshot on standard output, and provision its hosts if it does not exist."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    name = snapshot_name(CLONE, time.strftime("%Y-%m-%d"))
    try:
        with locked(STATE / "lock"):
            if not directory(CLONE, name).exists():
                provision(name)
    except ToolError as error:
        say(f"provisioned: {error}")
        return 1
    sys.stdout.write(name + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
