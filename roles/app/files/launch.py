"""Launcher: starts the processes, workers, hooks and commands of the release in whose directory it is, as the app's user.

``launch.py SLOT PROCESS``       a process that serves requests; called by supervisord
``launch.py SLOT PROCESS NAME``  a worker, which serves no requests; called by supervisord
``launch.py --hook STEP [SLOT]`` the hook of a step of a deploy
``launch.py --run PROGRAM ...``  a command of an operator

The environment comes from files instead of supervisord's ``environment=``, in which percent signs, quotes and semicolons have
special meanings, and nothing of supervisord's own environment is inherited.

Processes survive a supervisord that is killed, and keep serving requests as orphans. The next supervisord starts each process
again, to replace its orphan. To find orphans, each start is recorded in ``run/<process>.starts`` or ``<type>.<process>.starts``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import resource
import signal
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1]

PACKAGE = HERE / "package"
"""The source itself, installed in the release, if it is a package. Its dependencies are in the environment."""

OOM_SCORE = Path("/proc/self/oom_score_adj")
"""Priority with which the kernel kills this process when memory runs out: proc(5)."""

APP_OOM_SCORE = 500
"""The app with the most memory is killed first, and before what serves it, databases and everything else on the host."""

STOP_MARGIN = 5
"""Seconds beyond ``drain`` until an orphan is killed, as many as supervisord gives its own processes."""


SOCKET_SECONDS = 2
"""Seconds after a program began to listen in which it may change the mode of its socket."""


def start_process(slot: str, process: str, worker: str = "") -> NoReturn:
    """Execute a process, replacing its orphans.

    :raises OSError: when the program or a file of the release is missing.
    """
    release = read_json("release.json")
    run = HOME / "slots" / slot / "run"
    program = release["workers"][worker] if worker else {"argv": release["argv"], "count": release["processes"]}
    first_port = None if worker else release["port"]
    values = placeholders(first_port, slot, int(process), run)
    argv = [word.format(**values) for word in program["argv"]]
    starts = run / (f"{worker}.{process}.starts" if worker else f"{process}.starts")
    orphans = find_orphans(starts)
    try:
        with starts.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {parent_and_start(os.getpid())[1]}\n")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk must not keep the app down
            raise
    if release["runner"] and not worker:
        argv += [word for pid in orphans for word in ("--replace", str(pid))]
    elif orphans:
        if process != "0" and not worker:
            wait_for_previous(placeholders(first_port, slot, int(process) - 1, run), release["health"]["timeout"])
        timeout = program.get("stop_timeout")
        for pid in orphans:
            stop(
                pid,
                signal.Signals[f"SIG{program.get('stop_signal', 'TERM')}"],
                group=program.get("stop_group", True),
                seconds=(release["drain"] if timeout is None else timeout) + STOP_MARGIN,
            )
    if not release["runner"] and not worker and not values["port"]:
        share_socket(values, release["health"]["timeout"])
    identity = {"TORNADO_SLOT": slot, "TORNADO_PROCESS": process, "TORNADO_PROCESSES": str(program["count"])}
    # Python ignores SIGPIPE, and so does the program: an orphan writes to a pipe that nobody reads.
    execute(argv, release, identity | ({"PORT": values["port"]} if values["port"] else {}))


def start_hook(step: str, slot: str = "") -> NoReturn:
    """Execute the hook of a step after the build; root runs the build hook without this program."""
    start_command(*read_json("release.json")["hooks"][step], slot=slot)


def start_command(*argv: str, slot: str = "") -> NoReturn:
    """Execute a one-off command. Without a slot, such as an operator's, it outlives the processes of the slot."""
    release = read_json("release.json")
    identity = {"TORNADO_PROCESSES": str(release["processes"])} | ({"TORNADO_SLOT": slot} if slot else {})
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    execute(list(argv), release, identity)


