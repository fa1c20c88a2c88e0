"""Debian packages, managed with dpkg and apt-get, and the supported distributions."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandResult, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll

#: The oldest supported Debian release, and the supported Ubuntu releases.
OLDEST_DEBIAN = 12
UBUNTU = ("22.04", "24.04", "26.04")

#: Minimum Python version of the modules, and of Tornado 6.6.
OLDEST_PYTHON = (3, 11)

#: Seconds to wait for locks of other apt or dpkg processes, such as a scheduled upgrade.
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
#: Services that packages start with a configuration of their own: nginx with a welcome page, which also needs IPv6.
_DEFERRED = frozenset({"nginx"})

#: Name of a Debian package (Debian Policy, 5.6.1). apt-get would take a trailing hyphen as an order to remove the package.
PACKAGE_NAME = r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]"

_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none", "NEEDRESTART_SUSPEND": "1"}


class PackagesError(Exception):
    """The host is not supported, or packages cannot be installed. The message contains the last lines of apt's output."""


@dataclass(frozen=True)
class Distribution:
    """Distribution of a host: ``id``, ``number`` and ``codename`` from os-release(5), such as debian, 12 and bookworm.

    Debian testing and unstable have no number.
    """

    id: str
    number: str
    codename: str
    name: str

    @classmethod
    def of_host(cls, base: Path = Path("/")) -> Distribution:
        """Read os-release(5); all fields are empty if it does not exist."""
        try:
            text = (base / "etc/os-release").read_text(encoding="utf-8")
        except OSError:
            text = ""
        pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
        values = {key.strip(): value.strip().strip("\"'") for key, value in pairs}
        return cls(*(values.get(key, "") for key in ("ID", "VERSION_ID", "VERSION_CODENAME", "PRETTY_NAME")))

    @property
    def supported(self) -> bool:
        """Whether the collection supports it; Debian testing and unstable count as the newest release."""
        if self.id == "ubuntu":
            return self.number in UBUNTU
        return self.id == "debian" and not (self.number.isdigit() and int(self.number) < OLDEST_DEBIAN)


def require_supported_host(base: Path = Path("/"), python: tuple[int, int] = sys.version_info[:2]) -> Distribution:
    """Return the distribution of this host if it and the Python of Ansible's modules are supported.

    :raises PackagesError: with the unsupported and the supported versions.
    """
    distribution = Distribution.of_host(base)
    host = f"host {platform.node()} runs"
    if not distribution.supported:
        supported = f"Debian 12 and 13, Ubuntu {', '.join(UBUNTU[:-1])} and {UBUNTU[-1]}"
        raise PackagesError(f"{host} {distribution.name or 'an unknown system'}; funnel.tornado supports {supported}")
    if python < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        remedy = f"install python{oldest} there, and set ansible_python_interpreter to /usr/bin/python{oldest} for it"
        raise PackagesError(f"{host} modules with Python {python[0]}.{python[1]}, but they need {oldest}; {remedy}")
    return distribution


def require_names(names: Sequence[str]) -> None:
    """Verify that all ``names`` are names of packages, optionally with an architecture as in ``libc6:i386``.

    :raises PackagesError: for others, such as options and the notations with which apt-get removes packages.
    """
    invalid = [name for name in names if not re.fullmatch(f"{PACKAGE_NAME}(:[a-z0-9-]+)?", name)]
    if invalid:
        raise PackagesError(f"names of Debian packages are required, such as ffmpeg; found {', '.join(map(repr, invalid))}")


