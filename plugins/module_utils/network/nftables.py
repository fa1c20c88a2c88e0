"""The firewall of this host: tried before it is kept, and taken back by the host itself unless somebody says that it is well.

What is tried is loaded into the kernel and written nowhere, while a timer of systemd waits to load what was there before. A new
connection to the host, which the old one's being let in says nothing of, proves that it is reached: then the rules are
written to the file that is loaded at each boot.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, CommandResult, run
from ansible_collections.funnel.tornado.plugins.module_utils.network import firewall
from ansible_collections.funnel.tornado.plugins.module_utils.system import file_set, systemd

#: What is loaded at each boot, and by which unit.
FILE = Path("/etc/funnel/firewall.nft")
UNIT = "funnel-firewall"
UNIT_FILE = Path(f"/etc/systemd/system/{UNIT}.service")

#: How the firewall may have to be: `desired_table` says what is what.
State = Literal["present", "widened", "absent"]

#: The transient timer and service that end what is being tried.
BACK = "funnel-firewall-back"

UNIT_TEXT = f"""\
# Ansible managed
[Unit]
Description=What this host lets in
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
After=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft --file {FILE}
ExecReload=/usr/sbin/nft --file {FILE}
ExecStop=-/usr/sbin/nft delete table {firewall.TABLE}
NoNewPrivileges=true
CapabilityBoundingSet=CAP_NET_ADMIN
LockPersonality=true
MemoryDenyWriteExecute=true
PrivateDevices=true
ProtectClock=true
ProtectControlGroups=true
ProtectHome=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
ProtectSystem=strict
RestrictAddressFamilies=AF_NETLINK
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=~@clock @cpu-emulation @debug @module @mount @obsolete @privileged @raw-io @reboot @swap

[Install]
WantedBy=sysinit.target
"""

#: Debian's own service has the user's /etc/nftables.conf, which begins with `flush ruleset`: the tables of everybody go.
DROP_IN = Path("/etc/systemd/system/nftables.service.d/50-funnel.conf")
DROP_IN_TEXT = f"""\
# Ansible managed
[Service]
ExecStartPost=-/usr/sbin/nft --file {FILE}
ExecReload=-/usr/sbin/nft --file {FILE}
"""


class FirewallError(Exception):
    """The rules would lock out who sets them, were refused by nft, or were not confirmed in time. The message says which."""


@dataclass(frozen=True)
class Table:
    """The collection's table as it has to be: its lines (`firewall.Rule.lines`), or ``None`` for no table."""

    lines: Sequence[str] | None

    @property
    def files(self) -> file_set.FileSet:
        """The files that keep it."""
        if self.lines is None:
            return file_set.FileSet(Path("/"), [], absent=[str(FILE), str(UNIT_FILE), str(DROP_IN)])
        texts = {FILE: firewall.render(self.lines), UNIT_FILE: UNIT_TEXT, DROP_IN: DROP_IN_TEXT}
        return file_set.FileSet(Path("/"), [file_set.File(str(path), text.encode()) for path, text in texts.items()])

    @property
    def fingerprint(self) -> str:
        """What the table of the kernel is known by; empty for none."""
        return "" if self.lines is None else firewall.fingerprint(firewall.render(self.lines))


def desired_table(rules: Sequence[firewall.Rule], state: State) -> Table:
    """Return the table as it has to be.

    ``widened`` lets in what the one of now does as well; where there is none, that is everything.
    """
    lines = [line for rule in rules for line in rule.lines()]
    if state == "present":
        return Table(lines)
    if state == "widened" and FILE.exists():
        return Table(list(dict.fromkeys([*lines, *firewall.rule_lines(FILE.read_text())])))
    return Table(None)


def is_active(table: Table) -> bool:
    """Say whether the kernel has the rules, and loads them at each boot.

    :raises ServiceError: when systemd does not run this host.
    """
    if loaded_fingerprint() != table.fingerprint:
        return False
    state = systemd.query(UNIT)
    return table.lines is None or (state.active and state.enabled)


def loaded_fingerprint() -> str:
    """Return the mark of the table that the kernel has; empty if it has none."""
    try:
        shown = run(["nft", "list", "table", *firewall.TABLE.split()], check=False)
    except CommandError:  # there is no nft, and so no table of ours
        return ""
    return firewall.fingerprint(shown.output)