def execute(argv: list[str], release: dict[str, Any], identity: dict[str, str]) -> NoReturn:
    """Replace this process with the program, in the environment of the release and with the variables of ``identity``."""
    identity = identity | {"TORNADO_APP": release["app"], "TORNADO_RELEASE": release["id"]}
    environment = base_environment() | release["environment"] | read_json("secrets.json") | identity
    if PACKAGE.exists():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGE), environment.get("PYTHONPATH"))))
    if release["open_files"]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (release["open_files"], hard))
    if int(OOM_SCORE.read_text(encoding="utf-8")) < APP_OOM_SCORE:
        OOM_SCORE.write_text(str(APP_OOM_SCORE), encoding="utf-8")
    os.umask(0o007)  # nginx's group, which the directory passes on, needs to write to a socket
    os.chdir(HERE / "src")
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:  # which names the last directory of PATH instead of the program
        import shutil  # each start of a process would spend time on it

        if not shutil.which(argv[0], path=environment["PATH"]):
            raise ValueError(
                f"there is no program {argv[0]} in the environment, the source and the system; add it to the app's dependencies, "
                "or its Debian package to packages"
            ) from error
        raise OSError(error.errno, error.strerror, argv[0]) from error


def read_json(name: str) -> Any:
    """Return the content of a file of the release."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def placeholders(port: int | None, slot: str, process: int, run: Path) -> dict[str, str]:
    """Return the values of the placeholders in a command; ``port`` is the first port of the app, if it has ports.

    The ports of the slots interleave, so that they never overlap, whatever the numbers of processes.
    """
    own = str(port + 2 * process + "ab".index(slot)) if port else ""
    socket_path = str(run / f"{process}.sock")
    return {"process": str(process), "socket": socket_path, "port": own, "run": str(run), "release": str(HERE)}


def base_environment() -> dict[str, str]:
    """Return the basic environment variables; the release's ``python`` comes first in PATH."""
    package = f"{PACKAGE}/bin:" if PACKAGE.exists() else ""
    return {
        "PATH": f"{package}{HERE}/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": f"{HERE}/venv",
        "HOME": str(HOME / "shared"),
        "USER": pwd.getpwuid(os.getuid()).pw_name,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }


def find_orphans(starts: Path) -> list[int]:
    """Return the ids of the running processes recorded in ``starts`` that the present supervisord has not started.

    Its id and start time identify a process; an orphan has another parent than this process.
    """
    orphans = []
    for line in starts.read_text(encoding="utf-8").splitlines() if starts.exists() else []:
        pid = line.partition(" ")[0]
        with contextlib.suppress(OSError):
            parent, began = parent_and_start(pid)
            if line == f"{pid} {began}" and parent != os.getppid():
                orphans.append(int(pid))
    return orphans


def parent_and_start(pid: int | str) -> tuple[int, str]:
    """Return a process's parent, and its start in ticks since boot: fields 4 and 22 of /proc/PID/stat, proc(5).

    :raises OSError: when there is no such process.
    """
    # The second field, the program's name in parentheses, may itself contain spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[1]), fields[19]


def wait_for_previous(values: dict[str, str], seconds: float) -> None:
    """Wait up to ``seconds`` until the previous process is replaced and listens, so that only one is down at a time.

    :arg values: the placeholders of the previous process.
    """
    end = time.monotonic() + seconds
    starts = Path(values["run"], f"{values['process']}.starts")
    while (find_orphans(starts) or not is_listening(values)) and time.monotonic() < end:
        time.sleep(0.1)


def is_listening(values: dict[str, str]) -> bool:
    """Return whether the process with these placeholders accepts connections."""
    family = socket.AF_INET if values["port"] else socket.AF_UNIX
    with socket.socket(family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", int(values["port"])) if values["port"] else values["socket"]) == 0


def share_socket(values: dict[str, str], seconds: float) -> None:
    """Start a process that gives nginx's group access to the socket once the program listens, within ``seconds``.

    Many programs, such as those that call Tornado's bind_unix_socket, restrict their socket to their own user, also after a
    restart by supervisord. The process runs as that user, and is no child of the program, which may wait for its own children.
    """
    if child := os.fork():
        os.waitpid(child, 0)
        return
    if os.fork() == 0:
        with Path(os.devnull).open("r+") as null:
            for descriptor in range(3):  # a pipe to supervisord would stay open
                os.dup2(null.fileno(), descriptor)
        end, settled = time.monotonic() + seconds, False
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                path = Path(values["socket"])
                mode = path.lstat().st_mode
                if stat.S_ISSOCK(mode) and mode & 0o060 != 0o060:
                    path.chmod(stat.S_IMODE(mode) | 0o060)
                if not settled and is_listening(values):
                    end, settled = time.monotonic() + SOCKET_SECONDS, True
            time.sleep(0.05)
    os._exit(0)


def stop(leader: int, number: signal.Signals, *, group: bool, seconds: float) -> None:
    """Signal a process, or its process group, which supervisord made of it; kill the group after ``seconds``."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(leader, number)
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
