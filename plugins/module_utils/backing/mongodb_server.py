"""mongod on a host: what can be seen before it is started, its first administrator, and what the host remembers of that one."""

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
    explained,
    hello,
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
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File, FileSet, FileSetError, converge

SERVICE = "mongod"

#: The user and group that mongod runs as.
USER = "mongodb"

#: The administrator's password, for backups and for the role itself when the inventory has a new one. Root's alone.
PASSWORD_FILE = Path("/etc/mongodb/admin.password")

#: The mongod that makes the administrator: a transient unit, which systemd ends when nobody else does.
BOOTSTRAP = "mongod-bootstrap"
BOOTSTRAP_SECONDS = 60

#: Its configuration. What root writes is never where mongod could put a link to something else.
BOOTSTRAP_CONFIG = Path(CONFIG).with_name("bootstrap.conf")


def remembered_password() -> str:
    """Return the administrator's password that this host was last given, or nothing."""
    return PASSWORD_FILE.read_text() if PASSWORD_FILE.exists() else ""


def remember_password(password: str, *, check_mode: bool = False) -> bool:
    """Write the administrator's password where root finds it; return whether it is another one."""
    file = File(str(PASSWORD_FILE), password.encode(), mode=0o600, secret=True)
    return converge(FileSet(Path("/"), [file]), check_mode=check_mode).changed


def address_problems(addresses: Sequence[str], port: int) -> Iterator[str]:
    """Yield why mongod could not listen there, which only the host knows; what it listens on already is no problem."""
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
                    yield f"mongodb_port: {port} of {address} is taken by {_holder(numeric, port)}"


def was_alone() -> bool:
    """Say whether mongod has been in no replica set so far, as its configuration has it."""
    config = Path(CONFIG)
    return config.exists() and "replSetName" not in config.read_text()


def has_other_key(key: str) -> bool:
    """Say whether the members of this host's set know each other by another key."""
    file = Path(KEY_FILE)
    return bool(key) and file.exists() and file.read_text().strip() != key


def limit_problems(open_files: int) -> list[str]:
    """Return why mongod could not hold so many files open."""
    problem = Capacity.of_host().problem(open_files)
    return [problem.replace("limits_open_files", "mongodb_open_files")] if problem else []


def _holder(address: str, port: int) -> str:
    for pid in proc.pids():
        if sockets.listener_pid((address, port), pid) == pid:
            with contextlib.suppress(OSError):
                return f"{(proc.PROC / str(pid) / 'comm').read_text().strip()} (pid {pid})"
    return "another program"


@dataclass(frozen=True)
class Bootstrap:
    """The making of the first administrator, on new data and out of everybody's reach.

    mongod runs for it on a directory of its own, with one unix socket in a directory that only root and mongod can enter, and no
    other address. The data take their place by a rename once the administrator is in them.
    """

    program: str
    configuration: Mapping[str, Any]
    password: str
    data: Path = Path(DATA)

    def needed(self) -> bool:
        """Say whether there are no data yet."""
        return not (self.data / "WiredTiger").exists()

    def run(self) -> None:
        """Make the data.

        :raises MongodbError: when mongod does not start on them, in its words; there are none then, as before.
        """
        if systemd.query(SERVICE).active:
            raise MongodbError(f"mongod is running but {self.data} has no data: `systemctl stop {SERVICE}`, then run this again")
        new = self.data.with_name(".new")
        directory = Path("/run") / BOOTSTRAP
        try:
            run(["systemctl", "stop", BOOTSTRAP], check=False)  # of a run that was cut off
            shutil.rmtree(new, ignore_errors=True)
            self.data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _give(self.data.parent)
            make_directory(new)
            written = bootstrap_configuration(self.configuration, str(new), str(directory / "mongod.sock"))
            file = File(str(BOOTSTRAP_CONFIG), json.dumps(written).encode(), mode=0o640, group=USER, secret=True)
            converge(FileSet(Path("/"), [file]))
            began = time.time()
            properties = {"User": USER, "Group": USER, "RuntimeDirectory": BOOTSTRAP, "RuntimeDirectoryMode": "0700"}
            properties["RuntimeMaxSec"] = str(2 * BOOTSTRAP_SECONDS)
            options = [f"--property={name}={value}" for name, value in properties.items()]
            unit = ["systemd-run", "--quiet", "--collect", f"--unit={BOOTSTRAP}", "--service-type=exec", *options]
            run([*unit, self.program, "--config", str(BOOTSTRAP_CONFIG)])
            self._make_administrator(directory / "mongod.sock", began)
            run(["systemctl", "stop", BOOTSTRAP])
            new.rename(self.data)
        except (OSError, CommandError, FileSetError) as error:
            raise MongodbError(f"mongod's first data cannot be made: {error}") from error
        finally:
            run(["systemctl", "stop", BOOTSTRAP], check=False)
            BOOTSTRAP_CONFIG.unlink(missing_ok=True)
            shutil.rmtree(new, ignore_errors=True)

    def _make_administrator(self, path: Path, began: float) -> None:
        give_up = time.monotonic() + BOOTSTRAP_SECONDS
        while True:
            try:
                hello(str(path), seconds=1.0)
                break
            except MongodbError as error:
                if not systemd.query(BOOTSTRAP).active:
                    said = run(["journalctl", f"--unit={BOOTSTRAP}", f"--since=@{began - 1:.0f}", "--output=cat", "--no-pager"])
                    words = f"mongodb_settings: mongod does not start with new data:\n{last_errors(said.output)}"
                    raise MongodbError(words) from error
                if time.monotonic() > give_up:
                    raise
            time.sleep(INTERVAL)
        with explained("the administrator cannot be made"), contextlib.closing(connect(str(path))) as client:
            client.admin.command("createUser", ADMIN, pwd=self.password, roles=["root"])


def last_errors(log: str, count: int = 5) -> str:
    """Return the last errors in mongod's log, a line each; its last lines if there are none."""
    errors = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
            if entry["s"] in {"E", "F"}:
                errors.append(f"{entry['msg'].strip()}: {json.dumps(entry.get('attr', {}))}")
        except (ValueError, KeyError, TypeError):
            continue
    return "\n".join((errors or log.splitlines())[-count:])


def make_directory(path: Path) -> None:
    """Make a directory for mongod where mongod itself may have put something else, such as a link to what is not its own.

    :raises OSError: when something is there.
    """
    path.mkdir(mode=0o700)
    _give(path)


def _give(path: Path) -> None:
    user = pwd.getpwnam(USER)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(directory, user.pw_uid, user.pw_gid)
    finally:
        os.close(directory)