def drift() -> str:
    """Return what is not as it has to be with the rules that were kept; empty if nothing is, or if there are none."""
    if FILE.exists() and loaded_fingerprint() != firewall.fingerprint(FILE.read_text()):
        return "the firewall is not in force: its table was flushed, or is another one; firewall.yml sets it again"
    return ""


def require_connection(rules: Sequence[firewall.Rule], connection: str, host: str) -> None:
    """See that the rules let in the connection by which they are set.

    :arg connection: sshd's SSH_CONNECTION: the client's address and port, and the server's; empty where it is not SSH.
    :raises FirewallError: when they do not.
    """
    said = connection.split()
    if len(said) == 4 and not firewall.permits(rules, said[0], int(said[3])):
        ssh = rules[0]
        raise FirewallError(
            f"{firewall.SSH_PORT}, {firewall.SSH_SOURCES}: {host} is reached from {said[0]} at port {said[3]}, and would let SSH "
            f"in from {', '.join(ssh.sources)} at port {ssh.port} alone; nothing was changed"
        )


def require_valid(table: Table) -> None:
    """Let nft check the rules, if this host has it.

    :raises FirewallError: in its own words.
    """
    try:
        found = _nft(table, "--check")
    except CommandError:
        return
    if found.status != 0:
        raise FirewallError(f"{found.last_lines()}\nnothing was changed")


def converge(table: Table, seconds: int) -> bool:
    """Make the firewall what it has to be; return whether that is for so many seconds only, unless `keep` is called.

    :raises CommandError: when systemd or nft does not do its part.
    :raises FirewallError: when the rules cannot be loaded; then those of before are in force.
    """
    _end_trial()
    if table.lines is None:
        _remove(table)
        return False
    if loaded_fingerprint() == table.fingerprint:
        keep(table)
        return False
    # Without a table everything was let in.
    before = ["--file", str(FILE)] if loaded_fingerprint() and FILE.exists() else ["delete", "table", *firewall.TABLE.split()]
    timer = [f"--on-active={seconds}", "--timer-property=AccuracySec=100ms", "--service-type=oneshot"]
    run(["systemd-run", "--quiet", "--collect", f"--unit={BACK}", *timer, "/usr/sbin/nft", *before])
    found = _nft(table)
    if found.status != 0:
        run(["systemctl", "stop", f"{BACK}.timer"])
        raise FirewallError(f"{found.last_lines()}\nthe rules of before are in force")
    return True


def keep(table: Table) -> None:
    """Keep what is loaded: from now on it is loaded at each boot.

    :raises FirewallError: when it was taken back before, and the rules of before are in force.
    """
    if loaded_fingerprint() != table.fingerprint:
        raise FirewallError("the new connection came too late: the rules of before are in force again")
    run(["systemctl", "stop", f"{BACK}.timer"], check=False)  # there is none if nothing had to be tried
    try:
        file_set.converge(table.files, service=systemd.ServiceSpec(UNIT, on_change="reload"))
    except file_set.FileSetError as error:
        raise FirewallError(str(error)) from error


def _remove(table: Table) -> None:
    """Let everything in again, and leave nothing behind."""
    if UNIT_FILE.exists():
        run(["systemctl", "disable", "--now", f"{UNIT}.service"])
    if loaded_fingerprint():
        run(["nft", "delete", "table", *firewall.TABLE.split()])
    file_set.Swap(table.files.changes()).make()
    for directory in (FILE.parent, DROP_IN.parent):
        with contextlib.suppress(OSError):  # others have something there, or it was gone before
            directory.rmdir()
    run(["systemctl", "daemon-reload"])


def _end_trial() -> None:
    """Take back now what an earlier run has tried, and nobody has confirmed."""
    if run(["systemctl", "is-active", "--quiet", f"{BACK}.timer"], check=False).status == 0:
        run(["systemctl", "start", f"{BACK}.service"])
        run(["systemctl", "stop", f"{BACK}.timer"], check=False)


def _nft(table: Table, *options: str) -> CommandResult:
    """Have nft read the rules."""
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(firewall.render(table.lines or ()))
        file.flush()
        return run(["nft", *options, "--file", file.name], check=False)
