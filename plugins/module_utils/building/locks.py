"""Lock files other than uv.lock, as lines of requirements files.

Packages from an index are specified by version and hashes rather than by URL, so that the host uses its own index, mirror or
wheelhouse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: The groups of packages that an app needs to run.
_RUNTIME_GROUPS = {"main", "default"}

#: Maximum length of a dependency.
MAX_LINE = 1000

#: A requirement (PEP 508) with single spaces: its name, its extras, its version or URL, and its marker.
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*) ?(\[[^\]]*\])?[^;]*(?:; ?(.+))?")


@dataclass(frozen=True)
class LockedPackage:
    """A package of a lock file: from an index by ``version`` and ``hashes``, from ``url``, or from ``path`` in the source."""

    name: str
    version: str = ""
    marker: str = ""
    hashes: list[str] = field(default_factory=list)
    url: str = ""
    path: str = ""

    def line(self, extras: str = "", marker: str = "") -> str:
        """Return the line of a requirements file; ``marker`` is a further condition."""
        if self.path:
            line = f"./{self.path}{extras}"
        elif self.url:
            line = f"{self.name}{extras} @ {self.url}"
        else:
            line = f"{self.name}{extras}=={self.version}"
        condition = " and ".join(f"({part})" if marker and self.marker else part for part in (marker, self.marker) if part)
        return " ".join([f"{line} ; {condition}" if condition else line, *(f"--hash={value}" for value in self.hashes)])


@dataclass(frozen=True)
class LockedProject:
    """The direct dependencies of a project in the locked versions, and all packages of its lock as constraints."""

    requirements: list[str]
    constraints: list[str]


def lock_project(project: Mapping[str, Any], packages: Iterable[LockedPackage]) -> LockedProject:
    """Select the locked versions of a project's direct dependencies.

    Most locks of Poetry do not say which packages are needed at run time, or on which condition; the installation follows the
    dependencies from the direct ones, with the whole lock as constraints.

    :arg project: the content of pyproject.toml.
    :raises ValueError: when the lock does not contain a dependency.
    """
    found: dict[str, list[LockedPackage]] = {}
    for package in packages:
        found.setdefault(normalized(package.name), []).append(package)
    requirements = []
    for name, extras, marker in direct_dependencies(project):
        if normalized(name) not in found:
            raise ValueError(f"it does not contain {name}, a dependency in pyproject.toml; lock again")
        requirements += [package.line(extras, marker) for package in found[normalized(name)]]
    requirements += [package.line() for versions in found.values() for package in versions if package.path]
    constraints = [package.line() for versions in found.values() for package in versions if not package.path]
    return LockedProject(list(dict.fromkeys(requirements)), list(dict.fromkeys(constraints)))


def normalized(name: str) -> str:
    """Return the normalized name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_dependencies(project: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the extras and the marker of each runtime dependency in a pyproject.toml, also in Poetry's format.

    :raises ValueError: when one cannot be parsed.
    """
    for line in project.get("project", {}).get("dependencies", []):
        match = _REQUIREMENT.fullmatch(" ".join(line.split())) if len(line) < MAX_LINE else None
        if not match:
            raise ValueError(f"pyproject.toml has an invalid dependency: {line[:MAX_LINE]!r}")
        yield match[1], (match[2] or "").replace(" ", ""), match[3] or ""
    for name, value in project.get("tool", {}).get("poetry", {}).get("dependencies", {}).items():
        for entry in value if isinstance(value, list) else [value]:
            options = entry if isinstance(entry, dict) else {}
            if name != "python" and not options.get("optional"):
                extras = f"[{','.join(options['extras'])}]" if options.get("extras") else ""
                yield name, extras, options.get("markers", "")


def poetry_packages(lock: Mapping[str, Any]) -> Iterator[LockedPackage]:
    """Yield the packages of a poetry.lock that can be needed at run time."""
    files = lock.get("metadata", {}).get("files", {})  # before Poetry 1.3
    for package in lock.get("package", []):
        groups = set(package.get("groups", [package.get("category", "main")]))
        if not groups & _RUNTIME_GROUPS:
            continue
        markers = package.get("markers", "")
        source = package.get("source", {})
        kind, url = source.get("type", ""), source.get("url", "")
        hashes = sorted({entry["hash"] for entry in package.get("files") or files.get(package["name"], [])})
        yield LockedPackage(
            name=package["name"],
            version=package["version"],
            marker=markers.get("main", "") if isinstance(markers, dict) else markers,
            hashes=hashes if kind not in ("git", "directory") else [],
            url=_git_url(url, source.get("resolved_reference"), source.get("subdirectory")) if kind == "git" else "",
            path=url if kind in ("directory", "file") else "",
        )


def pdm_packages(lock: Mapping[str, Any]) -> Iterator[LockedPackage]:
    """Yield the packages of a pdm.lock that can be needed at run time."""
    for package in lock.get("package", []):
        if set(package.get("groups", ["default"])) & _RUNTIME_GROUPS:
            git = package.get("git", "")
            yield LockedPackage(
                name=package["name"],
                version=package.get("version", ""),
                marker=package.get("marker", ""),
                hashes=sorted({entry["hash"] for entry in package.get("files", [])}) if not git else [],
                url=_git_url(git, package.get("revision"), package.get("subdirectory")) if git else package.get("url", ""),
                path=package.get("path", "").removeprefix("./"),
            )


def pipfile_lines(lock: Mapping[str, Any]) -> list[str]:
    """Return the runtime packages of a Pipfile.lock as lines of a requirements file."""
    lines = []
    for name, entry in lock.get("default", {}).items():
        git = entry.get("git", "")
        package = LockedPackage(
            name=name,
            version=entry.get("version", "").removeprefix("=="),
            marker=entry.get("markers", ""),
            hashes=sorted(entry.get("hashes", [])),
            url=_git_url(git, entry.get("ref"), entry.get("subdirectory")) if git else entry.get("file", ""),
            path=entry.get("path", "").removeprefix("./"),
        )
        lines.append(package.line(f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""))
    return lines


def pylock_lines(lock: Mapping[str, Any]) -> list[str]:
    """Return the packages of a lock file of PEP 751, except the project itself, as lines of a requirements file.

    :raises ValueError: for a package that a requirements file cannot specify.
    """
    return [_pylock_package(package).line() for package in lock.get("packages", []) if not is_project(package)]


def is_project(package: Mapping[str, Any]) -> bool:
    """Return whether a package of a lock file of PEP 751 is the project itself."""
    return str(package.get("directory", {}).get("path", "")) in (".", "./")


def _pylock_package(package: Mapping[str, Any]) -> LockedPackage:
    name, archive, vcs = package["name"], package.get("archive", {}), package.get("vcs", {})
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else []), *([archive] if archive else [])]
    marker = package.get("marker", "")
    if "dependency_groups" in marker or "extras" in marker:
        raise ValueError(f"{name} belongs to a dependency group or an extra ({marker}); lock only the runtime dependencies")
    path = archive.get("path") or package.get("directory", {}).get("path") or vcs.get("path") or ""
    if not (vcs.get("url") or archive.get("url") or path or (package.get("version") and files)):
        raise ValueError(f"{name} has neither files nor a URL; lock a version from an index")
    return LockedPackage(
        name=name,
        version=package.get("version", ""),
        marker=marker,
        hashes=sorted({f"{kind}:{value}" for file in files for kind, value in file.get("hashes", {}).items()}),
        url=f"{vcs['type']}+{vcs['url']}@{vcs['commit-id']}" if vcs.get("url") else archive.get("url", ""),
        path=path.removeprefix("./"),
    )


def _git_url(url: str, commit: object, subdirectory: object) -> str:
    """Return the URL of a commit; an address as of scp, ``git@host:path``, becomes one of ssh."""
    if match := re.fullmatch(r"([\w.-]+@[\w.-]+):(?!//)(.+)", url):
        url = f"ssh://{match[1]}/{match[2]}"
    fragment = f"#subdirectory={subdirectory}" if subdirectory else ""
    return f"git+{url.removeprefix('git+')}@{commit}{fragment}"
