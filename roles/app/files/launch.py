#!/usr/bin/python3 -I
"""Start one process of the release this file lies in: ``launch.py SLOT PROCESS``, as the app's user, from supervisord.

The environment comes from files, not from supervisord's ``environment=``, where percent signs, quotes and semicolons have
meanings of their own; and it is the release's alone: nothing of supervisord's leaks in.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import sys
from pathlib import Path
from typing import Any


def main(slot: str, process: int) -> None:
    """Become the program; returns never.

    :raises OSError: when the program, or a file of the release, is missing.
    """
    here = Path(__file__).resolve().parent
    release = json.loads((here / "release.json").read_text())
    secrets = json.loads((here / "secrets.json").read_text())
    run = here.parents[1] / "slots" / slot / "run"
    words = placeholders(release, slot, process, run)
    argv = [word.format(**words) for word in release["argv"]]
    environment = base_environment(here) | release["environment"] | secrets | words_environment(release, slot, words)
    if release["open_files"]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (release["open_files"], hard))
    os.umask(0o007)  # a socket is for the app's user and for nginx, whose group the directory hands down
    os.chdir(here / "src")
    os.execvpe(argv[0], argv, environment)


def placeholders(release: dict[str, Any], slot: str, process: int, run: Path) -> dict[str, str]:
    """Return what the words in braces of a command stand for.

    The slots' ports interleave, so that a slot with more processes than the other never takes one of its ports.
    """
    port = release["port"] + 2 * process + "ab".index(slot) if release["port"] else ""
    return {"process": str(process), "socket": str(run / f"{process}.sock"), "port": str(port), "run": str(run)}


def base_environment(release: Path) -> dict[str, str]:
    """Return what any program expects; the release's ``python`` comes first in PATH."""
    user = pwd.getpwuid(os.getuid())
    return {
        "PATH": f"{release}/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": f"{release}/venv",
        "HOME": str(release.parents[1] / "shared"),
        "USER": user.pw_name,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }


def words_environment(release: dict[str, Any], slot: str, words: dict[str, str]) -> dict[str, str]:
    """Return the variables by which a process knows who it is."""
    named = {
        "TORNADO_APP": release["app"],
        "TORNADO_RELEASE": release["id"],
        "TORNADO_SLOT": slot,
        "TORNADO_PROCESS": words["process"],
        "TORNADO_PROCESSES": str(release["processes"]),
    }
    return named | ({"PORT": words["port"]} if words["port"] else {})


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot start: {error}")
