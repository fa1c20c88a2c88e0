"""The Procfile of a source: one line ``name: command`` per process type, as on Heroku and other platforms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App
from ansible_collections.funnel.tornado.plugins.module_utils.app.program import PROCESS_TYPE
from ansible_collections.funnel.tornado.plugins.module_utils.app.workers import WorkerOptions
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import Worker
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

NAME = "Procfile"

MAX_BYTES = 1 << 20

#: Process types: each one but two is a worker, which takes open files of supervisord, as all processes of the host do.
MAX_TYPES = 50

#: Characters of an invalid line that its message shows.
MAX_SHOWN = 200

#: Process type of a command that runs once per release, before its processes start. It is never started as a process.
RELEASE = "release"


@dataclass(frozen=True)
class ProcfileCommands:
    """The command ``argv`` of the process type that serves requests, the workers by their process types, and ``release``.

    ``release`` is the command of that process type; empty without one.
    """

    argv: list[str]
    workers: dict[str, Worker]
    release: list[str]


def read_commands(app: App, source: Path) -> ProcfileCommands:
    """Return the commands in the source's Procfile.

    :raises BuildError: when it is missing or unreadable, or lacks a process type that the app's entry names.
    """
    key = f"{VARIABLE}.{app.name}.run"
    try:
        types = parse_procfile(tree.read(source / NAME, MAX_BYTES, trusted=source).decode())
    except (OSError, ValueError, TreeError) as error:
        why = f"the source has no {NAME}" if isinstance(error, FileNotFoundError) else f"{NAME}: {error}"
        raise BuildError(f"{key}.procfile: {why}") from error
    served = str(app.run.procfile)
    if served not in types:
        raise BuildError(f"{key}.procfile: {NAME} has no process type {served}; it has {_comma_separated(types)}")
    others = {name: line for name, line in types.items() if name not in (served, RELEASE)}
    for name, worker in app.workers.items():
        if worker.command is None and name not in others:
            path = f"{VARIABLE}.{app.name}.workers.{name}"
            raise BuildError(f"{path}: {NAME} has no such worker; it has {_comma_separated(others)}. Set its command")
    workers = {
        name: Worker.from_options(shell_command(line), app.workers.get(name, WorkerOptions()))
        for name, line in others.items()
        if name not in app.workers or app.workers[name].command is None
    }
    release = ["bash", "-c", types[RELEASE]] if RELEASE in types else []
    return ProcfileCommands(shell_command(types[served]), workers, release)


def parse_procfile(text: str) -> dict[str, str]:
    """Return the commands by process type.

    :raises ValueError: when a line is malformed or repeats a process type, or there are too many.
    """
    types: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _colon, command = (part.strip() for part in line.partition(":"))
        if not command or not re.fullmatch(PROCESS_TYPE, name):
            raise ValueError(f"line {number} must have the form name: command; found {line.strip()[:MAX_SHOWN]!r}")
        if name in types:
            raise ValueError(f"line {number} repeats the process type {name}")
        types[name] = command
        if len(types) > MAX_TYPES:
            raise ValueError(f"there are more than {MAX_TYPES} process types")
    return types


def shell_command(line: str) -> list[str]:
    """Return a command that runs ``line`` in a shell, with its braces escaped from the placeholders of the launcher.

    Unlike Debian's sh, bash replaces itself with the last program of the line, which then gets the signals itself.
    """
    return ["bash", "-c", line.replace("{", "{{").replace("}", "}}")]


def _comma_separated(types: Mapping[str, str]) -> str:
    return ", ".join(sorted(types)) or "none"
