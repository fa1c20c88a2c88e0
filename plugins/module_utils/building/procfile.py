"""A Procfile: a line per process type, ``name: command``, as PaaS know it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import PROCESS_TYPE, App
from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import Worker
from ansible_collections.funnel.tornado.plugins.module_utils.core import tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import VARIABLE
from ansible_collections.funnel.tornado.plugins.module_utils.core.tree import TreeError
from ansible_collections.funnel.tornado.plugins.module_utils.system.home import BuildError

NAME = "Procfile"

MAX_BYTES = 1 << 20

#: Ran once at a release elsewhere; here that is what hooks are for. It is no process, so it is never started as one.
RELEASE = "release"


@dataclass(frozen=True)
class ProcfileCommands:
    """The command ``argv`` of the process type that serves requests, and the workers by their process types."""

    argv: list[str]
    workers: dict[str, Worker]


def read_commands(app: App, source: Path) -> ProcfileCommands:
    """Return what the source's Procfile starts.

    :raises BuildError: when it is not there or cannot be read, or lacks a type that the app's entry names.
    """
    key = f"{VARIABLE}.{app.name}.run"
    try:
        types = parse_procfile(tree.read(source / NAME, MAX_BYTES, trusted=source).decode())
    except (OSError, ValueError, TreeError) as error:
        why = f"the source has no {NAME}" if isinstance(error, FileNotFoundError) else f"{NAME}: {error}"
        raise BuildError(f"{key}.procfile: {why}") from error
    served = str(app.run.procfile)
    if served not in types:
        raise BuildError(f"{key}.procfile: {NAME} has no process type {served}; it has {_listed(types)}")
    others = {name: line for name, line in types.items() if name not in (served, RELEASE)}
    for name in app.run.scale:
        if name not in others:
            raise BuildError(f"{key}.scale.{name}: {NAME} has no such worker; it has {_listed(others)}")
    counts = {name: app.run.scale.get(name, 1) for name in others}
    workers = {name: Worker(shell(line), counts[name]) for name, line in others.items() if counts[name]}
    return ProcfileCommands(shell(types[served]), workers)


def parse_procfile(text: str) -> dict[str, str]:
    """Return the command of each process type.

    :raises ValueError: naming the line that is none, or that names a type a second time.
    """
    types: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(rf"\s*({PROCESS_TYPE})\s*:\s*(\S.*?)\s*", line)
        if not match:
            raise ValueError(f"line {number} is not of the form name: command; found {line.strip()!r}")
        if match[1] in types:
            raise ValueError(f"line {number} names {match[1]} a second time")
        types[match[1]] = match[2]
    return types


def shell(line: str) -> list[str]:
    """Return the words that let a shell run ``line``; a brace in it is the shell's, not the launcher's."""
    return ["sh", "-c", line.replace("{", "{{").replace("}", "}}")]


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(sorted(types)) or "none"
