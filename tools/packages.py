"""Debian packages, root rights and programs: what the tools of this repository need from the machine.

`python3 -m tools.packages NAME ...` installs those of the named Debian packages that are missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

APT_ERROR = re.compile("E: ").match


class ToolError(Exception):
    """What is wrong and what would be right, in one line for the person at the terminal."""


def say(text: str) -> None:
    """Tell the person at the terminal; standard output stays free for what another program reads."""
    sys.stderr.write(f"{text}\n")


def run(argv: Sequence[str], to: str, *, stdin: str | None = None, close_fds: bool = False) -> str:
    """Run a program and return what it printed.

    Nothing but locks is inheritable, and those are to be held until the program has ended, unless `close_fds` is set.

    Raises `ToolError` "cannot <to>: ...", with what the program said, if it fails or is not there.
    """
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True, close_fds=close_fds).stdout
    except FileNotFoundError as error:
        raise ToolError(f"cannot {to}: the program {argv[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip() or f"exit code {error.returncode}").splitlines()
        # The first line tells what went wrong, but apt and what builds on it talk before.
        raise ToolError(f"cannot {to}: {argv[0]}: {next(filter(APT_ERROR, lines), lines[0])}") from error


def as_root(to: str) -> list[str]:
    """Return what a command line must begin with to run as root: nothing, or sudo.

    Raises `ToolError` if this is neither root nor a user whom sudo lets through or can ask for a password.
    """
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and (sys.stdin.isatty() or subprocess.call([sudo, "-n", "true"], stderr=subprocess.DEVNULL) == 0):
        return [sudo]
    raise ToolError(f"cannot {to}: that takes root; run this as root, or as a user whom sudo asks for no password")


def install(packages: Sequence[str]) -> None:
    """Install those of the Debian packages that are missing, and say so. Raises `ToolError` if that fails."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\n", *packages]
    known = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    missing = [package for package in packages if f"ii  {package}" not in known]
    if not missing:
        return
    to = f"install the Debian packages {' '.join(missing)}"
    # Two of these may run at once, and an update waits for no other.
    apt = [*as_root(to), "flock", "/run/funnel-packages.lock", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2"]
    say(f"Installing Debian packages: {' '.join(missing)}")
    run([*apt, "update"], to)
    run([*apt, "-oDPkg::Lock::Timeout=300", "install", "--yes", "--no-install-recommends", *missing], to)


if __name__ == "__main__":
    try:
        install(sys.argv[1:])
    except ToolError as error:
        sys.exit(str(error))
