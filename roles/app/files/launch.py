"""Start what the release that this file lies in is made of, as the app's user.

``launch.py SLOT PROCESS``       a process that is served; from supervisord
``launch.py SLOT PROCESS TYPE``  a process of another type of the Procfile; from supervisord
``launch.py --hook STEP [SLOT]`` the command of a step of a deploy
``launch.py --run PROGRAM ...``  a command of an operator, with its arguments

The environment comes from files, not from supervisord's ``environment=``, where percent signs, quotes and semicolons have
meanings of their own; and it is the release's alone: nothing of supervisord's leaks in.

A supervisord that was killed leaves its processes behind, and they serve on. The next one starts each of them again: that
one is to take the place of what was left. So each start is noted in ``run/<process>.starts``, or ``<type>.<process>.starts``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1]

OOM_SCORE = Path("/proc/self/oom_score_adj")
"""How much rather or later than others the kernel kills this process when memory is out: proc(5)."""

STOP_MARGIN = 5
"""Seconds beyond ``drain`` until a process that was left behind is killed; supervisord's own are given as many."""


def start_process(slot: str, process: str, kind: str = "") -> NoReturn:
    """Become a process; what an earlier supervisord left of it is replaced.

    :raises OSError: when the program, or a file of the release, is missing.
    """
    release = read_json("release.json")
    run = HOME / "slots" / slot / "run"
    program = release["workers"][kind] if kind else {"argv": release["argv"], "count": release["processes"]}
    first_port = None if kind else release["port"]
    words = placeholders(first_port, slot, int(process), run)
    argv = [word.format(**words) for word in program["argv"]]
    starts = run / (f"{kind}.{process}.starts" if kind else f"{process}.starts")
    orphans = find_orphans(starts)
    with starts.open("a") as file:
        file.write(f"{os.getpid()} {look(os.getpid())[1]}\n")
    if release["runner"] and not kind:
        argv += [word for pid in orphans for word in ("--replace", str(pid))]
    elif orphans:
        if process != "0" and not kind:
            wait_for_turn(placeholders(first_port, slot, int(process) - 1, run), release["health"]["timeout"])
        for pid in orphans:
            end_group(pid, release["drain"] + STOP_MARGIN)
    named = {"TORNADO_SLOT": slot, "TORNADO_PROCESS": process, "TORNADO_PROCESSES": str(program["count"])}
    # SIGPIPE stays ignored, as Python leaves it: what outlives supervisord writes to a pipe that nobody reads.
    become(argv, release, named | ({"PORT": words["port"]} if words["port"] else {}))


def start_hook(step: str, slot: str = "") -> NoReturn:
    """Become the command of a step that comes after the build, which root starts without this program."""
    start_command(*read_json("release.json")["hooks"][step], slot=slot)


def start_command(*argv: str, slot: str = "") -> NoReturn:
    """Become a command that ends by itself. One without a slot, such as an operator's, does not end with the slot's processes."""
    release = read_json("release.json")
    named = {"TORNADO_PROCESSES": str(release["processes"])} | ({"TORNADO_SLOT": slot} if slot else {})
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    become(list(argv), release, named)


def become(argv: list[str], release: dict[str, Any], named: dict[str, str]) -> NoReturn:
    """Become the program, in the release's environment; ``named`` are the variables that tell it who it is."""
    named = named | {"TORNADO_APP": release["app"], "TORNADO_RELEASE": release["id"]}
    environment = base_environment() | release["environment"] | read_json("secrets.json") | named
    if release["open_files"]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (release["open_files"], hard))
    if int(OOM_SCORE.read_text()) < 0:  # supervisord is protected; what it starts is not
        OOM_SCORE.write_text("0")
    os.umask(0o007)  # a socket is for the app's user and for nginx, whose group the directory hands down
    os.chdir(HERE / "src")
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:  # names the last place that was tried
        raise OSError(error.errno, error.strerror, argv[0]) from error


def read_json(name: str) -> Any:
    """Return what a file of the release holds."""
    return json.loads((HERE / name).read_text())


def placeholders(port: int | None, slot: str, process: int, run: Path) -> dict[str, str]:
    """Return what the words in braces of a command stand for; ``port`` is the app's first one, if it has any.

    The slots' ports interleave, so that a slot with more processes than the other never takes one of its ports.
    """
    own = str(port + 2 * process + "ab".index(slot)) if port else ""
    socket_path = str(run / f"{process}.sock")
    return {"process": str(process), "socket": socket_path, "port": own, "run": str(run), "release": str(HERE)}


def base_environment() -> dict[str, str]:
    """Return what any program expects; the release's ``python`` comes first in PATH."""
    return {
        "PATH": f"{HERE}/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": f"{HERE}/venv",
        "HOME": str(HOME / "shared"),
        "USER": pwd.getpwuid(os.getuid()).pw_name,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }


def find_orphans(starts: Path) -> list[int]:
    """Return the processes noted in ``starts`` that still live, though supervisord knows nothing of them.

    A process is known by its id together with its start time, and an orphan by its parent, which is not ours.
    """
    orphans = []
    for line in starts.read_text().splitlines() if starts.exists() else []:
        pid = line.partition(" ")[0]
        with contextlib.suppress(OSError):
            parent, began = look(pid)
            if line == f"{pid} {began}" and parent != os.getppid():
                orphans.append(int(pid))
    return orphans


def look(pid: int | str) -> tuple[int, str]:
    """Return a process's parent and its start, in ticks since boot: fields 4 and 22 of /proc/PID/stat, proc(5).

    :raises OSError: when there is no such process.
    """
    # The second field, the program's name in parentheses, may itself hold spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return int(fields[1]), fields[19]


def wait_for_turn(before: dict[str, str], seconds: float) -> None:
    """Wait until the process before this one was replaced, and listens: not all are to be away at the same time.

    :arg before: what the words in braces stand for, for that process.
    :arg seconds: how long to wait at most.
    """
    end = time.monotonic() + seconds
    starts = Path(before["run"], f"{before['process']}.starts")
    while (find_orphans(starts) or not is_listening(before)) and time.monotonic() < end:
        time.sleep(0.1)


def is_listening(words: dict[str, str]) -> bool:
    """Tell whether a process takes connections."""
    family = socket.AF_INET if words["port"] else socket.AF_UNIX
    with socket.socket(family) as probe:
        return probe.connect_ex(("127.0.0.1", int(words["port"])) if words["port"] else words["socket"]) == 0


def end_group(leader: int, seconds: float) -> None:
    """Stop a process with all that it has started, which supervisord makes a group; after ``seconds``, kill it."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
        while time.monotonic() < end:
            time.sleep(0.05)
            os.killpg(leader, 0)
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    try:
        if sys.argv[1] == "--hook":
            start_hook(*sys.argv[2:])
        if sys.argv[1] == "--run":
            start_command(*sys.argv[2:])
        start_process(*sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"cannot start: {error}")
