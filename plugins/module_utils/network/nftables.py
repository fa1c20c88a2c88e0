"""The firewall of this host: apply rules, roll them back unless they are confirmed, and load them at boot.

New rules are loaded into the kernel only, while a transient systemd timer waits to load the previous ones. An established
connection would survive wrong rules; only a new connection proves that the host is still reachable. Then the rules are written
to the file that is loaded at boot.
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

#: The rules that are loaded at boot, and the unit that loads them.
FILE = Path("/etc/funnel/firewall.nft")
UNIT = "funnel-firewall"
UNIT_FILE = Path(f"/etc/systemd/system/{UNIT}.service")

#: Desired states of the firewall, see `desired_table`.
State = Literal["present", "widened", "absent"]

#: The transient timer and service that roll back unconfirmed rules.
ROLLBACK_UNIT = "funnel-firewall-back"

UNIT_TEXT = f"""\
# Ansible managed
[Unit]
Description=Firewall of this host (nftables)
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

#: Debian's nftables.service loads /etc/nftables.conf, whose `flush ruleset` deletes all tables; load ours again afterwards.
DROP_IN = Path("/etc/systemd/system/nftables.service.d/50-funnel.conf")
DROP_IN_TEXT = f"""\
# Ansible managed
[Service]
ExecStartPost=-/usr/sbin/nft --file {FILE}
ExecReload=-/usr/sbin/nft --file {FILE}
"""


class FirewallError(Exception):
    """The rules would lock out the operator, were rejected by nft, or were not confirmed in time; see the message."""


@dataclass(frozen=True)
class Table:
    """The desired table of the collection: its rules (`firewall.Rule.lines`), or ``None`` for no table."""

    lines: Sequence[str] | None

    @property
    def files(self) -> file_set.FileSet:
        """The files that load the table at boot."""
        if self.lines is None:
            return file_set.FileSet(Path("/"), [], absent=[str(FILE), str(UNIT_FILE), str(DROP_IN)])
        texts = {FILE: firewall.render(self.lines), UNIT_FILE: UNIT_TEXT, DROP_IN: DROP_IN_TEXT}
        return file_set.FileSet(Path("/"), [file_set.File(str(path), text.encode()) for path, text in texts.items()])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the loaded table; empty for no table."""
        return "" if self.lines is None else firewall.fingerprint(firewall.render(self.lines))


def desired_table(rules: Sequence[firewall.Rule], state: State) -> Table:
    """Return the desired table.

    ``widened`` also allows what the current table allows; without a table everything is allowed, so there will be none.
    """
    lines = [line for rule in rules for line in rule.lines()]
    if state == "present":
        return Table(lines)
    if state == "widened" and FILE.exists():
        return Table(list(dict.fromkeys([*lines, *firewall.rule_lines(FILE.read_text(encoding="utf-8"))])))
    return Table(None)


def is_active(table: Table) -> bool:
    """Return whether the rules are loaded now and at boot.

    :raises ServiceError: if systemd is not running.
    """
    if loaded_fingerprint() != table.fingerprint:
        return False
    state = systemd.query(UNIT)
    return table.lines is None or (state.active and state.enabled)


def loaded_fingerprint() -> str:
    """Return the fingerprint of the table in the kernel; empty if there is none."""
    try:
        shown = run(["nft", "list", "table", *firewall.TABLE.split()], check=False)
    except CommandError:  # without nft there is no table
        return ""
    return firewall.fingerprint(shown.output)


def drift() -> str:
    """Return a message if the loaded rules differ from the confirmed ones; otherwise an empty string."""
    if FILE.exists() and loaded_fingerprint() != firewall.fingerprint(FILE.read_text(encoding="utf-8")):
        return "the firewall is not active: its nftables table was flushed or replaced; run firewall.yml to restore it"
    return ""


def require_connection(rules: Sequence[firewall.Rule], connection: str, host: str) -> None:
    """Require that the rules allow the current connection.

    :arg connection: SSH_CONNECTION of sshd: address and port of the client, then of the server; empty without SSH.
    :raises FirewallError: if they do not.
    """
    fields = connection.split()
    if len(fields) == 4 and not firewall.permits(rules, fields[0], int(fields[3])):
        ssh = rules[0]
        raise FirewallError(
            f"{firewall.SSH_PORT}, {firewall.SSH_SOURCES}: {host} is connected from {fields[0]} to port {fields[3]}, but SSH "
            f"would be allowed only from {', '.join(ssh.sources)} to port {ssh.port}; nothing was changed"
        )


def require_valid(table: Table) -> None:
    """Validate the rules with nft, if it is installed.

    :raises FirewallError: with the error of nft.
    """
    try:
        checked = _nft(table, "--check")
    except CommandError:
        return
    if checked.status != 0:
        raise FirewallError(f"{checked.last_lines()}\nnothing was changed")


def converge(table: Table, seconds: int) -> bool:
    """Apply the desired table; return whether it is rolled back after ``seconds`` unless `confirm` is called.

    :raises CommandError: if systemd or nft fails.
    :raises FirewallError: if the rules cannot be loaded; the previous ones stay active.
    """
    _roll_back_unconfirmed()
    if table.lines is None:
        _remove(table)
        return False
    if loaded_fingerprint() == table.fingerprint:
        confirm(table)
        return False
    # Without a table everything was allowed.
    previous = ["--file", str(FILE)] if loaded_fingerprint() and FILE.exists() else ["delete", "table", *firewall.TABLE.split()]
    timer = [f"--on-active={seconds}", "--timer-property=AccuracySec=100ms", "--service-type=oneshot"]
    run(["systemd-run", "--quiet", "--collect", f"--unit={ROLLBACK_UNIT}", *timer, "/usr/sbin/nft", *previous])
    loaded = _nft(table)
    if loaded.status != 0:
        run(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"])
        raise FirewallError(f"{loaded.last_lines()}\nthe previous rules stay active")
    return True


def confirm(table: Table) -> None:
    """Keep the loaded rules, and load them at boot from now on.

    :raises FirewallError: if they have been rolled back already.
    """
    if loaded_fingerprint() != table.fingerprint:
        raise FirewallError("the new connection came too late: the host has rolled back to the previous rules")
    run(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"], check=False)  # it does not exist if no rules changed
    try:
        file_set.converge(table.files, service=systemd.ServiceSpec(UNIT, on_change="reload"))
    except file_set.FileSetError as error:
        raise FirewallError(str(error)) from error


def _remove(table: Table) -> None:
    """Remove the table and its files, which allows all traffic."""
    if UNIT_FILE.exists():
        run(["systemctl", "disable", "--now", f"{UNIT}.service"])
    if loaded_fingerprint():
        run(["nft", "delete", "table", *firewall.TABLE.split()])
    file_set.Transaction(table.files.changes()).apply()
    for directory in (FILE.parent, DROP_IN.parent):
        with contextlib.suppress(OSError):  # it is not empty or does not exist
            directory.rmdir()
    run(["systemctl", "daemon-reload"])


def _roll_back_unconfirmed() -> None:
    """Roll back the rules of an earlier run that were not confirmed."""
    if run(["systemctl", "is-active", "--quiet", f"{ROLLBACK_UNIT}.timer"], check=False).status == 0:
        run(["systemctl", "start", f"{ROLLBACK_UNIT}.service"])
        run(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"], check=False)


def _nft(table: Table, *options: str) -> CommandResult:
    """Run nft on the rules."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".nft") as file:
        file.write(firewall.render(table.lines or ()))
        file.flush()
        return run(["nft", *options, "--file", file.name], check=False)
