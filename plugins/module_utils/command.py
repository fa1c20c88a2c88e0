"""Run a program of the host and keep what it said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """A program that has ended: its exit status, and stdout and stderr as one text, in the order they were written."""

    status: int
    output: str


class CommandError(Exception):
    """A program is not there, took too long or failed. The message names it and holds its last lines."""


def run(
    argv: Sequence[str], *, timeout: float = 60.0, environment: Mapping[str, str] | None = None, check: bool = True
) -> Finished:
    """Run ``argv``, without a shell and in the C locale, for at most ``timeout`` seconds.

    ``environment`` is added to this process's own: it is the place for what must not be seen in a process list.

    :raises CommandError: when it cannot be started or outlives ``timeout``, and, with ``check``, when it fails.
    """
    try:
        ended = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise CommandError(f"{argv[0]} is not installed on this host") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(argv)} did not end within {timeout:g} s") from error
    if check and ended.returncode != 0:
        raise CommandError(f"{' '.join(argv)} failed with exit status {ended.returncode}:\n{last_lines(ended.stdout)}")
    return Finished(ended.returncode, ended.stdout)


def last_lines(text: str, count: int = 20) -> str:
    """Return the last ``count`` lines of ``text`` that are not empty."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:])
