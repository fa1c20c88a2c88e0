"""Debian packages, root privileges and programs that the tools of this repository require.

`python3 -m tools.packages NAME ...` installs missing Debian packages.
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
    """An error with its solution, in one line for the user."""


def say(text: str) -> None:
    """Print a line for the user on standard error; standard output is for other programs."""
    sys.stderr.write(f"{text}\n")


def run(argv: Sequence[str], to: str, *, stdin: str | None = None, close_fds: bool = False) -> str:
    """Run a program and return its output.

    The program inherits locks and so holds them until it ends, unless `close_fds` is set.

    Raises `ToolError` "cannot <to>: ...", with the output of the program, if it fails or is missing.
    """
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True, close_fds=close_fds).stdout
    except FileNotFoundError as error:
        raise ToolError(f"cannot {to}: the program {argv[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip() or f"exit code {error.returncode}").splitlines()
        # The error is the first line, except for apt and programs based on it.
        raise ToolError(f"cannot {to}: {argv[0]}: {next(filter(APT_ERROR, lines), lines[0])}") from error


def as_root(to: str) -> list[str]:
    """Return the prefix of a command line that runs as root: empty, or sudo.

    Raises `ToolError` if the user is neither root nor able to use sudo.
    """
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and (sys.stdin.isatty() or subprocess.call([sudo, "-n", "true"], stderr=subprocess.DEVNULL) == 0):
        return [sudo]
    raise ToolError(f"cannot {to}: this requires root; run it as root, or as a user with passwordless sudo")


def install(packages: Sequence[str]) -> None:
    """Install missing Debian packages and report them. Raises `ToolError` on failure."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\n", *packages]
    installed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    missing = [package for package in packages if f"ii  {package}" not in installed]
    if not missing:
        return
    to = f"install the Debian packages {' '.join(missing)}"
    # Two instances may run at once, and `apt-get update` does not wait for a lock.
    apt = [*as_root(to), "flock", "/run/funnel-packages.lock", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2"]
    say(f"Installing Debian packages: {' '.join(missing)}")
    run([*apt, "update"], to)
    run([*apt, "-oDPkg::Lock::Timeout=300", "install", "--yes", "--no-install-recommends", *missing], to)


if __name__ == "__main__":
    try:
        install(sys.argv[1:])
    except ToolError as error:
        sys.exit(str(error))
