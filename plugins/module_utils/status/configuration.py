"""Services that would not start again, and settings that other files of a host override."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.sites.nginx_config import error_text
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import (
    DROP_IN,
    LIMITS_FILE,
    SYSCTL_FILE,
    overriding_drop_in,
    unit_limit,
)

#: The commands by which services check their configuration.
CHECKS: Mapping[str, Sequence[str]] = {
    "nginx": ("/usr/sbin/nginx", "-t", "-q"),
    "haproxy": ("/usr/sbin/haproxy", "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg"),
}

#: A service that systemd has restarted this often within so many seconds restarts in a loop.
LOOP_RESTARTS, LOOP_SECONDS = 6, 60

#: Directories of kernel settings: systemd applies the files of all of them in the order of their names, sysctl.d(5).
SYSCTL_DIRECTORIES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")


def service_problems(names: Sequence[str]) -> Iterator[str]:
    """Yield why services would not start, or do not stay up, in their own words.

    :raises ServiceError: when systemd does not run this host.
    """
    for name in names:
        state = systemd.query(name)
        if not state.exists:
            continue
        if reason := configuration_error(name):
            then = "it runs with the previous one, and will not start after a reboot" if state.active else "it cannot start"
            yield f"{name}: its configuration is invalid, so that {then}: {reason}"
        elif not state.active:
            yield f"{name}: its last log lines are: {_last_words(name)}"
        elif systemd.age(state) < LOOP_SECONDS and (restarts := _recent_restarts(name)) >= LOOP_RESTARTS:
            yield f"{name}: restarts in a loop, {restarts} times in the last {LOOP_SECONDS} s: {_last_words(name)}"
        if not state.enabled:
            yield f"{name}: is not enabled, and will not start after a reboot; run site.yml"


def configuration_error(name: str) -> str:
    """Return why a service refuses its configuration; empty if it does not, or has no check."""
    if name not in CHECKS:
        return ""
    try:
        tested = run(CHECKS[name], check=False)
    except CommandError:
        return ""
    return error_text(tested.output) if tested.status != 0 else ""


def _recent_restarts(name: str) -> int:
    """Return how often systemd has restarted a service lately, which its counter of all restarts does not tell."""
    options = [f"--unit={systemd.unit_name(name)}", f"--since=-{LOOP_SECONDS}s", "--lines=1000"]
    journal = run(["journalctl", *options, "--no-pager", "--quiet", "--output=cat"], check=False).output
    return journal.count("Scheduled restart job")


def _last_words(name: str) -> str:
    unit = systemd.unit_name(name)
    shown = run(["journalctl", f"--unit={unit}", "--no-pager", "--quiet", "--output=cat", "--lines=3"], check=False).output
    return last_lines(shown, 3) or "none"


def overridden_settings(services: Sequence[str], base: Path = Path("/")) -> Iterator[str]:
    """Yield the kernel settings and limits of the collection that are not in effect, or will not be after a reboot."""
    yield from _sysctl_problems(base)
    yield from _login_problems(base)
    for name in services:
        yield from _unit_problems(name, base)


def _sysctl_problems(base: Path) -> Iterator[str]:
    desired = _sysctl_settings(base / SYSCTL_FILE.lstrip("/"))
    files: dict[str, Path] = {}
    for directory in SYSCTL_DIRECTORIES:  # a file hides those of the same name in later directories
        for path in (base / directory).glob("*.conf"):
            files.setdefault(path.name, path)
    final: dict[str, tuple[int, Path]] = {}
    for key in sorted(files):
        final |= {name: (value, files[key]) for name, value in _sysctl_settings(files[key]).items()}
    for name, minimum in desired.items():
        value, path = final[name]
        shown = f"/{path.relative_to(base)}"
        if value < minimum:
            yield f"{name}: {shown} overrides {SYSCTL_FILE}, so that it will be {value} instead of {minimum} after a reboot"
        current = int((base / "proc/sys" / name.replace(".", "/")).read_text(encoding="utf-8"))
        if current < minimum:
            yield f"{name}: is {current} instead of {minimum}; run site.yml"


def _sysctl_settings(path: Path) -> dict[str, int]:
    """Return the numeric settings of a file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.findall(r"^\s*-?([\w./-]+?)\s*=\s*(\d+)\s*$", text, re.MULTILINE)
    return {name.replace("/", "."): int(value) for name, value in found}


def _login_problems(base: Path) -> Iterator[str]:
    """Yield the later files of limits.d that lower the open files of all users or of root: pam_limits reads them in order."""
    own = base / LIMITS_FILE.lstrip("/")
    desired = dict(_login_limits(own))
    for path in sorted(own.parent.glob("*.conf")):
        for key, value in _login_limits(path) if path.name > own.name else ():
            if value < desired.get(key, 0):
                shown = f"/{path.relative_to(base)}"
                yield f"{shown} overrides {LIMITS_FILE}: logins of {key[0]} get {value} open files instead of {desired[key]}"


def _login_limits(path: Path) -> Iterator[tuple[tuple[str, str], int]]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for domain, kind, value in re.findall(r"^\s*(\*|root)\s+(soft|hard|-)\s+nofile\s+(\d+)", text, re.MULTILINE):
        yield from (((domain, limit), int(value)) for limit in (("soft", "hard") if kind == "-" else (kind,)))


def _unit_problems(name: str, base: Path) -> Iterator[str]:
    """Yield the drop-in of a unit that lowers its limit of open files, or that the host does not allow the limit."""
    own = unit_limit(base / f"etc/systemd/system/{name}.service.d/{DROP_IN}")
    if own is None:
        return
    current = run(["systemctl", "show", "--property=LimitNOFILESoft", "--value", systemd.unit_name(name)]).output.strip()
    if current.isdigit() and int(current) < own[0]:
        found = overriding_drop_in(name, base)
        cause = f"{found.path} sets" if found else "the host allows"
        yield f"{name}: {cause} a limit of {current} open files instead of {own[0]}"
