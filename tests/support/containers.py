"""Runs podman and podman-compose in namespaces, without a registry: images come from local root file systems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tools.fleet import shared_files
from tools.packages import as_root, install, run
from tools.rootfs import cached, machine_recipe

PACKAGES = ("aardvark-dns", "iptables", "mmdebstrap", "netavark", "podman", "podman-compose", "runc")
PATIENCE = 300.0  # timeout of a command in seconds, much more than any takes

#: What the images need of Debian: Python for the app, etcd, and the library of MongoDB's server.
IMAGE_PACKAGES = ("ca-certificates", "etcd-server", "libcurl4", "python3", "python3-venv")
CONTAINERFILE = "FROM localhost/debian\nCOPY mongod /usr/local/bin/\nCOPY pip.conf /etc/\n"

#: Settings for machines whose root lacks capabilities, and that do not run systemd.
CONTAINERS = """
[containers]
pids_limit = 0
default_ulimits = ["nofile=1024:16384", "nproc=1024:16384"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{directory}/storage/networks"
"""
#: In memory, as each step of a build waits for the disk otherwise.
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{directory}/storage/images"
runroot = "{directory}/storage/run"
"""

#: Prints the process that owns the namespaces, which may be a child of sudo.
NAMESPACES = 'echo $$; exec unshare --mount --net --pid --fork --mount-proc sh -c "$0" "$1"'
#: Prepares the namespaces, and holds them until its input ends: then the kernel kills all processes in them.
HOLDER = """
set -e
mkdir --parents /run/netns /run/libpod /run/containers "$0/storage"
for directory in /run/netns /run/libpod /run/containers /dev/shm "$0/storage"; do mount -t tmpfs none "$directory"; done
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
echo ready
exec cat
"""

#: Prints the status and the body of a response.
FETCH = """
import sys
from http.client import HTTPConnection
method, port, path, *body = sys.argv[1:]
connection = HTTPConnection("127.0.0.1", int(port), timeout=60)
connection.request(method, path, *body, headers={"Content-Type": "application/json"} if body else {})
response = connection.getresponse()
print(response.status, response.read().decode())
"""


class Engine:
    """A container engine with storage, processes and a network of its own, which end with it."""

    def __init__(self) -> None:
        """Prepare the namespaces."""
        install(PACKAGES)
        self.root = as_root("run containers")
        self.directory = Path(tempfile.mkdtemp(prefix="containers-"))
        for name, text in (("containers.conf", CONTAINERS), ("storage.conf", STORAGE)):
            (self.directory / name).write_text(text.format(directory=self.directory))
        command = ["sh", "-c", NAMESPACES, HOLDER, str(self.directory)]
        self.holder = subprocess.Popen([*self.root, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout is not None
        self.pid = int(self.holder.stdout.readline())
        assert self.holder.stdout.readline() == "ready\n"

    def close(self) -> None:
        """Kill all containers, and remove all files."""
        self.holder.communicate(timeout=PATIENCE)
        run([*self.root, "rm", "--recursive", "--force", "--one-file-system", str(self.directory)], "remove the images")

    def make_image(self) -> None:
        """Make the image ``localhost/servers`` of Debian with Python, mongod, etcd and the package index of this machine."""
        recipe = machine_recipe("bookworm")
        hooks = tuple(hook for hook in recipe.hooks if "certificates" in hook)
        root = cached(replace(recipe, packages=IMAGE_PACKAGES, hooks=hooks))
        self.run("sh", "-c", 'tar --directory "$0" --create . | podman import --quiet - localhost/debian', str(root))
        context = self.directory / "servers"
        context.mkdir()
        (context / "Containerfile").write_text(CONTAINERFILE)
        (context / "pip.conf").write_text(shared_files()["etc/pip.conf"])
        shutil.copy(Path(sysconfig.get_path("purelib"), "fiftyone/db/bin/mongod"), context)
        self.run("podman", "build", "--quiet", "--tag=localhost/servers", str(context))

    def run(
        self, *command: str, cwd: Path | None = None, network: bool = False, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run a command in the namespaces and return its output; with the network of the containers, or that of the machine."""
        namespaces = [f"--target={self.pid}", "--mount", f"--pid=/proc/{self.pid}/ns/pid_for_children", "--net"]
        variables = {
            "PATH": os.environ["PATH"],
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_LAYERS": "false",
            "CONTAINERS_CONF": f"{self.directory}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self.directory}/storage.conf",
            **(environment or {}),
        }
        argv = [*self.root, "nsenter", *(namespaces if network else namespaces[:-1])]
        argv += [f"--wd={cwd or self.directory}", "env", "--ignore-environment"]
        argv += [*(f"{name}={value}" for name, value in variables.items()), *command]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
        return ended.stdout
