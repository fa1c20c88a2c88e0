"""Runs Debian's HAProxy locally with the configuration of the role, for the duration of a test."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.funnel.tornado.plugins.module_utils.sites.haproxy_runtime import HaproxyError, old_workers, query
from ansible_collections.funnel.tornado.plugins.plugin_utils.haproxy_rendering import Frontend, haproxy_files
from tests.support.servers import CACHE, PATIENCE, free_port
from tools.packages import as_root, run

ROLES = Path(__file__).parents[2] / "roles"


def render(template: str, variables: dict[str, Any]) -> str:
    """Render a template of the role, as the action plugin of file_set does."""
    templar = Templar(loader=DataLoader(), variables={"ansible_managed": "Ansible managed", **variables})
    text = (ROLES / "haproxy/templates" / template).read_text()
    return str(templar.template(trust_as_template(text), overrides={"trim_blocks": True, "lstrip_blocks": True}))


def configuration(
    backends: dict[str, Any], frontend: Frontend, *, openssl: str = "3.0.17", connections: int = 500, extra: str = ""
) -> str:
    """Return the rendered haproxy.cfg of the role."""
    shared = {name: yaml.safe_load((ROLES / f"nginx/vars/main/{name}.yml").read_text()) for name in ("mozilla", "paths")}
    return render(
        "haproxy.cfg.j2",
        {
            "haproxy_connections": connections,
            "haproxy_extra": extra,
            "haproxy_metrics_listen": "127.0.0.1",
            "__haproxy_mozilla": shared["mozilla"]["__nginx_mozilla"],
            "__haproxy_bad_paths": shared["paths"]["__nginx_bad_paths"],
            "__haproxy_packages": {"versions": {"openssl": openssl}},
            **haproxy_files(backends, frontend)["haproxy.cfg"]["vars"],
        },
    )


class HaproxyProcess:
    """HAProxy with its master process, as in Debian's unit except for paths and the user."""

    def __init__(self, directory: Path, backends: dict[str, Any], certificates: tuple[str, ...] = ()) -> None:
        """Start HAProxy on free ports of 127.0.0.1."""
        self.directory, self.backends, self.certificates = directory, backends, certificates
        self.socket, self.master, self.state = directory / "admin.sock", directory / "master.sock", directory / "state"
        self.port, self.tls_port, self.monitor_port, self.metrics_port = (free_port() for _ in range(4))
        self.write()
        program, environment = haproxy_program()
        self.log = directory / "log"
        with self.log.open("ab") as log:
            command: list[str | Path] = [program, "-W", "-f", directory / "haproxy.cfg", "-S", self.master]
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_for(lambda: query("show info", self.socket) and self.workers())

    def write(self) -> None:
        """Write the files of the role, with the paths of this test."""
        frontend = Frontend([f"127.0.0.1:{self.port}"], [f"127.0.0.1:{self.tls_port}"], self.certificates)
        text = configuration(self.backends, frontend)
        for pattern, replacement in (
            (r"(?m)^    (chroot|log) .*\n", ""),
            (r"(?m)^    user haproxy\n", ""),
            (r"(?m)^    group .*\n", ""),
            ("/run/haproxy-funnel/admin.sock user root", f"{self.socket} user {getpass.getuser()}"),
            ("/run/haproxy-funnel/state", str(self.state)),
            ("127.0.0.1:8404", f"127.0.0.1:{self.monitor_port}"),
            ("127.0.0.1:8405", f"127.0.0.1:{self.metrics_port}"),
        ):
            text, count = re.subn(pattern, replacement, text)
            assert count, f"the template no longer contains {pattern}"
        (self.directory / "haproxy.cfg").write_text(text)
        (self.directory / "certificates").mkdir(exist_ok=True)
        for path, entry in haproxy_files(self.backends, frontend).items():
            if "link" in entry and not (self.directory / path).is_symlink():
                (self.directory / path).symlink_to(entry["link"])

    def reload(self) -> None:
        """Reload like the role's unit, and wait for the new worker."""
        (old,) = self.workers()
        script = render("haproxy-state.j2", {}).replace("/run/haproxy-funnel/admin.sock", str(self.socket))
        subprocess.run(["python3", "-c", script.replace("/run/haproxy-funnel/state", str(self.state))], check=True)
        self.process.send_signal(signal.SIGUSR2)
        self.wait_for(lambda: self.workers() not in ([], [old]))

    def workers(self) -> list[int]:
        """Return the worker that accepts new connections; none while HAProxy does not respond."""
        try:
            processes = query("show proc", self.master)
        except HaproxyError:
            return []
        return [int(pid) for pid in re.findall(r"(?m)^(\d+) +worker ", processes.partition("# old workers")[0])]

    def old_workers(self) -> list[int]:
        """Return the workers from before a reload."""
        return old_workers(self.master)

    def stop(self) -> None:
        """Start a graceful shutdown, as the role's unit does."""
        self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Terminate HAProxy and its workers immediately."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true; a HaproxyError counts as false."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(HaproxyError):
                if condition():
                    return
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"timed out:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)


@contextlib.contextmanager
def run_haproxy(backends: dict[str, Any], certificates: tuple[str, ...] = ()) -> Iterator[HaproxyProcess]:
    """Run HAProxy with these backends."""
    with tempfile.TemporaryDirectory(prefix="haproxy-") as directory:
        haproxy = HaproxyProcess(Path(directory), backends, certificates)
        try:
            yield haproxy
        finally:
            haproxy.kill()


def haproxy_program() -> tuple[Path, dict[str, str]]:
    """Return Debian's HAProxy and its environment: the installed one, or an unpacked package."""
    if found := shutil.which("haproxy"):
        return Path(found), dict(os.environ)
    target = CACHE / "haproxy"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            Path(directory).chmod(0o755)
            purpose = "download haproxy"
            run([*as_root(purpose), "apt-get", "--quiet=2", "update"], purpose)
            Path(directory, "partial").mkdir()
            options = ["--quiet=2", "--yes", "--download-only", "--no-install-recommends", f"-oDir::Cache::archives={directory}"]
            run([*as_root(purpose), "apt-get", *options, "install", "haproxy"], purpose)
            packages = list(Path(directory).glob("*.deb"))
            for package in packages:
                run(["dpkg-deb", "--extract", str(package), f"{directory}/root"], f"unpack {package.name}")
            Path(directory, "root").rename(target)
    (libraries,) = target.glob("usr/lib/*-linux-gnu")
    return target / "usr/sbin/haproxy", {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
