"""Debian packages by dpkg and apt-get, and the distributions this collection knows."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandResult, last_lines, run

#: The first Debian release that is supported, and the Ubuntu releases that are.
OLDEST_DEBIAN = 12
UBUNTU = ("22.04", "24.04")

#: What the modules need, as Tornado 6.6 does.
OLDEST_PYTHON = (3, 11)

#: Seconds to wait for another apt or dpkg, such as the daily upgrade of a host that was just booted.
LOCK_SECONDS = 120

_APT_GET = (
    "apt-get",
    "--yes",
    "--quiet",
    "--no-install-recommends",
    f"--option=DPkg::Lock::Timeout={LOCK_SECONDS}",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Acquire::Retries=3",
)
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none", "NEEDRESTART_SUSPEND": "1"}


class PackagesError(Exception):
    """The host is not supported, or its packages cannot be installed. The message holds apt's last lines."""


@dataclass(frozen=True)
class Distribution:
    """What a host runs: ``id``, ``number`` and ``codename`` as in os-release(5), such as debian, 12 and bookworm.

    Debian's testing and unstable have no number.
    """

    id: str
    number: str
    codename: str
    name: str

    @classmethod
    def of_host(cls, base: Path = Path("/")) -> Distribution:
        """Read what the host runs; nothing, if it does not say."""
        try:
            text = (base / "etc/os-release").read_text()
        except OSError:
            text = ""
        pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
        said = {key.strip(): value.strip().strip("\"'") for key, value in pairs}
        names = (said.get(key, "") for key in ("ID", "VERSION_ID", "VERSION_CODENAME", "PRETTY_NAME"))
        return cls(*names)

    @property
    def supported(self) -> bool:
        """Whether it is one that the collection is for; what is newer than Debian's newest counts as that."""
        if self.id == "ubuntu":
            return self.number in UBUNTU
        return self.id == "debian" and not (self.number.isdigit() and int(self.number) < OLDEST_DEBIAN)


def require_supported_host(base: Path = Path("/"), python: tuple[int, int] = sys.version_info[:2]) -> Distribution:
    """See that this host runs a distribution that is supported, and Ansible's modules a Python that is; return the former.

    :raises PackagesError: naming what it runs, and what would be right.
    """
    found = Distribution.of_host(base)
    host = f"host {platform.node()} runs"
    if not found.supported:
        known = f"Debian 12 and 13, Ubuntu {' and '.join(UBUNTU)}"
        raise PackagesError(f"{host} {found.name or 'an unknown system'}; funnel.tornado supports {known}")
    if python < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        right = f"install python{oldest} there, and set ansible_python_interpreter to /usr/bin/python{oldest} for it"
        raise PackagesError(f"{host} modules by Python {python[0]}.{python[1]}, and they need {oldest}; {right}")
    return found


def installed_versions(names: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of those of ``names`` that are installed; of all that are, without names."""
    listed = run(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package} ${Version}\n", *names], check=False).output
    rows = [line.split() for line in listed.splitlines()]
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0] == "installed"}


def upstream_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """Return what the authors of packages call their versions: Debian's without epoch and revision (deb-version(7))."""
    without_epoch = {name: version.rpartition(":")[2] for name, version in versions.items()}
    return {name: version.rpartition("-")[0] or version for name, version in without_epoch.items()}


def select_versions(names: object, known: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of packages that are known, or nothing unless those of all are."""
    if not isinstance(names, list) or not set(names) <= known.keys():
        return {}
    return {name: known[name] for name in names}


def install(names: Sequence[str], *, lists_max_age: float) -> None:
    """Install packages; the package lists are updated first if older than ``lists_max_age`` seconds or lacking one.

    :raises PackagesError: with apt's last lines.
    """
    updated = ""
    if _lists_age() > lists_max_age or len(candidates(names)) < len(names):
        updated = _update().output
        known = candidates(names)
        if unknown := [name for name in names if name not in known]:
            raise PackagesError(f"no package source of this host has {', '.join(unknown)}:\n{last_lines(updated, 8)}")
    installed = run([*_APT_GET, "install", *names], timeout=1800, environment=_ENVIRONMENT, check=False)
    if installed.status != 0:
        raise PackagesError(f"apt-get install {' '.join(names)} failed:\n{last_lines(installed.output)}")


def upgradable(names: Sequence[str], *, lists_max_age: float) -> dict[str, tuple[str, str]]:
    """Return the version that each package has and would get; one that is new, as a kernel's often is, has none yet.

    The package lists are updated first if older than ``lists_max_age`` seconds; no package is removed, and held ones stay.

    :arg names: the packages; all that are installed, if empty.
    :raises PackagesError: with apt's last lines.
    """
    if _lists_age() > lists_max_age:
        updated = _update("--option=APT::Update::Error-Mode=any")
        if updated.status != 0:
            raise PackagesError(f"apt-get update failed:\n{last_lines(updated.output)}")
    return parse_simulation(_upgrade(names, "--simulate").output)


def upgrade(names: Sequence[str]) -> None:
    """Upgrade what `upgradable` returns.

    :raises PackagesError: with apt's last lines.
    """
    _upgrade(names)


def _upgrade(names: Sequence[str], *options: str) -> CommandResult:
    command = ["install", "--only-upgrade", *names] if names else ["upgrade", "--with-new-pkgs"]
    done = run([*_APT_GET, *options, *command], timeout=1800, environment=_ENVIRONMENT, check=False)
    if done.status != 0:
        raise PackagesError(f"apt-get {' '.join(command)} failed:\n{last_lines(done.output)}")
    return done


def parse_simulation(output: str) -> dict[str, tuple[str, str]]:
    """Return what apt-get says it would install: `Inst nginx [1.22.1-9] (1.22.1-10 Debian:12.9/stable [amd64]) []`."""
    found = re.finditer(r"^Inst (\S+) (?:\[(\S+)\] )?\((\S+)", output, re.MULTILINE)
    return {one[1]: (one[2] or "", one[3]) for one in found}


def candidates(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those of ``names`` that apt, as its lists are now, could install."""
    found: dict[str, str] = {}
    package = ""
    for line in run(["apt-cache", "policy", *names]).output.splitlines():
        if not line.startswith(" "):
            package = line.rstrip(":")
        elif line.startswith("  Candidate: ") and not line.endswith("(none)"):
            found[package] = line.removeprefix("  Candidate: ")
    return found


def _lists_age() -> float:
    """Return how many seconds ago the package lists were updated; every update writes below ``partial``."""
    try:
        return time.time() - Path("/var/lib/apt/lists/partial").stat().st_mtime
    except OSError:
        return float("inf")


def _update(*options: str) -> CommandResult:
    """Update the package lists. That one source of several fails is no error here: the packages may be in the others."""
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        updated = run([*_APT_GET, *options, "update"], timeout=600, environment=_ENVIRONMENT, check=False)
        # apt's own waiting (DPkg::Lock::Timeout) is for dpkg's lock, not for that of the lists.
        if "/lists/lock" not in updated.output or time.monotonic() > give_up:
            return updated
        time.sleep(2)
