"""The release manifest: the typed content of ``release.json``, which describes a release to deploys, health checks and status."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible_collections.funnel.tornado.plugins.module_utils.app.workers import WorkerOptions
from ansible_collections.funnel.tornado.plugins.module_utils.core import status_codes
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

#: Digits of the content hash, by which hosts are compared.
CONTENT_DIGITS = 12

#: Manifest fields that may differ between hosts with the same desired state.
HOST_SPECIFIC = frozenset({"id", "processes", "built", "by"})


@dataclass(frozen=True)
class HealthCheck:
    """The request of a health check, the status codes of a healthy process, and the seconds until a new process is healthy."""

    path: str = "/"
    timeout: int = 30
    status: list[str] = field(default_factory=lambda: list(status_codes.DEFAULT))
    headers: dict[str, str] = field(default_factory=dict)

    def accepts(self, status: int) -> bool:
        """Return whether a process that answers with ``status`` is healthy."""
        return status_codes.accepts(self.status, status)


@dataclass(frozen=True)
class Worker:
    """The command of processes that serve no requests, their number, and how they stop.

    ``stop_timeout`` is in seconds; None is the release's ``drain``.
    """

    argv: list[str]
    count: int
    stop_timeout: int | None = None
    stop_signal: str = "TERM"
    stop_group: bool = True
    singleton: bool = False

    @classmethod
    def from_options(cls, argv: list[str], options: WorkerOptions) -> Worker:
        """Return the worker that runs ``argv`` with the options of the app's entry."""
        return cls(
            argv, options.count, options.stop_timeout, options.stop_signal, options.stop_group, singleton=options.singleton
        )


@dataclass(frozen=True)
class SharedPath:
    """How a path that persists outside releases is used: the URL prefix that nginx serves it at, and whether it is backed up."""

    url: str | None = None
    backup: bool = True


class StaticFiles(NamedTuple):
    """The URL prefix under which nginx serves the directory ``path`` of the source."""

    url: str
    path: str


@dataclass(frozen=True)
class ReleaseManifest:
    """Everything that starts, checks, drains and reports a release, except its secrets.

    The launcher, which runs without this collection, reads the same keys from ``release.json``. The defaults apply to
    releases that older versions of the collection built.
    """

    app: str
    id: str
    revision: str
    argv: list[str] = field(default_factory=list)
    runner: bool = False
    workers: dict[str, Worker] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    processes: int = 1
    port: int | None = None
    open_files: int | None = None
    drain: int = 30
    health: HealthCheck = field(default_factory=HealthCheck)
    host: str = "localhost"
    static: StaticFiles | None = None
    shared: dict[str, SharedPath] = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=dict)
    hooks_once: list[str] = field(default_factory=list)
    hooks_timeout: int = 600
    soak: int = 0
    soak_errors: int = 5
    keep_releases: int = 3
    built: str = ""
    by: str = ""

    @property
    def process_summary(self) -> str:
        """The number of processes, as a diff shows it."""
        return f"{self.processes} process{'' if self.processes == 1 else 'es'}"

    @property
    def summary(self) -> str:
        """The release, its revision and its number of processes, as a diff shows them."""
        return f"release {self.id} of revision {self.revision}, {self.process_summary}"

    @property
    def stop_timeout(self) -> int:
        """The seconds until all processes have stopped or are killed."""
        return max(self.drain, *(worker.stop_timeout or 0 for worker in self.workers.values()), 0)

    def to_json(self) -> str:
        """Return the text of ``release.json``."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ReleaseManifest:
        """Parse ``release.json``; ignore unknown keys.

        :raises ValueError: when the text is not JSON.
        :raises TypeError: when a value has the wrong shape or a required key is missing.
        """
        values = _select(cls, json.loads(text))
        if "health" in values:
            values["health"] = HealthCheck(**_select(HealthCheck, values["health"]))
        if "workers" in values:
            values["workers"] = {name: Worker(**_select(Worker, entry)) for name, entry in values["workers"].items()}
        if "shared" in values:
            values["shared"] = {path: SharedPath(**_select(SharedPath, entry)) for path, entry in values["shared"].items()}
        if values.get("static"):
            values["static"] = StaticFiles(*values["static"])
        if values.get("hooks_once") in (True, False):  # before there were other hooks with `once`
            values["hooks_once"] = ["before_switch"] if values["hooks_once"] else []
        return cls(**values)


def read_manifest(layout: Layout, release: str) -> ReleaseManifest:
    """Return the manifest of a release on this host.

    :raises OSError: when the release is not on this host, or damaged.
    """
    text = layout.manifest(release).read_text(encoding="utf-8")
    try:
        return ReleaseManifest.from_json(text)
    except (TypeError, ValueError) as error:
        raise OSError(f"{layout.manifest(release)} is damaged: {error}") from error


def content_hash(layout: Layout, manifest: ReleaseManifest) -> str:
    """Return the hash of a release that is the same on all hosts with the same desired state."""
    directory = layout.release(manifest.id)
    fields = {key: value for key, value in dataclasses.asdict(manifest).items() if key not in HOST_SPECIFIC}
    fields["workers"] = {name: worker | {"count": None} for name, worker in fields["workers"].items()}
    programs = [directory / "launch.py", *directory.glob("runner.py"), *sorted(directory.glob("runner/*.py"))]
    files = [path.read_text(encoding="utf-8") for path in (directory / "secrets.json", *programs)]
    return hashlib.sha256(json.dumps([fields, files], sort_keys=True).encode()).hexdigest()[:CONTENT_DIGITS]


def _select(kind: type[Any], found: Mapping[str, Any]) -> dict[str, Any]:
    return {entry.name: found[entry.name] for entry in dataclasses.fields(kind) if entry.name in found}