def installed_versions(names: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of the installed packages among ``names``, or of all installed packages.

    For a name that only other packages provide, such as libmagic1 where that is libmagic1t64, it is the version of the provider.
    """
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version} ${Package} ${Architecture}\n", "--", *names]
    listed = run(query, check=False).output
    rows = [row for line in listed.splitlines() if len(row := line.split()) == 4 and row[0] == "installed"]
    versions = {name: row[1] for row in rows for name in (row[2], f"{row[2]}:{row[3]}") if name in (names or [row[2]])}
    return versions | provided_versions([name for name in names if name not in versions])


def provided_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of installed packages that provide ``names``, as far as these are no packages themselves."""
    if not names:
        return {}
    listed = run(["dpkg-query", "--show", "--showformat=${db:Status-Status}\t${Version}\t${Provides}\n"], check=False).output
    versions = parse_provides(listed)
    provided = {name: versions[name] for name in names if name in versions}
    packages = _package_candidates(list(provided)) if provided else {}
    return {name: version for name, version in provided.items() if name not in packages}


def parse_provides(output: str) -> dict[str, str]:
    """Return the versions of installed packages by what they provide: `installed	1:5.45-3	libmagic1 (= 1:5.45-3), magic`."""
    rows = [line.split("\t") for line in output.splitlines()]
    installed = [(row[1], row[2]) for row in rows if len(row) == 3 and row[0] == "installed"]
    return {entry.split()[0]: version for version, provides in installed for entry in provides.split(",") if entry.strip()}


def upstream_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """Return upstream versions: Debian versions without epoch and revision, deb-version(7)."""
    without_epoch = {name: version.rpartition(":")[2] for name, version in versions.items()}
    return {name: version.rpartition("-")[0] or version for name, version in without_epoch.items()}


def select_versions(names: object, versions: Mapping[str, str]) -> dict[str, str]:
    """Return the ``versions`` of packages, or nothing if one of them is missing."""
    if not isinstance(names, list) or not set(names) <= versions.keys():
        return {}
    return {name: versions[name] for name in names}


def find_unavailable(names: Sequence[str]) -> list[str]:
    """Return the packages that no source has; update the package lists first if they lack one.

    If the lists cannot be updated, nothing is known, and nothing is returned: the installation reports the reason.
    """
    if not names or len(available := candidates(names)) == len(names):
        return []
    if _update("--option=APT::Update::Error-Mode=any").status == 0:
        available = candidates(names)
        return [name for name in names if name not in available]
    return []


def install(names: Sequence[str], *, lists_max_age: float) -> str:
    """Install packages; first update the package lists if a package is not in them, or after ``lists_max_age`` seconds.

    Return a message if dpkg cannot configure other packages of the host, which is no reason to stop.

    :raises PackagesError: with the last lines of apt's output.
    """
    updated = ""
    if _lists_age() > lists_max_age or len(candidates(names)) < len(names):
        updated = _update().output
        available = candidates(names)
        if missing := [name for name in names if name not in available]:
            raise PackagesError(f"no package source of this host has {', '.join(missing)}:\n{last_lines(updated, 8)}")
    with _not_started(_DEFERRED.intersection(names)):
        result = run([*_APT_GET, "install", "--", *names], timeout=1800, environment=_ENVIRONMENT, check=False)
    if result.status == 0:
        return ""
    if names and {*names} <= installed_versions(names).keys() and (broken := unconfigured()):
        return f"dpkg cannot configure {', '.join(broken)}; run dpkg --configure -a on the host, and correct what it reports"
    raise PackagesError(f"apt-get install {' '.join(names)} failed:\n{last_lines(result.output)}")


def unconfigured() -> list[str]:
    """Return the packages that dpkg has unpacked, but not configured."""
    listed = run(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n"], check=False).output
    rows = [line.split() for line in listed.splitlines()]
    return sorted(row[1] for row in rows if row[0] in ("half-configured", "unpacked"))


@contextlib.contextmanager
def _not_started(services: Collection[str]) -> Iterator[None]:
    """Mask services meanwhile; the next installation or a reboot removes the mask of an interrupted run."""
    if not services:
        yield
        return
    run(["systemctl", "mask", "--runtime", *services], check=False)
    try:
        yield
    finally:
        run(["systemctl", "unmask", "--runtime", *services], check=False)


def upgradable(names: Sequence[str], *, lists_max_age: float) -> dict[str, tuple[str, str]]:
    """Return the installed and the candidate version of each upgradable package; new packages, such as kernels, have only one.

    The package lists are updated first if older than ``lists_max_age`` seconds. Upgrades remove no package and respect holds.

    :arg names: the packages; all installed ones if empty.
    :raises PackagesError: with the last lines of apt's output.
    """
    if _lists_age() > lists_max_age:
        updated = _update("--option=APT::Update::Error-Mode=any")
        if updated.status != 0:
            raise PackagesError(f"apt-get update failed:\n{last_lines(updated.output)}")
    return parse_simulation(_upgrade(names, "--simulate").output)


def upgrade(names: Sequence[str]) -> None:
    """Upgrade the packages that :func:`upgradable` returns.

    :raises PackagesError: with the last lines of apt's output.
    """
    _upgrade(names)


def _upgrade(names: Sequence[str], *options: str) -> CommandResult:
    command = ["install", "--only-upgrade", "--", *names] if names else ["upgrade", "--with-new-pkgs"]
    result = run([*_APT_GET, *options, *command], timeout=1800, environment=_ENVIRONMENT, check=False)
    if result.status != 0:
        raise PackagesError(f"apt-get {' '.join(command)} failed:\n{last_lines(result.output)}")
    return result


def parse_simulation(output: str) -> dict[str, tuple[str, str]]:
    """Parse simulated installations of apt-get: `Inst nginx [1.22.1-9] (1.22.1-10 Debian:12.9/stable [amd64]) []`."""
    matches = re.finditer(r"^Inst (\S+) (?:\[(\S+)\] )?\((\S+)", output, re.MULTILINE)
    return {match[1]: (match[2] or "", match[3]) for match in matches}


def candidates(names: Sequence[str]) -> dict[str, str]:
    """Return the candidate versions of the packages among ``names`` that are in the current package lists.

    A name that a single other package provides has the version of that package, which apt-get installs for it.
    """
    versions = _package_candidates(names)
    virtual = [name for name in names if name not in versions]
    if virtual:
        versions |= parse_providers(run(["apt-cache", "showpkg", "--", *virtual], check=False).output)
    return versions


def _package_candidates(names: Sequence[str]) -> dict[str, str]:
    versions: dict[str, str] = {}
    package = ""
    for line in run(["apt-cache", "policy", "--", *names]).output.splitlines():
        if not line.startswith(" "):
            package = line.rstrip(":")
        elif line.startswith("  Candidate: ") and not line.endswith("(none)"):
            versions[package] = line.removeprefix("  Candidate: ")
    # apt-cache lists nginx:amd64 as nginx where that is the architecture of the host, and tzdata:all as tzdata.
    bare = {f"{package}:{own}": version for package, version in versions.items() for own in ("all", _architecture())}
    return {name: found for name in names if (found := versions.get(name) or bare.get(name))}


@functools.cache
def _architecture() -> str:
    """Return the architecture of the packages of this host, such as amd64."""
    return run(["dpkg", "--print-architecture"]).output.strip()


def parse_providers(output: str) -> dict[str, str]:
    """Return the version of the package that provides each virtual package, from `apt-cache showpkg`, if it is a single one."""
    found: dict[str, str] = {}
    for block in re.split(r"^Package: ", output, flags=re.MULTILINE)[1:]:
        name, _end, rest = block.partition("\n")
        providers = [line.split() for line in rest.partition("\nReverse Provides:")[2].splitlines() if line.strip()]
        if len({provider[0] for provider in providers}) == 1:
            found[name.strip()] = providers[0][1]
    return found


def _lists_age() -> float:
    """Return the seconds since the last update of the package lists, which always modifies ``partial``."""
    with contextlib.suppress(OSError):
        age = time.time() - Path("/var/lib/apt/lists/partial").stat().st_mtime
        if age >= 0:  # otherwise the clock was set back meanwhile
            return age
    return float("inf")


def _update(*options: str) -> CommandResult:
    """Update the package lists; failed sources are no error, as others may have the packages.

    DPkg::Lock::Timeout applies to the lock of dpkg only, not to the lock of the lists.
    """
    return poll(
        lambda: run([*_APT_GET, *options, "update"], timeout=600, environment=_ENVIRONMENT, check=False),
        lambda result: "/lists/lock" not in result.output,
        timeout=LOCK_SECONDS,
        interval=2,
    )
