"""Builds of releases on a host: immutable, identified by a hash of their inputs, and complete or absent."""

from __future__ import annotations

import datetime
import errno
import grp
import hashlib
import json
import os
import platform
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.building import git, procfile
from ansible_collections.funnel.tornado.plugins.module_utils.building.environment import (
    Environment,
    ensure_environment,
    install_package,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.integrity import MAX_REPAIRS, is_damaged, seal
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import (
    HealthCheck,
    ReleaseManifest,
    SharedPath,
    StaticFiles,
    Worker,
    read_manifest,
)
from ansible_collections.funnel.tornado.plugins.module_utils.building.missing_packages import advice
from ansible_collections.funnel.tornado.plugins.module_utils.building.pruning import limit_cache, remove_unfinished
from ansible_collections.funnel.tornado.plugins.module_utils.building.shared_links import link_shared_paths
from ansible_collections.funnel.tornado.plugins.module_utils.building.static_files import publish_static
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.disk import REMEDY, full_problem
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import PUSHED_SOURCE, VARIABLE, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.private import set_owner
from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import low_priority
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import Limits, TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system.archive import fetch, keep_subdirectory, unpack
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import ENVIRONMENT, Builder, BuildError, as_user

#: Length of a release id in hex digits: 48 bits make collisions between the releases of an app negligible.
ID_DIGITS = 12

#: First line of the launcher: the system's Python, so that the launcher does not depend on the app's.
LAUNCHER_SHEBANG = "#!/usr/bin/python3 -IXutf8"


@dataclass(frozen=True)
class Programs:
    """The texts of the two programs that every release carries."""

    launcher: str
    runner: dict[str, str]
    """The files of a Python package, by name."""


@dataclass(frozen=True)
class PushedSource:
    """The archive of a pushed commit, and the commit."""

    archive: Path
    revision: str


def live_pushed_source(layout: Layout) -> PushedSource | None:
    """Return the pushed source that the live release was built from; None if no release is live, or it was not pushed."""
    release = layout.live_release()
    if release is None or not layout.pushed_source(release).exists():
        return None
    return PushedSource(layout.pushed_source(release), read_manifest(layout, release).revision)


def plan_release(app: App, revision: str, programs: Programs) -> ReleaseManifest:
    """Return the manifest of the release of ``app`` at ``revision`` on this host; a build completes it.

    The id is a hash of everything that affects the behavior of the release, including secrets and the host's Python. The
    commands of a Procfile are covered by the revision, and read during the build.
    """
    draft = ReleaseManifest(
        app=app.name,
        id="",
        revision=revision,
        argv=process_command(app),
        runner=app.run.target is not None,
        workers={
            name: Worker.from_options(shlex.split(options.command), options)
            for name, options in app.workers.items()
            if options.command is not None
        },
        environment=app.environment,
        processes=app.process_count(len(os.sched_getaffinity(0))),
        port=app.port,
        open_files=app.open_files,
        drain=app.drain,
        health=HealthCheck(app.health.path, app.health.timeout, list(map(str, app.health.status)), app.health.headers),
        host=app.domains[0].removeprefix("*.") if app.domains else "localhost",
        static=StaticFiles(app.static.url, app.static.path) if app.static else None,
        shared={path: SharedPath(options.url, options.backup) for path, options in app.shared_paths.items()},
        hooks={step: shlex.split(command) for step, command in app.hooks.commands().items()},
        hooks_once=app.hooks.once,
        hooks_timeout=app.hooks.timeout,
        soak=app.soak,
        soak_errors=app.soak_errors,
        keep_releases=app.keep_releases,
    )
    types = [app.run.procfile, {name: asdict(options) for name, options in app.workers.items()}]
    # The revision covers a file of the source that asks for another version.
    python = platform.python_version() if app.python.version in (None, "system") else app.python.version
    further: list[Any] = [app.source.requirements, app.packages, app.build.environment]
    further += [app.source.subdirectory] if app.source.subdirectory is not None else []
    inputs = [asdict(draft), types, further, app.secret_environment, programs.launcher, programs.runner, python]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
    return replace(draft, id=digest)


def choose_undamaged(layout: Layout, planned: ReleaseManifest) -> ReleaseManifest:
    """Return the planned release or, if that is damaged on this host, one of the same inputs with another id.

    Processes of the damaged release keep running until the new one is live, as in any deploy.
    """
    ids = [planned.id]
    while len(ids) < MAX_REPAIRS:
        ids.append(hashlib.sha256(ids[-1].encode()).hexdigest()[:ID_DIGITS])
    usable = [release for release in ids if not is_damaged(layout, release)]
    built = (release for release in usable if layout.is_built(release))
    return replace(planned, id=next(built, next(iter(usable), planned.id)))


def process_command(app: App) -> list[str]:
    """Return the command of one process, with placeholders for the launcher; empty if the Procfile of the source defines it."""
    if app.run.procfile is not None:
        return []
    if app.run.command is not None:
        return shlex.split(app.run.command)
    listen = ["--socket", "{socket}"] if app.uses_sockets else ["--port", "{port}"]
    interface = ["--wsgi"] if app.run.wsgi is not None else ["--asgi"] if app.run.asgi is not None else []
    loop = ["--loop", app.run.loop] if app.run.loop is not None else []
    threads = ["--threads", str(app.run.threads)] if app.run.threads is not None else []
    syslog = app.services.syslog
    logs = ["--log-to", "stderr", "--log-to", f"udp://{syslog.host}:{syslog.port}"] if syslog else []
    debug = ["--debug", *(word for file in app.watch for word in ("--watch", file))] if app.debug else []
    sizes = ["--max-body-size", app.max_upload_size, "--drain", str(app.drain)]
    own = ["--pid-file", "{run}/{process}.pid", "--metrics", "{run}/{process}.metrics"]
    options = [*interface, *loop, *threads, *listen, "--xheaders", *sizes, *logs, *debug, *own]
    return ["python", "{release}/runner", str(app.run.target), *options]


@low_priority()
def build_release(
    layout: Layout, app: App, planned: ReleaseManifest, programs: Programs, archive: Path | None, builder: str
) -> Environment:
    """Build the release and return its virtual environment. The release appears atomically, or the incomplete build is removed.

    Code from the source runs as the app's builder user; root then copies the result, so that the builder cannot change it.

    :arg archive: the source that the controller sent; None if this host fetches it.
    :arg builder: the operator and the controller, for ``release.json``.
    :raises BuildError: when the app's entry, its source or this host prevents the build.
    """
    work = layout.releases / f".building-{planned.id}"
    source = work / "src"
    key = f"{VARIABLE}.{app.name}.source"
    environment: Environment | None = None
    try:
        remove_unfinished(layout)  # of interrupted builds
        _require_space(layout, planned.id)
        work.mkdir()
        set_owner(work, os.geteuid(), os.getegid(), 0o711)
        _provide_source(layout, app, planned, archive, source)
        environment = ensure_environment(layout, app, source, planned.revision)
        _install_package(layout, app, source, work / "package", environment)
        (work / "shared").symlink_to("../../shared")
        (work / "venv").symlink_to(os.path.relpath(environment.path, layout.release(planned.id)))
        _write_files(layout, work, _add_procfile_commands(layout, app, planned, source), app, programs, builder)
        _run_build_hook(layout, app, planned, work)
        if not source.is_symlink():
            _compile(layout, source)
            for path in filter(Path.exists, (source, work / "package")):
                Builder(layout).take_ownership(
                    path,
                    key,
                    group=layout.user,
                    mode=0o750,
                    allow=lambda target: target.is_relative_to(layout.shared) or target.is_relative_to(work / "shared"),
                )
            link_shared_paths(layout, app, source)
            publish_static(app, work, environment)
        seal(work)
        tree.remove(layout.release(planned.id))
        work.rename(layout.release(planned.id))
    except (BuildError, OSError, TreeError) as error:
        raise BuildError(_failure_message(layout, planned.id, error)) from error
    finally:
        remove_unfinished(layout)
        if environment is None or environment.built or environment.package:
            limit_cache(layout)
    return environment


def _require_space(layout: Layout, release: str) -> None:
    if problem := full_problem((layout.releases, layout.environments), minimum=Limits.free):
        raise BuildError(f"{VARIABLE}.{layout.app}: release {release} cannot be built: {problem}")


def _provide_source(layout: Layout, app: App, planned: ReleaseManifest, archive: Path | None, source: Path) -> None:
    key = f"{VARIABLE}.{app.name}.source"
    if app.source.directory is not None:
        for user in (layout.user, layout.builder):
            _require_readable(user, Path(app.source.directory), f"{key}.directory")
        source.symlink_to(app.source.directory)
        return
    builder = Builder(layout)
    builder.make_directory(source)
    if app.source.git is not None:
        git_key, commit = f"{key}.git", planned.revision
        git.export_commit(layout, app, commit, lambda stream, path: unpack(builder, stream, source, git_key, subdirectory=path))
    elif app.source.archive is not None:
        fetched = source.with_name("source.archive")
        if archive is None:
            fetch(app.source.archive, fetched, str(app.source.checksum), key)
        with (archive or fetched).open("rb") as file:
            unpack(builder, file.fileno(), source, f"{key}.archive", flatten=True)
        fetched.unlink(missing_ok=True)
    elif archive is not None:
        with archive.open("rb") as file:
            unpack(builder, file.fileno(), source, f"{key}.{'path' if app.source.push is None else 'push'}")
        if app.source.push is not None:
            os.link(archive, source.with_name(PUSHED_SOURCE))
    if app.source.subdirectory is not None:
        keep_subdirectory(builder, source, app.source.subdirectory, f"{key}.subdirectory")


def _install_package(layout: Layout, app: App, source: Path, target: Path, environment: Environment) -> None:
    """Install a source that is a package; one that runs in place is imported from its directory ``src``, if it has one."""
    if not environment.package:
        return
    if not source.is_symlink():
        install_package(layout, app, source, target, environment)
        return
    with as_user(layout.builder):
        has_src = (source / "src").is_dir()
    if has_src:
        target.symlink_to("src/src")


def _require_readable(user: str, directory: Path, key: str) -> None:
    """Verify that ``user`` can list the directory; name the first of its parents that denies access.

    :raises BuildError: when the user cannot.
    """
    with as_user(user):
        for path in (*reversed(directory.parents), directory):
            mode, permissions = (os.R_OK | os.X_OK, "rx") if path == directory else (os.X_OK, "x")
            if not os.access(path, mode, effective_ids=True):
                raise BuildError(
                    f"{key}: user {user}, which {'builds the app' if user.startswith('_') else 'the app runs as'}, cannot read "
                    f"{directory}: {path} denies access; try setfacl -m u:{user}:{permissions} {path}, or chmod o+{permissions} "
                    f"{path}"
                )


def _add_procfile_commands(layout: Layout, app: App, planned: ReleaseManifest, source: Path) -> ReleaseManifest:
    """Add the commands of the source's Procfile to the manifest."""
    if app.run.procfile is None:
        return planned
    with as_user(layout.builder):
        commands = procfile.read_commands(app, source)
    changes = replace(planned, argv=commands.argv, workers=planned.workers | commands.workers)
    if not commands.release or app.hooks.before_start is not None:
        return changes
    return replace(
        changes, hooks=planned.hooks | {"before_start": commands.release}, hooks_once=[*planned.hooks_once, "before_start"]
    )


def _run_build_hook(layout: Layout, app: App, planned: ReleaseManifest, work: Path) -> None:
    if app.hooks.build is None:
        return
    variables = {"TORNADO_APP": app.name, "TORNADO_RELEASE": planned.id, "TORNADO_PROCESSES": str(planned.processes)}
    Builder(layout).run(
        planned.hooks["build"],
        f"{VARIABLE}.{app.name}.hooks.build: {app.hooks.build} failed; release {planned.id} is not built",
        directory=work / "src",
        environment=_base_environment(work) | app.environment | app.secret_environment | app.build.environment | variables,
        timeout=app.hooks.timeout,
        open_files=app.open_files,
    )


def _base_environment(work: Path) -> dict[str, str]:
    """Return the environment that the launcher gives to each program of a release, except the home and name of its user."""
    base = {"PATH": f"{work}/venv/bin:{ENVIRONMENT['PATH']}", "VIRTUAL_ENV": f"{work}/venv", "PYTHONUNBUFFERED": "1"}
    package = work / "package"
    if not package.exists():
        return base
    return base | {"PATH": f"{package}/bin:{base['PATH']}", "PYTHONPATH": str(package)}


def _compile(layout: Layout, source: Path) -> None:
    """Compile the code to bytecode with the Python that will run it; skip files that do not compile, such as templates."""
    compiler = "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2)"
    command = [str(source.with_name("venv") / "bin/python"), "-I", "-c", compiler, "."]
    failure = f"{VARIABLE}.{layout.app}.source: cannot be compiled"
    Builder(layout).run(command, failure, directory=source, environment={})


def _write_files(layout: Layout, work: Path, manifest: ReleaseManifest, app: App, programs: Programs, builder: str) -> None:
    """Write the launcher, the runner, and the manifest and secrets, which only the app's user can read."""
    built = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    private = {
        "release.json": replace(manifest, built=built, by=builder).to_json(),
        "secrets.json": json.dumps(app.secret_environment),
    }
    public = {"launch.py": f"{LAUNCHER_SHEBANG}\n{programs.launcher}"}
    public |= {f"runner/{name}": text for name, text in programs.runner.items()}
    gid = grp.getgrnam(layout.user).gr_gid
    (work / "runner").mkdir()
    set_owner(work / "runner", 0, gid, 0o755)
    for name, text in (private | public).items():
        path = work / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        set_owner(path, 0, gid, 0o640 if name in private else 0o755)


def _failure_message(layout: Layout, release: str, error: Exception) -> str:
    """Return the error message of a failed build; a full file system is reported first, whichever step ran into it."""
    message = str(error)
    failure = f"{VARIABLE}.{layout.app}: release {release} cannot be built"
    full = [line for line in message.splitlines() if os.strerror(errno.ENOSPC) in line]
    if full:
        written = [path for path in (layout.releases, layout.environments, layout.cache) if path.exists()]
        fullest = min(written, key=lambda path: shutil.disk_usage(path).free, default=layout.base)
        mount = next(path for path in (fullest, *fullest.parents) if path.is_mount())
        space = os.statvfs(mount)
        free = f"{space.f_bavail * space.f_frsize >> 20} MiB and {space.f_favail} inodes"
        return f"{failure}: the file system at {mount} is full, {free} are free: {full[0]}; {REMEDY}"
    if isinstance(error, BuildError):
        return message + advice(f"{VARIABLE}.{layout.app}.packages", f"{message}\n{error.output}")
    return f"{failure}: {message}"
