"""mongod on this host: checks before it is started, the bootstrap of its administrator, and the stored administrator password."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_client import (
    INTERVAL,
    MongodbError,
    connect,
    hello,
    wrap_errors,
)
from ansible_collections.funnel.tornado.plugins.module_utils.backing.mongodb_model import (
    ADMIN,
    CONFIG,
    DATA,
    KEY_FILE,
    bootstrap_configuration,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core import proc, sockets
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import retry
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File, FileSet, FileSetError, converge

SERVICE = "mongod"

#: User and group of mongod.
USER = "mongodb"

#: The administrator password, for backups and for password changes by the role. Readable by root only.
PASSWORD_FILE = Path("/etc/mongodb/admin.password")

#: The transient unit of mongod that creates the administrator, and its timeout; systemd stops it after twice that time.
BOOTSTRAP_UNIT = "mongod-bootstrap"
BOOTSTRAP_TIMEOUT = 60

#: Its configuration. Root writes no file where mongod could plant a link.
BOOTSTRAP_CONFIG = Path(CONFIG).with_name("bootstrap.conf")


def stored_password() -> str:
    """Return the administrator password stored on this host, or an empty string."""
    return PASSWORD_FILE.read_text(encoding="utf-8") if PASSWORD_FILE.exists() else ""


def store_password(password: str, *, check_mode: bool = False) -> bool:
    """Store the administrator password for root; return whether it has changed."""
    file = File(str(PASSWORD_FILE), password.encode(), mode=0o600, secret=True)
    return converge(FileSet(Path("/"), [file]), check_mode=check_mode).changed


def address_problems(addresses: Sequence[str], port: int) -> Iterator[str]:
    """Yield the reasons why mongod could not listen on the addresses; those it listens on already are accepted."""
    pid = systemd.query(SERVICE).main_pid
    for address in addresses:
        try:
            family, kind, protocol, _name, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            yield f"mongodb_addresses: this host cannot resolve {address}: {error.strerror}"
            continue
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(target)
                trial.listen()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    yield f"mongodb_addresses: mongod cannot listen on {address}: {error.strerror}"
                    continue
                numeric = str(target[0]).partition("%")[0]
                if not pid or not sockets.listener_pid((numeric, port), pid):
                    yield f"mongodb_port: {port} on {address} is in use by {_port_holder(numeric, port)}"


def is_standalone() -> bool:
    """Return whether mongod is configured without a replica set so far."""
    config = Path(CONFIG)
    return config.exists() and "replSetName" not in config.read_text(encoding="utf-8")


def differs_from_key(key: str) -> bool:
    """Return whether this host authenticates to its replica set with a different key."""
    file = Path(KEY_FILE)
    return bool(key) and file.exists() and file.read_text(encoding="utf-8").strip() != key


def limit_problems(open_files: int) -> list[str]:
    """Return the reasons why mongod could not have this number of open files."""
    problem = Capacity.of_host().problem(open_files)
    return [problem.replace("limits_open_files", "mongodb_open_files")] if problem else []


def _port_holder(address: str, port: int) -> str:
    for pid in proc.pids():
        if sockets.listener_pid((address, port), pid) == pid:
            with contextlib.suppress(OSError):
                return f"{proc.name(pid)} (pid {pid})"
    return "another program"


@dataclass(frozen=True)
class Bootstrap:
    """Creation of new data with an administrator, before mongod is reachable.

    mongod runs on a temporary directory and listens only on a Unix socket in a directory that root and mongod can enter. The
    data is renamed to its final path once it has the administrator.
    """

    program: str
    configuration: Mapping[str, Any]
    password: str
    data: Path = Path(DATA)

    def needed(self) -> bool:
        """Return whether mongod has no data yet."""
        return not (self.data / "WiredTiger").exists()

    def run(self) -> None:
        """Create the data.

        :raises MongodbError: if mongod does not start, with its errors; no data is created then.
        """
        if systemd.query(SERVICE).active:
            raise MongodbError(f"mongod is running but {self.data} has no data: `systemctl stop {SERVICE}`, then run this again")
        new = self.data.with_name(".new")
        directory = Path("/run") / BOOTSTRAP_UNIT
        try:
            run(["systemctl", "stop", BOOTSTRAP_UNIT], check=False)  # left by an interrupted run
            shutil.rmtree(new, ignore_errors=True)
            self.data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _set_owner(self.data.parent)
            create_directory(new)
            configuration = bootstrap_configuration(self.configuration, str(new), str(directory / "mongod.sock"))
            file = File(str(BOOTSTRAP_CONFIG), json.dumps(configuration).encode(), mode=0o640, group=USER, secret=True)
            converge(FileSet(Path("/"), [file]))
            started = time.time()
            properties = {"User": USER, "Group": USER, "RuntimeDirectory": BOOTSTRAP_UNIT, "RuntimeDirectoryMode": "0700"}
            properties["RuntimeMaxSec"] = str(2 * BOOTSTRAP_TIMEOUT)
            options = [f"--property={name}={value}" for name, value in properties.items()]
            unit = ["systemd-run", "--quiet", "--collect", f"--unit={BOOTSTRAP_UNIT}", "--service-type=exec", *options]
            run([*unit, self.program, "--config", str(BOOTSTRAP_CONFIG)])
            self._create_administrator(directory / "mongod.sock", started)
            run(["systemctl", "stop", BOOTSTRAP_UNIT])
            new.rename(self.data)
        except (OSError, CommandError, FileSetError) as error:
            raise MongodbError(f"the initial data of mongod cannot be created: {error}") from error
        finally:
            run(["systemctl", "stop", BOOTSTRAP_UNIT], check=False)
            BOOTSTRAP_CONFIG.unlink(missing_ok=True)
            shutil.rmtree(new, ignore_errors=True)

    def _create_administrator(self, path: Path, started: float) -> None:
        try:
            retry(
                lambda: hello(str(path), seconds=1.0),
                MongodbError,
                lambda _error: systemd.query(BOOTSTRAP_UNIT).active,
                timeout=BOOTSTRAP_TIMEOUT,
                interval=INTERVAL,
            )
        except MongodbError as error:
            if systemd.query(BOOTSTRAP_UNIT).active:
                raise
            journal = ["journalctl", f"--unit={BOOTSTRAP_UNIT}", f"--since=@{started - 1:.0f}", "--output=cat", "--no-pager"]
            reason = last_errors(run(journal).output)
            raise MongodbError(f"mongodb_settings: mongod does not start with new data:\n{reason}") from error
        with wrap_errors("the administrator cannot be created"), contextlib.closing(connect(str(path))) as client:
            client.admin.command("createUser", ADMIN, pwd=self.password, roles=["root"])


def last_errors(log: str, count: int = 5) -> str:
    """Return the last errors in a log of mongod, one per line, or its last lines if there are none."""
    errors = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
            if entry["s"] in {"E", "F"}:
                errors.append(f"{entry['msg'].strip()}: {json.dumps(entry.get('attr', {}))}")
        except (ValueError, KeyError, TypeError):
            continue
    return "\n".join((errors or log.splitlines())[-count:])


def create_directory(path: Path) -> None:
    """Create a directory for mongod in a directory where mongod itself could have planted a link.

    :raises OSError: if the path exists.
    """
    path.mkdir(mode=0o700)
    _set_owner(path)


def _set_owner(path: Path) -> None:
    user = pwd.getpwnam(USER)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(directory, user.pw_uid, user.pw_gid)
    finally:
        os.close(directory)
